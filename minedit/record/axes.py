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
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of the axis "token": its words, by row

    def __repr__(self) -> str:
        return f"<{', '.join(f'{axis} {size}' for axis, size in zip(self.axes, self.tensor.shape, strict=True))}>"

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    def at(self, **labels: object) -> Values:
        """At these labels, `at(step=3, row="target.cond", word="dog")`: those axes are gone. Raises MineditError.

        A word of an axis "token" is the sum over its tokens, of one row.
        """
        found = self
        for axis in sorted(labels, key=lambda name: name == "word"):
            if axis == "word" and "token" in found.axes:
                found = found._word(labels[axis])
                continue
            if axis not in found.axes:
                raise MineditError(f"there is no axis {shown(axis)}; the axes are {', '.join(found.axes)}")
            where, label = found.axes.index(axis), labels[axis]
            label = label.tolist() if isinstance(label, Tensor) else label
            known = found.labels.get(axis, tuple(range(found.tensor.shape[where])))
            if label not in known:
                what = ", ".join(shown(each, 30) for each in known[:12])
                raise MineditError(f"there is no {axis} {shown(repr(label), 60)}; expected one of {what}")
            words = {row: each for row, each in found.words.items() if axis != "row" or row == label}
            found = found._without(axis, found.tensor.select(where, known.index(label)), words)
        return found

    def _word(self, word: object) -> Values:
        if len(self.words) != 1:
            raise MineditError(f"tokens are other words in other rows; choose one: at(row=..., word={word!r})")
        (texts,) = self.words.values()
        tokens = [at for at, text in enumerate(texts) if text == word]
        if not tokens:
            what = ", ".join(dict.fromkeys(texts))
            raise MineditError(f"there is no word {shown(repr(word), 60)} in this row; expected one of {what}")
        where = self.axes.index("token")
        share = self.tensor.index_select(where, torch.tensor(tokens, device=self.tensor.device)).sum(where)
        return self._without("token", share, {})

    def _without(self, axis: str, tensor: Tensor, words: dict[str, tuple[str, ...]]) -> Values:
        labels = {name: each for name, each in self.labels.items() if name != axis}
        axes = tuple(name for name in self.axes if name != axis)
        return Values(tensor, axes, labels, None if axis == "pixel" else self.map, {} if axis == "token" else words)

    def mean(self, *axes: str) -> Values:
        """The mean over these axes, of what was computed."""
        for axis in axes:
            if axis not in self.axes:
                raise MineditError(f"there is no axis {shown(repr(axis), 60)}; the axes are {', '.join(self.axes)}")
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
