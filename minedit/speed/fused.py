"""What torch runs as passes of their own, in one or two: Triton kernels for activations that lie channels-last.

`group_norm` (with what is added before it and SiLU behind it), `add` (two branches and a bias), `add_layer_norm`,
`geglu` and `gate` (AdapEdit's weights of pixels); each has beside it, `plain_...`, what it computes, in torch. Sums are
in float32 whatever the dtype, without atomics, so that a result repeats bit for bit. No gradients.
torch's GroupNorm copies a channels-last map to another layout, and the convolution behind it copies it back.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from minedit.attention.inside import Gate

IN_REGISTERS = 32768  # numbers of a group, padded, that one program holds: such maps are read once
TILE = 16384  # numbers, padded, of which one program takes the moments at a time
CHUNKS = 16  # pieces of a map, each with its own moments; so few are joined by every program that needs them,
MANY, LARGE = 128, 16384  # so many, of maps of more than LARGE pixels, by a launch of its own


def plain_group_norm(x: Tensor, norm: nn.GroupNorm, silu: bool = False, shift: Tensor | None = None) -> Tensor:
    """x [B,C,h,w], shift [B or 1,C]: silu(norm(x + shift))."""
    x = norm(x if shift is None else x + shift[:, :, None, None])
    return F.silu(x) if silu else x


def group_norm(x: Tensor, norm: nn.GroupNorm, silu: bool = False, shift: Tensor | None = None) -> Tensor:
    """`plain_group_norm`, channels-last: one launch for small maps, two for larger ones, three for a VAE's largest."""
    x = x.contiguous(memory_format=torch.channels_last)
    (b, c), pixels, groups = x.shape[:2], x.shape[2] * x.shape[3], norm.num_groups
    w, out = c // groups, torch.empty_like(x)
    wide = triton.next_power_of_2(w)
    row = 0 if shift is None or len(shift) == 1 else shift.stride(0)
    fixed = {"G": groups, "W": w, "SHIFT": shift is not None}
    shift = x if shift is None else shift
    given = (x, out, norm.weight, norm.bias, shift, row, pixels, norm.eps)
    with torch.cuda.device_of(x):
        if (size := triton.next_power_of_2(pixels) * wide) <= IN_REGISTERS:
            warps = 16 if size > 8192 else 8 if size > 2048 else 4
            _small[(groups, b)](*given, **fixed, BP=size // wide, BW=wide, SILU=silu, num_warps=warps)
            return out
        k = MANY if pixels > LARGE else CHUNKS
        at_once = min(max(1, 64 // wide), triton.next_power_of_2(groups))  # groups: rows of about 64 channels
        rows = TILE // (at_once * wide)
        chunk = triton.cdiv(triton.cdiv(pixels, k), rows) * rows
        moments = torch.empty(2, b, k, groups, dtype=torch.float32, device=x.device)
        sizes = {"K": k, "CHUNK": chunk, "BG": at_once, "BW": wide, "ROWS": rows, "num_warps": 8}
        _moments[(k, triton.cdiv(groups, at_once), b)](x, moments, shift, row, pixels, **fixed, **sizes)
        if k == MANY:
            parts, moments, k = moments, torch.empty(2, b, 1, groups, dtype=torch.float32, device=x.device), 1
            _join[(groups, b)](parts, moments, pixels, chunk, G=groups, W=w, K=MANY, num_warps=4)
        across = _across(c)
        sizes = {"K": k, "BC": across, "ROWS": 4096 // across, "SILU": silu, "num_warps": 4}
        _apply[(triton.cdiv(pixels * across, 4096), triton.cdiv(c, across), b)](
            *given, moments, chunk, **fixed, **sizes
        )
    return out


@triton.jit
def _small(x, out, weight, bias, shift, shift_row, pixels, eps, G: tl.constexpr, W: tl.constexpr, SHIFT: tl.constexpr,
           BP: tl.constexpr, BW: tl.constexpr, SILU: tl.constexpr):  # fmt: skip
    """All pixels [BP] and channels [BW] of one group of one row of the batch."""
    group, b = tl.program_id(0), tl.program_id(1)
    pixel, channel = tl.arange(0, BP), group * W + tl.arange(0, BW)
    inside = tl.arange(0, BW) < W
    mask = (pixel < pixels)[:, None] & inside[None, :]
    here = b.to(tl.int64) * pixels * (G * W)
    at = pixel[:, None] * (G * W) + channel[None, :]
    h = tl.load(x + here + at, mask=mask, other=0.0).to(tl.float32)
    if SHIFT:
        h += tl.load(shift + b * shift_row + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
        h = tl.where(mask, h, 0.0)
    n = pixels * W * 1.0
    h = tl.where(mask, h - tl.sum(tl.sum(h, axis=1), axis=0) / n, 0.0)
    scale = tl.rsqrt(tl.sum(tl.sum(h * h, axis=1), axis=0) / n + eps)
    scale *= tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    y = h * scale[None, :] + tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    if SILU:
        y *= tl.sigmoid(y)
    tl.store(out + here + at, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _moments(x, moments, shift, shift_row, pixels, G: tl.constexpr, W: tl.constexpr, SHIFT: tl.constexpr,
             K: tl.constexpr, CHUNK: tl.constexpr, BG: tl.constexpr, BW: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Of BG groups and a chunk of the pixels: means, and sums of squared distances to them, [2,B,K,G]. Chan, 1979."""
    k, b = tl.program_id(0), tl.program_id(2)
    group, inner = tl.program_id(1) * BG + tl.arange(0, BG), tl.arange(0, BW)
    channel = (group * W)[:, None] + inner[None, :]  # [BG, BW]
    inside = (group < G)[:, None] & (inner < W)[None, :]
    here = b.to(tl.int64) * pixels * (G * W)
    added = tl.zeros([BG, BW], tl.float32)
    if SHIFT:
        added = tl.load(shift + b * shift_row + channel, mask=inside, other=0.0).to(tl.float32)
    mean, square = tl.zeros([BG], tl.float32), tl.zeros([BG], tl.float32)
    for done in range(0, CHUNK, ROWS):
        pixel = k * CHUNK + done + tl.arange(0, ROWS)
        mask = (pixel < pixels)[:, None, None] & inside[None, :, :]
        at = (pixel * (G * W))[:, None, None] + channel[None, :, :]
        h = tl.load(x + here + at, mask=mask, other=0.0).to(tl.float32)
        h = tl.where(mask, h + added[None, :, :], 0.0)
        new = tl.maximum(tl.minimum(pixels - k * CHUNK - done, ROWS), 0).to(tl.float32) * W
        both = tl.maximum(new + done * W, 1.0)  # a tile beyond the map adds nothing
        middle = tl.sum(tl.sum(h, axis=2), axis=0) / tl.maximum(new, 1.0)  # [BG]
        h = tl.where(mask, h - middle[None, :, None], 0.0)
        step = middle - mean
        square += tl.sum(tl.sum(h * h, axis=2), axis=0) + step * step * (new * (both - new) / both)
        mean += step * (new / both)
    at = (b * K + k) * G + group
    tl.store(moments + at, mean, mask=group < G)
    tl.store(moments + tl.num_programs(2) * (K * G) + at, square, mask=group < G)


@triton.jit
def _joined(moments, b, rows, group, pixels, chunk, G: tl.constexpr, W: tl.constexpr, K: tl.constexpr):
    """Means and sums of squares of the `group`s [N], from those of K chunks."""
    k = tl.arange(0, K)
    at = ((b * K + k) * G)[:, None] + group[None, :]
    means, squares = tl.load(moments + at), tl.load(moments + rows * (K * G) + at)  # [K, N]
    n = (tl.maximum(tl.minimum(pixels - k * chunk, chunk), 0) * W).to(tl.float32)[:, None]
    mean = tl.sum(means * n, axis=0) / (pixels * W * 1.0)
    far = means - mean[None, :]
    return mean, tl.sum(squares + n * far * far, axis=0)


@triton.jit
def _join(parts, moments, pixels, chunk, G: tl.constexpr, W: tl.constexpr, K: tl.constexpr):
    group, b, rows = tl.program_id(0) + tl.arange(0, 1), tl.program_id(1), tl.num_programs(1)
    mean, square = _joined(parts, b, rows, group, pixels, chunk, G, W, K)
    tl.store(moments + b * G + group, mean)
    tl.store(moments + rows * G + b * G + group, square)


@triton.jit
def _apply(x, out, weight, bias, shift, shift_row, pixels, eps, moments, chunk, G: tl.constexpr, W: tl.constexpr,
           SHIFT: tl.constexpr, K: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr):  # fmt: skip
    """ROWS pixels and BC channels."""
    b, rows = tl.program_id(2), tl.num_programs(2)
    pixel, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channel < G * W
    mask = (pixel < pixels)[:, None] & inside[None, :]
    here = b.to(tl.int64) * pixels * (G * W)
    at = (pixel * (G * W))[:, None] + channel[None, :]
    h = tl.load(x + here + at, mask=mask, other=0.0).to(tl.float32)
    group = tl.minimum(channel // W, G - 1)
    if K == 1:
        centre, square = tl.load(moments + b * G + group), tl.load(moments + rows * G + b * G + group)
    else:
        centre, square = _joined(moments, b, rows, group, pixels, chunk, G, W, K)
    if SHIFT:
        centre -= tl.load(shift + b * shift_row + channel, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(square / (pixels * W * 1.0) + eps)
    scale *= tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    y = (h - centre[None, :]) * scale[None, :]
    y += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    if SILU:
        y *= tl.sigmoid(y)
    tl.store(out + here + at, y.to(out.dtype.element_ty), mask=mask)


def plain_add(x: Tensor, h: Tensor, bias: Tensor) -> Tensor:
    """x + h + bias for maps [B,C,h,w] and a bias [C]."""
    return x + (h + bias[:, None, None].to(h))


def add(x: Tensor, h: Tensor, bias: Tensor) -> Tensor:
    """`plain_add`, channels-last."""
    x, h = (each.contiguous(memory_format=torch.channels_last) for each in (x, h))
    out, c = torch.empty_like(x), x.shape[1]
    m, across = x.numel() // c, _across(c)
    grid = triton.cdiv(m * across, 4096), triton.cdiv(c, across)
    with torch.cuda.device_of(x):
        _add[grid](x, h, bias, out, m, C=c, BC=across, ROWS=4096 // across, num_warps=4)
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


def _across(c: int) -> int:
    """Channels of an elementwise tile: whole lines of memory, and few beyond the last of C."""
    return min(128, max(16, c & -c)) if c & -c >= 16 else 64
