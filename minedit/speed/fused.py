"""What torch runs as passes of their own, in one or two: Triton kernels for activations that lie channels-last.

`add` (two branches and a bias), `add_layer_norm`, `geglu` and `gate` (AdapEdit's weights of pixels); group_norm.py has
the largest. Each has beside it, `plain_...`, what it computes, in torch. Sums are in float32 whatever the dtype and
without atomics, so that a result repeats bit for bit. No gradients.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from minedit.attention.inside import Gate
from minedit.speed.group_norm import across

CHUNKS = 16  # pieces of a map whose sums are taken apart


def plain_add(x: Tensor, h: Tensor, bias: Tensor) -> Tensor:
    """x + h + bias for maps [B,C,h,w] and a bias [C]."""
    return x + (h + bias[:, None, None].to(h))


def add(x: Tensor, h: Tensor, bias: Tensor) -> Tensor:
    """`plain_add`, channels-last."""
    x, h = (each.contiguous(memory_format=torch.channels_last) for each in (x, h))
    out, c = torch.empty_like(x), x.shape[1]
    m, wide = x.numel() // c, across(c)
    grid = triton.cdiv(m * wide, 4096), triton.cdiv(c, wide)
    with torch.cuda.device_of(x):
        _add[grid](x, h, bias, out, m, C=c, BC=wide, ROWS=4096 // wide, num_warps=4)
    return out


@triton.jit
def _add(x, h, bias, out, m, C: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    mask, at = (row < m)[:, None] & (channel < C)[None, :], (row * C)[:, None] + channel[None, :]
    y = tl.load(h + at, mask=mask, other=0.0).to(tl.float32)
    y += tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    y += tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


def plain_add_layer_norm(x: Tensor, h: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """x + h for tokens [B,N,C], and its norm."""
    x = x + h
    return x, norm(x)


def add_layer_norm(x: Tensor, h: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """`plain_add_layer_norm` in one launch."""
    x, h = x.contiguous(), h.contiguous()
    total, out, c = torch.empty_like(x), torch.empty_like(x), x.shape[-1]
    m = x.numel() // c
    rows = 4 if m >= 4096 else 1
    sizes = {"C": c, "BC": triton.next_power_of_2(c), "ROWS": rows, "num_warps": 8 if rows * c > 2048 else 4}
    with torch.cuda.device_of(x):
        _add_layer_norm[(triton.cdiv(m, rows),)](x, h, norm.weight, norm.bias, total, out, m, norm.eps, **sizes)
    return total, out


@triton.jit
def _add_layer_norm(x, h, weight, bias, total, out, m, eps, C: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr):
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BC)
    inside = channel < C
    mask, at = (row < m)[:, None] & inside[None, :], (row * C)[:, None] + channel[None, :]
    y = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) + tl.load(h + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(total + at, y.to(total.dtype.element_ty), mask=mask)
    y = tl.where(mask, y - (tl.sum(y, axis=1) / C)[:, None], 0.0)
    y *= tl.rsqrt(tl.sum(y * y, axis=1) / C + eps)[:, None]
    y = y * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    y += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


def plain_geglu(x: Tensor) -> Tensor:
    """[...,2C] -> [...,C]: the first half times GELU of the second."""
    x, gate = x.chunk(2, dim=-1)
    return x * F.gelu(gate)


def geglu(x: Tensor) -> Tensor:
    """`plain_geglu` in one launch."""
    x, c = x.contiguous(), x.shape[-1] // 2
    out, m = x.new_empty(*x.shape[:-1], c), x.numel() // (2 * c)
    with torch.cuda.device_of(x):
        _geglu[(triton.cdiv(m, 16), triton.cdiv(c, 256))](x, out, m, C=c, BC=256, ROWS=16, num_warps=4)
    return out


@triton.jit
def _geglu(x, out, m, C: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr):
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (row < m)[:, None] & (channel < C)[None, :]
    at = (row.to(tl.int64) * (2 * C))[:, None] + channel[None, :]
    value, gate = tl.load(x + at, mask=mask, other=0.0), tl.load(x + C + at, mask=mask, other=0.0).to(tl.float32)
    y = value.to(tl.float32) * (0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476)))
    tl.store(out + (row.to(tl.int64) * C)[:, None] + channel[None, :], y.to(out.dtype.element_ty), mask=mask)


def plain_gate(gate: Gate, hidden: Tensor) -> Tensor:
    """E_[V] [N,C] of the edited row -> [N] float32."""
    return gate.weights(hidden)


def gate(gate: Gate, hidden: Tensor) -> Tensor:
    """`plain_gate` in two launches instead of twelve, or one where nothing is centred."""
    hidden, (n, c) = hidden.contiguous(), hidden.shape
    out = torch.empty(n, dtype=torch.float32, device=hidden.device)
    parts = torch.empty(CHUNKS, c, dtype=torch.float32, device=hidden.device)
    wide = triton.next_power_of_2(c)
    rows = max(1, 8192 // wide)
    with torch.cuda.device_of(hidden):
        if gate.centre:
            sizes = {"C": c, "CHUNK": triton.cdiv(n, CHUNKS), "BC": 32, "ROWS": 128}
            _sums[(CHUNKS, triton.cdiv(c, 32))](hidden, parts, n, **sizes)
        numbers = n, gate.scale, gate.slope
        _gate[(triton.cdiv(n, rows),)](
            hidden, parts, gate.key.to(hidden), out, *numbers, C=c, BC=wide, ROWS=rows, K=CHUNKS, CENTRE=gate.centre
        )
    return out


@triton.jit
def _sums(x, parts, n, C: tl.constexpr, CHUNK: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr):
    """Of CHUNK rows of x [n,C], for BC of the columns."""
    k, channel = tl.program_id(0), tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros([BC], tl.float32)
    for done in range(0, CHUNK, ROWS):
        row = k * CHUNK + done + tl.arange(0, ROWS)
        mask = ((row < n) & (row < (k + 1) * CHUNK))[:, None] & (channel < C)[None, :]
        total += tl.sum(tl.load(x + row[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32), axis=0)
    tl.store(parts + k * C + channel, total, mask=channel < C)


@triton.jit
def _gate(x, parts, key, out, n, scale, slope, C: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr,
          CENTRE: tl.constexpr):  # fmt: skip
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BC)
    inside = channel < C
    mask = (row < n)[:, None] & inside[None, :]
    h = tl.load(x + row[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    if CENTRE:
        total = tl.zeros([BC], tl.float32)
        for k in range(K):
            total += tl.load(parts + k * C + channel, mask=inside, other=0.0)
        h = tl.where(mask, h - (total / n)[None, :], 0.0)
    length = tl.maximum(tl.sqrt(tl.sum(h * h, axis=1)), 1e-8)
    cosine = tl.sum(h * tl.load(key + channel, mask=inside, other=0.0).to(tl.float32)[None, :], axis=1) / length
    tl.store(out + row, scale * tl.minimum(tl.maximum(slope * cosine, 0.0), 1.0), mask=row < n)
