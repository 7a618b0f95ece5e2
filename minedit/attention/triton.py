"""The edited cross-attention as one Triton kernel: `eager` with nothing but the output written to memory.

In: q [B,H,N,D], k and v [B,H,T,D], a Rule. Out: [B,H,N,D], on request also the probabilities' columns [B,N,T].
`attend` packs the Rule into a few small tensors and launches; `_attend` is the kernel; `_probabilities` its inner part.

One program has a tile of queries of one row and head, and all T keys on chip: T is 77, one tile. A row with an edit
computes its source's probabilities too, mixes the two in float32 and multiplies with its own V, once. All rows of the
batch go in one launch; those without an edit skip that branch. Keys beyond the tile's power of two are masked.

Without a GPU it runs, slowly, in Triton's interpreter: set TRITON_INTERPRET=1 before minedit is imported.
"""

from __future__ import annotations

import os
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from minedit.attention.rules import Edit, Rule
from minedit.attention.sdpa import sdpa

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on CPU
KEYS = 128  # most keys that stay on chip; all but the smallest self-attention has more and goes to torch's flash kernel


@triton.jit
def _load(pointers, mask, WIDE: tl.constexpr):
    """A tile, 0 where masked. WIDE makes it float32: Triton's interpreter can neither multiply nor round bfloat16."""
    tile = tl.load(pointers, mask=mask, other=0.0)
    return tile.to(tl.float32) if WIDE else tile


@triton.jit
def _weighted(p, x):
    """p x for float32 p. Beside a narrower x, p goes as two numbers of that width, so that it loses nothing."""
    if x.dtype == tl.float32:
        return tl.dot(p, x, input_precision="ieee")  # not tf32
    high = p.to(x.dtype)
    low = (p - high.to(tl.float32)).to(x.dtype)
    return tl.dot(high, x, tl.dot(low, x))


@triton.jit
def _probabilities(q, k, q_pixel, q_width, k_token, k_width, pixels, n, t, scale, BN: tl.constexpr, BT: tl.constexpr,
                   D: tl.constexpr, BD: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """softmax(scale · q kᵀ) over t tokens, of one row and head, for the `pixels` [BN] of n: [BN,BT] float32."""
    tokens, width = tl.arange(0, BT), tl.arange(0, BD)
    scores = tl.zeros([BN, BT], tl.float32)
    for start in range(0, D, BD):  # in chunks, so that widths 40, 80 and 160 need no power of two
        d = start + width
        q_tile = _load(q + pixels[:, None] * q_pixel + d[None, :] * q_width, (pixels < n)[:, None] & (d < D), WIDE)
        k_tile = _load(k + d[:, None] * k_width + tokens * k_token, (d < D)[:, None] & (tokens < t), WIDE)
        scores = tl.dot(q_tile, k_tile, scores, input_precision="ieee")  # [BN, BT]
    scores = tl.where((tokens < t)[None, :], scores, float("-inf"))
    powers = tl.exp2((scores - tl.max(scores, axis=1)[:, None]) * (scale * 1.4426950408889634))  # log2 e
    return powers / tl.sum(powers, axis=1)[:, None]


@triton.jit
def _attend(q, k, v, out, seen, rows, weights, mix, gates, n, t, scale,
            q_row, q_head, q_pixel, q_width, k_row, k_head, k_token, k_width,
            v_row, v_head, v_token, v_width, out_row, out_head, out_pixel,
            HEADS: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
            MIX: tl.constexpr, GATE: tl.constexpr, SEEN: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """rows [B,5] int32: where row b reads q, k and v, its edit or -1, and that edit's source row.

    weights [E,3,t]: pin, blend, own. mix [E,BT,BT]: R, float32 or float16. gates [E,n]: w. Else float32. With SEEN the
    mean over the HEADS of the probabilities before any edit goes to `seen` [B,n,t].
    """
    pixels, tokens = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BT)
    b, h = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    q_from, k_from, v_from = tl.load(rows + 5 * b), tl.load(rows + 5 * b + 1), tl.load(rows + 5 * b + 2)
    edit, source = tl.load(rows + 5 * b + 3), tl.load(rows + 5 * b + 4)
    p = _probabilities(q + q_from * q_row + h * q_head, k + k_from * k_row + h * k_head, q_pixel, q_width,
                       k_token, k_width, pixels, n, t, scale, BN, BT, D, BD, WIDE)  # fmt: skip
    if edit >= 0:
        q_source, k_source = tl.load(rows + 5 * source), tl.load(rows + 5 * source + 1)
        s = _probabilities(q + q_source * q_row + h * q_head, k + k_source * k_row + h * k_head, q_pixel, q_width,
                           k_token, k_width, pixels, n, t, scale, BN, BT, D, BD, WIDE)  # fmt: skip
        if MIX:
            s = _weighted(s, tl.load(mix + edit * BT * BT + tokens[:, None] * BT + tokens))  # P_s R
        of_edit = weights + 3 * edit * t + tokens
        pin = _load(of_edit, tokens < t, False)  # [BT], as blend and own
        blend = _load(of_edit + t, tokens < t, False)
        own = _load(of_edit + 2 * t, tokens < t, False)
        if GATE:
            w = _load(gates + edit * n + pixels, pixels < n, False)[:, None]
            p = (pin + blend * (1 - w)) * s + (blend * w + own) * p  # [BN, BT]
        else:
            p = pin * s + (blend + own) * p
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        v_tile = _load(v + v_from * v_row + h * v_head + tokens[:, None] * v_token + d * v_width,
                       (tokens < t)[:, None] & (d < D), WIDE)  # fmt: skip
        tl.store(out + b * out_row + h * out_head + pixels[:, None] * out_pixel + d,
                 _weighted(p, v_tile).to(out.dtype.element_ty), mask=(pixels < n)[:, None] & (d < D))  # fmt: skip
    if SEEN and h == 0:  # computed again for all heads, in their order, rather than summed by racing programs
        total = tl.zeros([BN, BT], tl.float32)
        for each in range(HEADS):
            total += _probabilities(q + q_from * q_row + each * q_head, k + k_from * k_row + each * k_head, q_pixel,
                                    q_width, k_token, k_width, pixels, n, t, scale, BN, BT, D, BD, WIDE)  # fmt: skip
        tl.store(seen + (b * n + pixels[:, None]) * t + tokens, total / HEADS,
                 mask=(pixels < n)[:, None] & (tokens < t))  # fmt: skip


def attend(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """`eager` in one kernel. `sdpa` serves what has more than KEYS keys, as self-attention, or needs a gradient."""
    (b, heads, n, d), t = q.shape, k.shape[2]
    if t > KEYS or (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
        return sdpa(q, k, v, rule, columns)
    rule, device = rule or Rule(), q.device
    edits, sizes = rule.edits, shape(n, d, t, v.dtype)
    wide = INTERPRETED and v.dtype == torch.bfloat16
    kind = torch.float32 if wide else v.dtype
    out = torch.empty(b, n, heads, d, dtype=kind, device=device)  # heads inside: merging them is then a view
    seen = torch.empty(b, n, t, device=device) if columns else out
    weights = _packed([torch.stack((e.pin, e.blend, e.own)) for e in edits], device) if edits else out
    mixed, gated = (any(getattr(e, name) is not None for e in edits) for name in ("columns", "gate"))
    mix = _mix(edits, v, t, sizes["BT"]) if mixed else out
    gates = _packed([_gate(e, n, device) for e in edits], device) if gated else out
    with torch.cuda.device_of(q):
        _attend[(triton.cdiv(n, sizes["BN"]), b, heads)](
            q, k, v, out, seen, _rows(b, rule.q_rows, rule.k_rows, rule.v_rows, _pairs(edits), device),
            weights, mix, gates, n, t, d**-0.5, *q.stride(), *k.stride(), *v.stride(),
            out.stride(0), out.stride(2), out.stride(1),
            HEADS=heads, D=d, MIX=mixed, GATE=gated, SEEN=columns, WIDE=wide, **sizes,
        )  # fmt: skip
    out = out.to(v.dtype).transpose(1, 2)  # [B, H, N, D]
    return (out, seen) if columns else out


def shape(n: int, d: int, t: int, dtype: torch.dtype) -> dict[str, int]:
    """The launch's tiles: BN pixels, BT tokens, BD of the head's width at a time; and its warps."""
    large = n >= 1024 and dtype != torch.float32  # else there are too few tiles, or too few registers
    width = 32 if d % 32 == 0 else 16
    return {
        "BN": 64 if large else 32,
        "BT": max(16, triton.next_power_of_2(t)),
        "BD": width,
        "num_warps": 8 if large else 4,
    }


def _pairs(edits: tuple[Edit, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((edit.row, edit.source) for edit in edits)


Rows = tuple[int, ...] | None


@lru_cache(maxsize=256)  # a run has a handful; a copy to the device at every layer would cost more than the kernel
def _rows(b: int, q: Rows, k: Rows, v: Rows, edits: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """[B,5] int32: where each row reads q, k and v, the number of its edit or -1, and that edit's source row."""
    table = [[*from_rows, -1, 0] for from_rows in zip(*(rows or range(b) for rows in (q, k, v)), strict=True)]
    for number, (row, source) in enumerate(edits):
        table[row][3:] = number, source
    return torch.tensor(table, dtype=torch.int32, device=device)


def _packed(rows: list[Tensor], device: torch.device) -> Tensor:
    """Contiguous float32 [E, ...]."""
    return torch.stack(rows).to(device, torch.float32)


def _mix(edits: tuple[Edit, ...], v: Tensor, t: int, size: int) -> Tensor:
    """R of each edit, [E,size,size], 0 beyond t: a whole tile, without masks, halves the registers of its load.

    Beside a narrower v it is float16: shares of 0 ... 1, most of them 0 or 1.
    """
    kind = torch.float32 if v.dtype == torch.float32 else torch.float16
    mix = torch.zeros(len(edits), size, size, dtype=kind, device=v.device)
    for tile, edit in zip(mix, edits, strict=True):
        tile[:t, :t] = torch.eye(t, device=v.device) if edit.columns is None else edit.columns
    return mix


def _gate(edit: Edit, n: int, device: torch.device) -> Tensor:
    return torch.ones(n, device=device) if edit.gate is None else edit.gate.to(device, torch.float32)
