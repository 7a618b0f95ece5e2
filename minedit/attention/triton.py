"""The edited cross-attention as one Triton kernel: `eager` with nothing but the output written to memory.

In: q [B,H,N,D], k and v [B,H,T,D], a Rule. Out: [B,H,N,D], on request also the probabilities' columns [B,N,T].
kernel.py is what runs on the GPU; here it is launched. A call of at most one edit is one launch and nothing else, all
rows of the batch in it. Every edit beyond the first has a launch of its own, of its row alone, and so have columns.

Without a GPU it runs, slowly, in Triton's interpreter: set TRITON_INTERPRET=1 before minedit is imported.
"""

import os
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from torch import Tensor

from minedit.attention import kernel
from minedit.attention.rules import Edit, Rule, check
from minedit.attention.sdpa import sdpa
from minedit.config import MineditError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on CPU
KEYS = 128  # most keys that stay on chip; all but the smallest self-attention has more and goes to torch's flash kernel
ROUTED = 15  # most rows of the batch whose routes fit into one number

Rows = tuple[int, ...] | None
NOWHERE = (None, None, None)  # no row reads another
NOTHING = (None,) * 5  # no edit


@dataclass
class _Launch:
    """All of a launch but its tensors. `ready` is what was compiled: it asks no more what kind of arguments come."""

    function: triton.JITFunction
    grid: tuple[int, int, int]
    numbers: tuple[int | None, ...]
    options: dict[str, int]
    ready: Callable[..., None] | None = None

    def __call__(self, *tensors: Tensor | None) -> None:
        if self.ready is not None:
            self.ready(*tensors, *self.numbers)
            return
        compiled = self.function[self.grid](*tensors, *self.numbers, **self.options)
        if not INTERPRETED:
            self.ready = compiled[self.grid]


def attend(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """`eager` in one kernel. `sdpa` serves masks, more than KEYS keys, as in self-attention, and gradients."""
    if k.shape[-2] > KEYS or (rule is not None and rule.masks):
        return sdpa(q, k, v, rule, columns)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return sdpa(q, k, v, rule, columns)
    edits, routes = ((), NOWHERE) if rule is None else (rule.edits, (rule.q_rows, rule.k_rows, rule.v_rows))
    layout = _layout(q), _layout(k), _layout(v)
    launches = _launches(layout, routes, tuple([_kind(edit) for edit in edits]), columns)
    if not launches:  # the first of its kind
        check(q, k, v, rule)
        if v.shape != k.shape or not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
            found = ", ".join(f"{list(x.shape)} {x.dtype} {x.device}" for x in (q, k, v))
            raise MineditError(f"attention 'triton': q, k, v are {found}; expected one width, dtype and device")
        if any(x.stride(3) != 1 for x in (q, k, v)):
            return attend(q.contiguous(), k.contiguous(), v.contiguous(), rule, columns)
        if q.dtype == torch.float32 and q.shape[3] > 128 and not _hopper(q.device):
            return sdpa(q, k, v, rule, columns)  # more than such a GPU's 163 KB on chip
        if routes != NOWHERE and len(q) > ROUTED:
            return attend(*rule.route(q, k, v), Rule(edits=edits), columns)
        launches += _prepared(q, k, v, routes, edits, columns)
    device = q.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return attend(q, k, v, rule, columns)
    b, heads, n, d = q.shape
    kind = torch.float32 if INTERPRETED and q.dtype == torch.bfloat16 else q.dtype
    out = torch.empty((b, n, heads, d), dtype=kind, device=device)  # heads inside: merging them is then a view
    for at, edit in enumerate(edits or (None,)):  # the columns' launch is the one behind these
        launches[at](q, k, v, out, *(NOTHING if edit is None else _weights(edit, device)))
    out = out.transpose(1, 2) if kind is q.dtype else out.to(q.dtype).transpose(1, 2)  # [B, H, N, D]
    if not columns:
        return out
    seen = torch.empty((b, n, k.shape[2]), device=device)
    launches[-1](q, k, seen)
    return out, seen


def shape(n: int, d: int, t: int, dtype: torch.dtype, hopper: bool = True) -> dict[str, int]:
    """The launch's tiles: BN pixels, TILES of them, BT + BU tokens, BD + BE of the head's width; and its warps.

    hopper: whether the GPU has Hopper's products. Others take operands from registers: larger tiles would spill.
    """
    narrow, wide = dtype != torch.float32, d > 128
    older = narrow and not hopper
    BT, BU = _split(t)
    BD, BE = (64, 0) if d == 40 else _split(d)
    return {
        # 64: the least that Hopper's products take from shared memory; float32 has no others
        "BN": 16 if not narrow or (older and wide) else 32 if older else 64,
        "BT": BT,
        "BU": BU,
        "BD": BD,
        "BE": BE,
        "TILES": 1,  # a loop takes half as many registers again
        "num_warps": 8 if older and not wide else 4,
        "num_stages": 1,
    }


def _hopper(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def _split(size: int) -> tuple[int, int]:
    """Two powers of two, of at least 16, that hold `size`: 77 is 64 and 16. The second may be 0."""
    whole = max(16, triton.next_power_of_2(size + 1) // 2)
    return whole, max(16, triton.next_power_of_2(size - whole)) if size > whole else 0


def _prepared(
    q: Tensor, k: Tensor, v: Tensor, routes: tuple[Rows, ...], edits: tuple[Edit, ...], columns: bool
) -> Iterator[_Launch]:
    """A launch of all rows with the first edit, one of its row for each other edit, one for the columns."""
    (b, heads, n, d), t = q.shape, k.shape[2]
    strides = [*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]]
    # vectors of 8 numbers are what a thread loads at once; a head begins at a multiple of 40, not of 16
    unit = 8 if all(s % 8 == 0 for s in strides) else 1
    strides = [s // unit for s in strides]
    sizes = shape(n, d, t, q.dtype, _hopper(q.device))
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
    fixed = heads, d, t, unit, INTERPRETED and q.dtype == torch.bfloat16
    at = [_number(rows) for rows in routes]
    tiles = triton.cdiv(n, sizes["BN"] * sizes["TILES"])
    for number, edit in enumerate(edits or (None,)):
        rows = (b, 0, 0) if edit is None else (b, edit.row, edit.source)
        yield _Launch(
            kernel.attention,
            (tiles, heads, 1 if number else b),
            (*at, *rows, n, *strides, *fixed, *sizes.values()),
            options,
        )
    if columns:
        del sizes["TILES"]
        numbers = *at[:2], n, *strides[:6], *fixed, *sizes.values()
        yield _Launch(kernel.columns, (triton.cdiv(n, sizes["BN"]), b, 1), numbers, options)


@lru_cache(maxsize=1024)  # a run has a hundred: layers, rules, batches
def _launches(layout: Hashable, routes: tuple[Rows, ...], kinds: tuple[Hashable, ...], columns: bool) -> list[_Launch]:
    """What was made of the calls of one kind: those with these numbers, whatever the tensors hold."""
    return []


def _layout(x: Tensor) -> Hashable:
    return x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % 16 == 0


def _kind(edit: Edit) -> Hashable:
    mix, gate = edit.columns, edit.gate
    return (edit.row, edit.source, edit.pin.shape, edit.blend.shape, edit.own.shape,
            None if mix is None else mix.shape, None if gate is None else gate.shape)  # fmt: skip


def _number(rows: Rows) -> int | None:
    """4 bits a row. The bit beyond makes it 64 bits wide whatever the rows, so that it is one kernel for all."""
    return None if rows is None else 1 << 60 | sum(row << 4 * b for b, row in enumerate(rows))


def _weights(edit: Edit, device: torch.device) -> list[Tensor | None]:
    """What the kernel reads of an edit: as it lies there, where that is contiguous float32 on `device`."""
    tensors = edit.pin, edit.blend, edit.own, edit.columns, edit.gate
    return [
        x if x is None or (x.dtype is torch.float32 and x.is_contiguous() and x.device == device)
        else x.to(device, torch.float32).contiguous()
        for x in tensors
    ]  # fmt: skip
