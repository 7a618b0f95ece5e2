"""A tensor whose axes have names, and whose places on them have labels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minedit.config import MineditError, shown


@dataclass(frozen=True, eq=False)
class Values:
    """What was recorded under one name. NaN: not computed, as a row that the method left out."""

    tensor: Tensor
    axes: tuple[str, ...]  # of step, row, head, pixel, key, token, word, channel, width, height
    labels: dict[str, tuple] = field(default_factory=dict)  # by axis; an axis without has 0, 1 ...
    map: tuple[int, int] | None = None  # height, width of the axis "pixel"

    def __repr__(self) -> str:
        return f"<{', '.join(f'{axis} {size}' for axis, size in zip(self.axes, self.tensor.shape, strict=True))}>"

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    def at(self, **labels: object) -> Values:
        """At these labels, `at(step=3, row="target.cond", word="dog")`: those axes are gone. Raises MineditError."""
        found = self
        for axis, label in labels.items():
            if axis not in found.axes:
                raise MineditError(f"there is no axis {shown(axis)}; the axes are {', '.join(found.axes)}")
            where = found.axes.index(axis)
            known = found.labels.get(axis, tuple(range(found.tensor.shape[where])))
            if label not in known:
                what = ", ".join(shown(each, 30) for each in known[:12])
                raise MineditError(f"there is no {axis} {shown(repr(label), 60)}; expected one of {what}")
            rest = {name: each for name, each in found.labels.items() if name != axis}
            axes = found.axes[:where] + found.axes[where + 1 :]
            at = None if axis == "pixel" else found.map
            found = Values(found.tensor.select(where, known.index(label)), axes, rest, at)
        return found

    def mean(self, *axes: str) -> Values:
        """The mean over these axes, of what was computed."""
        where = [self.axes.index(axis) for axis in axes]
        rest = tuple(axis for axis in self.axes if axis not in axes)
        labels = {name: each for name, each in self.labels.items() if name not in axes}
        return replace(self, tensor=self.tensor.nanmean(dim=where), axes=rest, labels=labels)

    def maps(self) -> Values:
        """The axis "pixel" as height and width."""
        if self.map is None or "pixel" not in self.axes:
            raise MineditError(f"there is no axis of pixels; the axes are {', '.join(self.axes)}")
        where = self.axes.index("pixel")
        axes = (*self.axes[:where], "height", "width", *self.axes[where + 1 :])
        return replace(self, tensor=self.tensor.unflatten(where, self.map), axes=axes, map=None)
