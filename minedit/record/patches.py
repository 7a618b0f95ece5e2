"""Names → other values, while pictures are drawn.

    def quiet(value, at):
        return value * 0 if at.row == "target.cond" and at.step < 10 else value

    with minedit.patched(sd, {"middle_block.1.transformer_blocks.0.attn2.heads": quiet}):
        minedit.edit(sd, "a cat in the park", "a dog in the park")

A value that is given back as it came changes no bit. `.columns` are probabilities before any rule: what other rows read
of them changes too; `.columns.edited` are those that the row's output is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from minedit.attention.tap import Begun
from minedit.config import MineditError, shown
from minedit.record.names import catalogue, chosen, inside, split
from minedit.record.select import held, row_chosen, step_chosen
from minedit.record.tap import Places, listening
from minedit.stack.model import Model, check_model


@dataclass(frozen=True)
class At:
    """Where a value comes up."""

    name: str
    site: str  # the module's name; empty for the latents and the text
    row: str  # "target.cond", "target", "photo" ...
    step: int | None  # None for the text, the autoencoder
    timestep: int | None  # 999 for pure noise ... 0


Patch = Callable[[Tensor, At], Tensor]  # a row's value, [C, h, w], [N, C], [H, N, T] ..., as docs/tensors.md has it


class Patcher:
    """A Listener (tap.py) that asks functions."""

    def __init__(self, sd: Model, patches: Mapping[str, Patch], steps: object, rows: object) -> None:
        if not isinstance(patches, Mapping) or not patches or not all(map(callable, patches.values())):
            raise MineditError(f"patches is {shown(repr(patches), 60)}, expected {{'name or glob': function}}")
        known = catalogue(sd.config)
        self.functions: dict[str, list[tuple[str, Patch]]] = {}
        for pattern, patch in patches.items():
            for name in chosen(pattern, known):
                self.functions.setdefault(name, []).append((pattern, patch))
        self.names = frozenset(self.functions)
        self.inside = inside(sd, self.names)
        self.steps, self.rows, self.unasked = held("steps", steps, Integral), held("rows", rows, str), set(patches)

    def photo(self, sides: tuple[int, int]) -> None: ...

    def foresee(self, begun: Begun) -> None: ...

    def begin(self, begun: Begun) -> None: ...

    def heads(self) -> None:
        return None

    def wants(self, row: str) -> bool:
        return row_chosen(self.rows, row)

    def asks(self, step: int | None) -> bool:
        return step_chosen(self.steps, step)

    def take(self, name: str, x: Tensor, rows: Places, step: int | None, time: int | None) -> Tensor:
        found = x
        for row, at in rows.items():
            if self.wants(row):
                before = found[at]
                after = self._asked(name, before, row, step, time)
                if after is not before:
                    found = found.clone() if found is x else found  # laid out as it was
                    found[at] = after
        return found

    def take_row(self, name: str, x: Tensor, row: str, step: int, time: int) -> Tensor:
        return self._asked(name, x, row, step, time)

    def _asked(self, name: str, x: Tensor, row: str, step: int | None, time: int | None) -> Tensor:
        """What the functions make of it; `x` itself where that is its equal."""
        found, at = x, At(name, split(name)[0], row, step, time)
        for pattern, patch in self.functions[name]:
            self.unasked.discard(pattern)
            found = patch(found, at)
            if not isinstance(found, Tensor) or found.shape != x.shape:
                what = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
                raise MineditError(f"the patch of {name} gave {what}, expected a tensor {list(x.shape)}")
        if found is x:
            return x
        found = found.to(x)
        return x if torch.equal(found, x) else found


@contextmanager
def patched(
    sd: Model,
    patches: Mapping[str, Patch],
    *,
    steps: int | Iterable[int] | Callable[[int], bool] | None = None,
    rows: str | Iterable[str] | Callable[[str], bool] | None = None,
) -> Iterator[None]:
    """While it lasts, runs of `sd` in this thread that draw pictures go on with what the functions give back.

    Args:
        patches: a name or glob of docs/tensors.md → fn(value, at): a row's value → the same, or another of its shape.
            The value must not be written to.
        steps, rows: those that the functions are asked for, as in `recorded`; None: all.

    Raises MineditError for a name that there is not, and at the end for one that never came up.
    """
    check_model(sd)
    patcher = Patcher(sd, patches, steps, rows)
    with listening(sd, patcher):
        yield
    if patcher.unasked:
        left = ", ".join(repr(each) for each in sorted(patcher.unasked))
        what = f"nothing that {left} names came up in these steps and rows"
        raise MineditError(f"{what}; expected a run of this model in the `with`, and rows such as target.cond")
