"""Self-attention of heads that torch's flash kernels pad: 40 of SD-v1's 64 x 64 pixels to 64, here to 32 + 16.

In: q [B,H,N,D], k and v [B,H,T,D] of float16 or bfloat16, maybe a Rule of routes alone. Out: [B,H,N,D]. Anything else
is handed to `sdpa`. One program has BM pixels of one row and head and goes through the keys, BN at a time, with the
online softmax of Milakov and Gimelshein (arXiv:1805.02867) as in FlashAttention-2 (arXiv:2307.08691): in base 2, sums
in float32, probabilities rounded to v's dtype for the product with v.

Nothing chooses it: on an H200 cuDNN's kernel takes 0.83 of its time (benchmarks/flash.csv). To have it anyway:
`--attention minedit.attention.flash:attend`.
"""

from collections.abc import Hashable
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from minedit.attention.kernel import _routed
from minedit.attention.rules import Rule, check
from minedit.attention.sdpa import sdpa
from minedit.attention.triton import INTERPRETED, NOWHERE, ROUTED, Rows, _hopper, _Launch, _layout, _number, _split

DTYPES = (torch.float16, torch.bfloat16)
WIDEST = 128
UNPADDED = (32, 64, 96, 128)  # widths that torch's kernels have as they are
VARY = ("q_from", "k_from", "v_from", "n", "q_row", "q_head", "q_pixel",
        "k_row", "k_head", "k_token", "v_row", "v_head", "v_token")  # fmt: skip


@triton.jit
def _tile(x, at, stride, count, D: tl.constexpr, START: tl.constexpr, BD: tl.constexpr, WIDE: tl.constexpr,
          EVEN: tl.constexpr):  # fmt: skip
    """Columns START ... START + BD of x's rows `at`, 0 beyond column D and, unless EVEN, beyond row `count`."""
    d = START + tl.arange(0, BD)
    lines = x + at[:, None] * stride + d[None, :]
    if not EVEN:
        tile = tl.load(lines, mask=(at < count)[:, None] & (d < D)[None, :], other=0.0)
    elif START + BD > D:
        tile = tl.load(lines, mask=(d < D)[None, :], other=0.0)
    else:
        tile = tl.load(lines)
    return tile.to(tl.float32) if WIDE else tile  # Triton's interpreter cannot multiply bfloat16


@triton.jit
def _powers(x, SOFT: tl.constexpr):
    """2**x for x <= 0. SOFT: one in four as a polynomial, of an error of 3e-6: the unit for powers is the slow one."""
    if not SOFT:
        return tl.exp2(x)
    # x = i + f with f in -1/2 ... 1/2: adding 3·2**22 rounds x to i in the last bits, which then go into the exponent
    return tl.inline_asm_elementwise(
        """
        {
        .reg .f32 a, b, p;
        .reg .b32 i, j;
        ex2.approx.ftz.f32 $0, $4;
        ex2.approx.ftz.f32 $1, $5;
        ex2.approx.ftz.f32 $2, $6;
        max.f32 a, $7, 0fC2FC0000;
        add.rn.f32 b, a, 0f4B400000;
        mov.b32 i, b;
        sub.rn.f32 b, b, 0f4B400000;
        sub.rn.f32 a, a, b;
        fma.rn.f32 p, a, 0f3C1D0166, 0f3D64FE23;
        fma.rn.f32 p, p, a, 0f3E7601BC;
        fma.rn.f32 p, p, a, 0f3F317096;
        fma.rn.f32 p, p, a, 0f3F800000;
        mov.b32 j, p;
        shl.b32 i, i, 23;
        add.s32 j, j, i;
        mov.b32 $3, j;
        }
        """,
        "=f,=f,=f,=f,f,f,f,f",
        [x],
        dtype=tl.float32,
        is_pure=True,
        pack=4,
    )


@triton.jit(do_not_specialize=VARY)
def flash(q, k, v, out, q_from, k_from, v_from, n, q_row, q_head, q_pixel, k_row, k_head, k_token,
          v_row, v_head, v_token, HEADS: tl.constexpr, D: tl.constexpr, T: tl.constexpr, UNIT: tl.constexpr,
          WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
          VD: tl.constexpr, VE: tl.constexpr, SOFT: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """q, k in tiles of BD + BE columns, v in VD + VE; BE or VE of 0: in one.

    q_from, k_from, v_from: the row that each row reads, 4 bits each; None for its own. Strides are in units of UNIT
    numbers, which tells the compiler how long the vectors are that it may load. out [B,n,HEADS,D].
    """
    b, h = tl.program_id(2), tl.program_id(1).to(tl.int64)
    pixels, tokens = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BN)
    q += (_routed(q_from, b) * q_row + h * q_head) * UNIT
    k += (_routed(k_from, b) * k_row + h * k_head) * UNIT
    v += (_routed(v_from, b) * v_row + h * v_head) * UNIT
    out += b.to(tl.int64) * n * (HEADS * D) + h * D
    q_pixel, k_token, v_token = q_pixel * UNIT, k_token * UNIT, v_token * UNIT
    EVEN: tl.constexpr = T % BN == 0  # then no key is masked
    scale: tl.constexpr = 1.4426950408889634 * D**-0.5  # log2 e
    q_tile = _tile(q, pixels, q_pixel, n, D, 0, BD, WIDE, False)
    if BE:
        q_rest = _tile(q, pixels, q_pixel, n, D, BD, BE, WIDE, False)
    largest = tl.full([BM], float("-inf"), tl.float32)
    sums = tl.zeros([BM], tl.float32)
    total = tl.zeros([BM, VD], tl.float32)
    rest = tl.zeros([BM, VE if VE else 16], tl.float32)
    for start in tl.range(0, T, BN, num_stages=STAGES):
        left = T - start
        x = tl.dot(q_tile, tl.trans(_tile(k, tokens, k_token, left, D, 0, BD, WIDE, EVEN)), input_precision="ieee")
        if BE:
            k_rest = _tile(k, tokens, k_token, left, D, BD, BE, WIDE, EVEN)
            x = tl.dot(q_rest, tl.trans(k_rest), x, input_precision="ieee")
        if not EVEN:
            x = tl.where((tokens < left)[None, :], x, float("-inf"))
        larger = tl.maximum(largest, tl.max(x, axis=1) * scale)
        x = _powers(x * scale - larger[:, None], SOFT)
        shrunk = tl.exp2(largest - larger)
        sums = sums * shrunk + tl.sum(x, axis=1)
        total = total * shrunk[:, None]
        v_tile = _tile(v, tokens, v_token, left, D, 0, VD, WIDE, EVEN)
        x = x.to(v_tile.dtype)
        total = tl.dot(x, v_tile, total, input_precision="ieee")
        if VE:
            v_rest = _tile(v, tokens, v_token, left, D, VD, VE, WIDE, EVEN)
            rest = tl.dot(x, v_rest, rest * shrunk[:, None], input_precision="ieee")
        largest = larger
        k += BN * k_token
        v += BN * v_token
    lines, inside, d = out + pixels[:, None] * (HEADS * D), (pixels < n)[:, None], tl.arange(0, VD)
    share = (1 / sums)[:, None]
    tl.store(lines + d[None, :], (total * share).to(out.dtype.element_ty), mask=inside & (d < D)[None, :])
    if VE:
        d = VD + tl.arange(0, VE)
        tl.store(lines + d[None, :], (rest * share).to(out.dtype.element_ty), mask=inside & (d < D)[None, :])


def attend(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """`eager` without edits, masks, columns and gradients, in float16 and bfloat16, for heads of odd widths.

    `sdpa` serves the others. Raises MineditError.
    """
    d = q.shape[-1]
    if columns or q.dtype not in DTYPES or d % 8 or d > WIDEST or d in UNPADDED:
        return sdpa(q, k, v, rule, columns)
    if rule is not None and (rule.edits or rule.masks):
        return sdpa(q, k, v, rule)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return sdpa(q, k, v, rule)
    if v.shape != k.shape or not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        return sdpa(q, k, v, rule)
    if any(x.stride(3) != 1 for x in (q, k, v)):
        return attend(q.contiguous(), k.contiguous(), v.contiguous(), rule)
    routes = NOWHERE if rule is None else (rule.q_rows, rule.k_rows, rule.v_rows)
    launches = _launches((_layout(q), _layout(k), _layout(v)), routes)
    if not launches:  # the first of its kind
        check(q, k, v, rule)
        if routes != NOWHERE and len(q) > ROUTED:
            return attend(*rule.route(q, k, v))
        launches.append(_prepared(q, k, v, routes))
    device = q.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return attend(q, k, v, rule)
    b, heads, n, d = q.shape
    kind = torch.float32 if INTERPRETED and q.dtype == torch.bfloat16 else q.dtype
    out = torch.empty((b, n, heads, d), dtype=kind, device=device)  # heads inside: merging them is then a view
    launches[0](q, k, v, out)
    return (out if kind is q.dtype else out.to(q.dtype)).transpose(1, 2)  # [B, H, N, D]


def shape(n: int, d: int, t: int, hopper: bool = True) -> dict[str, int]:
    """The launch's tiles: BM pixels, BN keys, BD + BE of q's and k's width, VD + VE of v's; how it is pipelined."""
    BD, BE = _split(d)
    VD, VE = (64, 0) if d == 40 else (BD, BE)  # the fastest of 52 on an H200, and slower than cuDNN's: docs/gpu.md
    return {
        "BM": 128 if n > 64 else 64,
        "BN": 64,
        "BD": BD,
        "BE": BE,
        "VD": VD,
        "VE": VE,
        "SOFT": 0,
        "STAGES": 3 if hopper else 2,
        "num_warps": 8 if n > 64 else 4,
    }


def _prepared(q: Tensor, k: Tensor, v: Tensor, routes: tuple[Rows, ...]) -> _Launch:
    (b, heads, n, d), t = q.shape, k.shape[2]
    strides = [*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]]
    unit = 8 if all(s % 8 == 0 for s in strides) else 1  # vectors of 8 numbers are what a thread loads at once
    strides = [s // unit for s in strides]
    sizes = shape(n, d, t, _hopper(q.device))
    options = {"num_warps": sizes.pop("num_warps")}
    fixed = heads, d, t, unit, INTERPRETED and q.dtype == torch.bfloat16
    numbers = *(_number(rows) for rows in routes), n, *strides, *fixed, *sizes.values()
    return _Launch(flash, (triton.cdiv(n, sizes["BM"]), heads, b), numbers, options)


@lru_cache(maxsize=1024)  # a run has a hundred: layers, rules, batches
def _launches(layout: Hashable, routes: tuple[Rows, ...]) -> list[_Launch]:
    """What was made of the calls of one kind: those with these numbers, whatever the tensors hold."""
    return []
