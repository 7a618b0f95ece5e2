"""The calls whose kernels are compiled: of an attention function, on Stable Diffusion v1.4's shapes, or of the layers
that `--fast` fuses."""

from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import nn

from minedit.attention import flash
from minedit.attention import triton as kernels
from minedit.attention.choose import backend
from minedit.attention.rules import Attend, Gate
from minedit.lab.cases import Case, cases, real_shapes
from minedit.speed import fused, group_norm

Call = tuple[str, Callable[[], object]]  # what is called, and how


def calls(name: str, dtype: torch.dtype, target: int, quick: bool) -> Iterator[Call]:
    """Of "triton", "flash", "fused", or a user's function. quick: of each kernel one."""
    if name == "fused":
        yield from _layers(dtype)
        return
    attend = {"triton": kernels.attend, "flash": flash.attend}.get(name) or backend(name)
    flat = [shape for shape in real_shapes() if shape.N in (4096, 1024, 256, 64)]  # of 512 x 512
    if name == "flash":
        shapes, rules = [shape for shape in flat if shape.kind == "self" and shape.D == 40], ("plain",)
    else:
        shapes, rules = [shape for shape in flat if shape.kind == "cross"], ("plain", "dps-mix")
    for shape in shapes[:1] if quick else shapes:
        for rule in rules[-1:] if quick else rules:
            (case,) = cases(shape, [rule], dtype)
            seen = rule == "plain" and shape.columns
            yield f"{shape}, {rule}", lambda case=case, seen=seen: _asked(attend, case, target, columns=seen)


def _asked(attend: Attend, case: Case, target: int, columns: bool) -> None:
    """Called as if on `target`; what was kept of such a call for another is forgotten, before and after."""
    kept = kernels._launches, flash._launches
    for each in kept:
        each.cache_clear()
    asked = {"columns": True} if columns else {}
    hopper = lambda device: target >= 90  # noqa: E731
    with mock.patch.object(kernels, "_hopper", hopper), mock.patch.object(flash, "_hopper", hopper):
        attend(case.q, case.k, case.v, case.rule, **asked)
    for each in kept:
        each.cache_clear()


def _layers(dtype: torch.dtype) -> Iterator[Call]:
    """Widths of Stable Diffusion v1.4, the autoencoder's among them."""

    def like(*shape: int) -> torch.Tensor:
        x = torch.zeros(shape, dtype=dtype)
        return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x

    def norm(c: int) -> nn.GroupNorm:
        return nn.GroupNorm(32, c).to(dtype)

    for c, side in ((320, 64), (960, 64), (2560, 8), (128, 512), (320, 8)):
        x, shift = like(2, c, side, side), torch.zeros(2, c, dtype=dtype)
        yield f"group_norm {c}, {side}x{side}", lambda x=x, c=c, s=shift: group_norm.group_norm(x, norm(c), True, s)
    x, bias = like(2, 320, 64, 64), torch.zeros(320)
    yield "add 320", lambda: fused.add(x, x, bias)
    for c in (320, 640, 1280):
        x, layer = like(2, 64, c), nn.LayerNorm(c).to(dtype)
        yield f"add_layer_norm {c}", lambda x=x, layer=layer: fused.add_layer_norm(x, x, layer)
    yield "geglu 1280", lambda: fused.geglu(like(2, 64, 2560))
    gate = Gate(torch.ones(1280), scale=0.95, slope=1.0, centre=True)
    yield "gate 1280", lambda: fused.gate(gate, like(64, 1280))
