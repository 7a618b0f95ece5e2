"""GroupNorm with what is added before it and SiLU behind it, as Triton kernels for maps that lie channels-last.

torch's GroupNorm copies a channels-last map to another layout, and the convolution behind it copies it back. As in
fused.py: sums in float32, no atomics, no gradients.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

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
        columns = across(c)
        sizes = {"K": k, "BC": columns, "ROWS": 4096 // columns, "SILU": silu, "num_warps": 4}
        _apply[(triton.cdiv(pixels * columns, 4096), triton.cdiv(c, columns), b)](
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


def across(c: int) -> int:
    """Channels of an elementwise tile: whole lines of memory, and few beyond the last of C."""
    return min(128, max(16, c & -c)) if c & -c >= 16 else 64
