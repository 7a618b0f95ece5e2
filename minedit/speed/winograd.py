"""3×3 convolutions with fewer products, for a CPU (Winograd; Lavin & Gray, arXiv:1509.09308).

F(m×m, 3×3) makes m×m output pixels of (m+2)×(m+2) input pixels with (m+2)² products for each pair of channels, where a
convolution has 9·m²: 2.25 times fewer for m = 2, 4 times for m = 4. A tile d becomes Bᵀ·d·B and a filter g, once,
G·g·Gᵀ; their products are summed over the channels, and Aᵀ·(sum)·A is the output. With the Kronecker products B⊗B and
A⊗A all that is matrix products. P tiles, C channels in, K out.
"""

import math
import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# m: Bᵀ, G, Aᵀ. Those of m = 4 interpolate at 0, ±1, ±2 and infinity, those of m = 2 at 0, ±1 and infinity.
TRANSFORMS = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: (
        [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
        [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
         [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}  # fmt: skip
NARROW = 128  # channels below which the transforms cost what the products save
SMALL, LARGE = 8 * 8, 32 * 32  # pixels of a map: fewer are left to the layer, more are done by tiles of 4
TILES = 256  # at once: enough for fast products, few enough for the caches
_kept = threading.local()


class Winograd:
    """The forward of one layer, [B,C,H,W] -> [B,K,H,W] channels-last. Where it cannot serve the layer's own does.

    The filters it needs are kept from the first call on, and do not follow later changes of the weights. They take 1.8
    times the layer's memory for m = 2, which maps below 32 × 32 pixels use, and 4 times for m = 4. Deep layers, which
    have small maps, have most of the weights.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer, self.plain = layer, layer.forward
        self.filters: dict[int, Tensor] = {}  # m: [(m+2)², K, C]

    def __call__(self, x: Tensor) -> Tensor:
        pixels = x.shape[2] * x.shape[3]
        if pixels < SMALL or torch.is_grad_enabled() or self.layer.padding_mode != "zeros":
            return self.plain(x)
        m = 4 if pixels >= LARGE else 2
        if m not in self.filters:
            self.filters[m] = filters(self.layer.weight, m)
        return convolve(x, self.filters[m], self.layer.bias, m)


def suits(layer: nn.Module) -> bool:
    """Whether `Winograd` serves it: a 3×3 convolution in steps of one pixel, wide, in float32, with bias."""
    if not isinstance(layer, nn.Conv2d) or layer.weight.dtype != torch.float32 or layer.bias is None:
        return False
    geometry = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
    return geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and min(layer.weight.shape[:2]) >= NARROW


def filters(weight: Tensor, m: int) -> Tensor:
    """G·g·Gᵀ of each 3×3 filter: [K,C,3,3] -> [(m+2)²,K,C]."""
    return (_twice(TRANSFORMS[m][1]) @ weight.detach().flatten(2).flatten(0, 1).T).unflatten(1, weight.shape[:2])


def convolve(x: Tensor, filters: Tensor, bias: Tensor, m: int) -> Tensor:
    """What F.conv2d(x, weight, bias, padding=1) is, for filters(weight, m): [B,C,H,W] -> [B,K,H,W] channels-last."""
    (b, _, h, w), k = x.shape, filters.shape[1]
    down, across = -(-h // m), -(-w // m)  # tiles; the last may reach over the edge
    images = max(1, TILES // (down * across))  # at once; of a large one, rows of tiles
    rows = down if images > 1 else max(1, TILES // across)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, m * across + 1 - w, 1, m * down + 1 - h))
    out = x.new_empty(b, m * down, m * across, k)
    for i in range(0, b, images):
        for top in range(0, down, rows):
            end = min(top + rows, down)
            _strip(x[i : i + images, m * top : m * end + 2], filters, bias, out[i : i + images, m * top : m * end])
    return out[:, :h, :w].permute(0, 3, 1, 2)


def _strip(x: Tensor, filters: Tensor, bias: Tensor, out: Tensor) -> None:
    """Tiles of whole rows at once: pixels [n,H+2,W+2,C], the border among them -> out [n,H,W,K]."""
    (n, h, w, k), c = out.shape, x.shape[3]
    side = math.isqrt(len(filters))
    m = side - 2
    into, back = (_twice(TRANSFORMS[m][i]) for i in (0, 2))  # [side², side²], [m², side²]
    grid = n, h // m, w // m
    p = math.prod(grid)
    one, two = _buffers(side * side * p * max(c, k))
    whole, row, pixel, channel = x.stride()
    tiles = x.as_strided((side, side, *grid, c), (row, pixel, whole, m * row, m * pixel, channel), x.storage_offset())
    d = one[: tiles.numel()].view(tiles.shape).copy_(tiles).view(side * side, -1)
    d = torch.mm(into, d, out=two[: d.numel()].view_as(d)).view(-1, p, c)
    y = torch.bmm(d, filters.mT, out=one[: side * side * p * k].view(-1, p, k)).view(side * side, -1)
    y = torch.mm(back, y, out=two[: out.numel()].view(m * m, -1)).view(m, m, *grid, k)
    whole, row, pixel, channel = out.stride()
    here = out.as_strided(y.shape, (row, pixel, whole, m * row, m * pixel, channel), out.storage_offset())
    torch.add(y, bias, out=here)


def _twice(matrix: list[list[float]]) -> Tensor:
    a = torch.tensor(matrix, dtype=torch.float32)
    return torch.kron(a, a)


def _buffers(numbers: int) -> list[Tensor]:
    """Two pieces of this thread's memory, which stay: fresh pages would cost as much as a transform."""
    if getattr(_kept, "size", 0) < numbers:
        with torch.inference_mode(False):  # or they could not be written outside that mode
            _kept.size, _kept.buffers = numbers, [torch.empty(numbers, dtype=torch.float32) for _ in range(2)]
    return _kept.buffers
