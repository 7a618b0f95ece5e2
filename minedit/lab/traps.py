"""Inputs that a function may be given and that many get wrong: odd ways to lie in memory, numbers at the edge.

In: q, k and v as drawn, [B,N,H,D]. Out: the same numbers as views [B,H,N,D]; or other numbers, by the shape's note.
`turn` writes other numbers into a call's tensors, of which the answer is known: a second call must see them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from minedit.attention.rules import Mask, Rule
from minedit.speed.graphs import taken_apart

# --- how it lies -----------------------------------------------------------------------------------------------------


def layer(x: Tensor) -> Tensor:
    """As the UNet's layers hand it over."""
    return x.transpose(1, 2)  # [B, H, N, D]


def _contiguous(x: Tensor) -> Tensor:
    return layer(x).contiguous()


def _around(x: Tensor) -> Tensor:
    """Cut out of a larger tensor that is NaN: more pixels or keys, more heads, wider heads."""
    b, n, h, d = x.shape
    wide = x.new_full((b, n + 64, h + 1, d + 8), math.nan)
    wide[:, 32 : 32 + n, :h, :d] = x
    return layer(wide[:, 32 : 32 + n, :h, :d])


def _misaligned(x: Tensor) -> Tensor:
    """It begins one number behind an address at which memory is handed out."""
    return layer(x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x))


def _apart(x: Tensor) -> Tensor:
    """A head's numbers are no neighbours."""
    wide = x.new_full((*x.shape, 2), math.nan)
    wide[..., 0] = x
    return layer(wide[..., 0])


def _once(x: Tensor) -> Tensor:
    """One row that stands for all."""
    return layer(x[:1].expand(x.shape))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": _contiguous,
    "NaN around": _around,
    "misaligned": _misaligned,
    "numbers apart": _apart,
    "rows are one": _once,
}


# --- what it holds ---------------------------------------------------------------------------------------------------


def _zeros(q: Tensor, k: Tensor, v: Tensor, rule: Rule | None) -> Rule | None:
    """-0 as q, and as every second number of v: all scores are 0 or -0."""
    q.fill_(-0.0)
    v[..., ::2] = -0.0
    return rule


def _denormals(q: Tensor, k: Tensor, v: Tensor, rule: Rule | None) -> Rule | None:
    """Below the smallest normal number: an edit's weights, of which 1 / largest is infinite; without edits q and v."""
    if rule is None or not rule.edits:
        for x in (q, v):
            x.mul_(torch.finfo(x.dtype).tiny / 8)
        return rule
    small = torch.finfo(torch.float32).tiny / 8
    weights = ("pin", "blend", "own")
    edits = (replace(edit, **{name: getattr(edit, name) * small for name in weights}) for edit in rule.edits)
    return replace(rule, edits=tuple(edits))


def _hidden(q: Tensor, k: Tensor, v: Tensor, rule: Rule | None) -> Rule:
    """A key that no pixel of any row sees has the largest numbers: its score is above all that may be seen."""
    rule, at, n = rule or Rule(), k.shape[2] // 2, q.shape[2]
    keys = {row: torch.ones(n, k.shape[2], dtype=torch.bool, device=q.device) for row in range(len(q))}
    keys |= {mask.row: mask.keys.clone() for mask in rule.masks}
    for each in keys.values():
        each[:, at] = False
    for x in (k, v):
        x[:, :, at] = x[:, :, at].sign() * min(6e4, torch.finfo(x.dtype).max)
    return replace(rule, masks=tuple(Mask(row, each) for row, each in keys.items()))


VALUES: dict[str, Callable[[Tensor, Tensor, Tensor, Rule | None], Rule | None]] = {
    "minus zeros": _zeros,
    "denormals": _denormals,
    "hidden key": _hidden,
}


# --- the same tensors again ------------------------------------------------------------------------------------------


def tensors(rule: Rule | None) -> list[Tensor]:
    return taken_apart({"": rule})[1] if rule else []


def copied(x: Tensor) -> Tensor:
    """x with all that its memory holds, before, between and behind its numbers."""
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        x.untyped_storage().clone(), x.storage_offset(), x.shape, x.stride()
    )


def memory(x: Tensor) -> Tensor:
    """The bytes of all that x is a view of."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def writable(x: Tensor) -> bool:
    """Each number has a place of its own."""
    return all(stride or size < 2 for stride, size in zip(x.stride(), x.shape, strict=True))


def turn(q: Tensor, k: Tensor, v: Tensor, rule: Rule | None) -> bool:
    """Reverse heads, pixels and keys of all tensors where they lie: out [B,H,N,D] is then reversed in H and N, columns
    [B,N,T] in both. False where a tensor cannot be written."""
    parts = {x.data_ptr(): (x, (1, 2)) for x in (q, k, v)}
    parts |= {
        x.data_ptr(): (x, tuple(range(x.ndim))) for x in tensors(rule)
    }  # [T], [N], [T,T], [N,T]; shared ones once
    if not all(writable(x) for x, _ in parts.values()):
        return False
    for x, dims in parts.values():
        x.copy_(x.flip(dims))
    return True


def overlapping(x: Tensor, others: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of a tensor whose memory x lies in."""
    own = x.untyped_storage().data_ptr()
    return next((name for name, other in others if own and other.untyped_storage().data_ptr() == own), None)
