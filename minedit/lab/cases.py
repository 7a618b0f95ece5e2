"""What the kernel lab tries attention functions on: shapes, with a Rule of every form (forms.py), and traps (traps.py).

Out: `small_shapes`, `real_shapes` and `cases`, which draws q, k and v for them: the same numbers for the same shape and
rule on any machine.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from minedit.attention.rules import Rule
from minedit.config import SD14
from minedit.lab.forms import ROUTES, RULES, Shape
from minedit.lab.traps import LAYOUTS, VALUES, layer

SOME = ("plain", "dps-mix", "general")  # for traps that no rule makes better or worse


def small_shapes() -> tuple[Shape, ...]:
    """Shapes of a few milliseconds, each with its own trap."""
    return (
        Shape("cross", 4, 2, 64, 77, 40),  # whole tiles of pixels
        Shape("cross", 4, 2, 65, 77, 40),  # one pixel more
        Shape("cross", 4, 3, 7, 5, 24),  # fewer pixels and tokens than any tile
        Shape("cross", 4, 2, 33, 77, 160),  # a wide head
        Shape("cross", 4, 4, 96, 32, 48),  # the embedded model's
        Shape("cross", 4, 2, 40, 77, 80, note="contiguous"),
        Shape("cross", 4, 2, 65, 77, 40, spread=40.0, note="large scores"),  # exp() of them is beyond float32
        Shape("cross", 2, 2, 64, 77, 40, rules=("plain",)),  # AdapEdit's statistics pass
        Shape("self", 4, 2, 65, 65, 40),
        Shape("self", 4, 2, 130, 130, 16, rules=("plain", *ROUTES)),  # more keys than one tile
        Shape("cross", 4, 2, 33, 1, 40, rules=("plain", "general", "all"), note="one token"),
        Shape("cross", 4, 8, 1, 77, 40, rules=SOME, note="one pixel"),
        Shape("cross", 1, 2, 33, 77, 40, rules=("plain",), note="one row"),
        Shape("cross", 4, 2, 19, 21, 23, rules=SOME, note="odd width"),  # no tile and no vector divides it
        Shape("cross", 4, 2, 33, 77, 40, rules=SOME, note="NaN around"),
        Shape("cross", 4, 2, 33, 77, 40, rules=SOME, note="misaligned"),
        Shape("cross", 4, 2, 33, 77, 40, rules=SOME, note="numbers apart"),
        Shape("cross", 4, 2, 33, 77, 40, rules=SOME, note="rows are one"),
        Shape("cross", 4, 2, 33, 77, 40, rules=SOME, note="minus zeros"),
        Shape("cross", 4, 2, 33, 77, 40, rules=SOME, note="denormals"),
        Shape("cross", 4, 2, 33, 77, 40, rules=("masked", "all"), note="hidden key"),
        Shape("self", 4, 2, 130, 130, 24, rules=("plain", "inject"), note="NaN around"),
        Shape("self", 4, 2, 130, 130, 24, rules=("plain", "inject"), note="misaligned"),
    )


def real_shapes() -> tuple[Shape, ...]:
    """SD-v1.4's attention layers while a pair is edited, at 512 x 512 and 768 x 512: cross-attention, then self."""
    edits = tuple(name for name in RULES if name not in (*ROUTES, "general", "all"))
    cross, own = [], []
    for height, width in ((512, 512), (768, 512)):
        for level, channels in enumerate(SD14.unet.channels):  # the last level's is the middle block
            N = height * width // (SD14.vae.factor << level) ** 2
            H, D = SD14.unet.heads, channels // SD14.unet.heads
            cross.append(Shape("cross", 4, H, N, SD14.text.context_length, D, rules=edits))
            own.append(Shape("self", 4, H, N, N, D, columns=False, rules=("plain", *ROUTES)))
    return tuple(cross + own)


@dataclass(frozen=True, eq=False)
class Case:
    """One call: what a function is given."""

    shape: Shape
    name: str  # of the rule, in RULES
    q: Tensor
    k: Tensor
    v: Tensor
    rule: Rule | None

    def __str__(self) -> str:
        return f"{str(self.q.dtype).removeprefix('torch.')}, {self.shape}, rule {self.name}"


def cases(
    shape: Shape, rules: Iterable[str], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Iterator[Case]:
    """A case for each of the `rules` that the shape is tried with, drawn on the CPU."""
    for name in (name for name in rules if name in (shape.rules or RULES)):
        draw = Generator("cpu").manual_seed(zlib.crc32(f"{shape} {name}".encode()))
        rule = RULES[name](shape, draw)
        root = shape.spread**0.5
        sizes = {"q": (shape.N, root), "k": (shape.T, root), "v": (shape.T, 1.0)}
        tensors = {}
        for letter, (length, scale) in sizes.items():
            drawn = torch.randn(shape.B, length, shape.H, shape.D, generator=draw) * scale
            tensors[letter] = LAYOUTS.get(shape.note, layer)(drawn.to(device, dtype))  # [B, H, N or T, D]
        rule = rule and _moved(rule, device)
        if shape.note in VALUES:
            rule = VALUES[shape.note](**tensors, rule=rule)
        yield Case(shape, name, **tensors, rule=rule)


def _moved(rule: Rule, device: torch.device | str) -> Rule:
    parts = ("columns", "pin", "blend", "own", "gate")
    edits = (
        replace(edit, **{name: x.to(device) for name in parts if (x := getattr(edit, name)) is not None})
        for edit in rule.edits
    )
    masks = (replace(mask, keys=mask.keys.to(device)) for mask in rule.masks)
    return replace(rule, edits=tuple(edits), masks=tuple(masks))
