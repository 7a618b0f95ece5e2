"""Convolutions whose filters lie as oneDNN multiplies them, for a CPU.

torch's convolution puts the filters in that order anew at every call. For a deep layer, many filters over few pixels,
that takes longer than the products. The functions are those by which torch's own compiler keeps filters so; their
names begin with an underscore, so `runs` tries them. Results are the convolution's, rounding aside.
"""

from functools import cache

import torch
from torch import Tensor, nn


class Packed:
    """The forward of one layer, [B,C,H,W] -> [B,K,H,W] channels-last. Where it cannot serve the layer's own does.

    The filters are kept, in the order that the first call wants, and do not follow later changes of the weights; they
    take the layer's memory once more.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer, self.plain, self.dtype = layer, layer.forward, layer.weight.dtype
        self.filters: Tensor | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "filters": None}  # what oneDNN laid out cannot be copied

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if torch.is_grad_enabled() or not x.dtype == layer.weight.dtype == self.dtype or layer.padding_mode != "zeros":
            return self.plain(x)
        geometry = layer.padding, layer.stride, layer.dilation, layer.groups
        if self.filters is None:
            with torch.inference_mode(False):
                weight = layer.weight.detach()
                self.filters = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, self.filters, layer.bias, *geometry, "none", [], "")


@cache
def runs(dtype: torch.dtype) -> bool:
    """Whether this torch has these functions, and they compute a convolution."""
    with torch.device("meta"):
        layer = nn.Conv2d(16, 32, 3, padding=1, dtype=dtype)
    draw = torch.Generator().manual_seed(0)  # torch's own stream is its user's
    layer.load_state_dict(
        {name: torch.randn(p.shape, generator=draw) for name, p in layer.named_parameters()}, assign=True
    )
    x = torch.randn(1, 16, 8, 8, generator=draw).to(dtype)
    layer.to(dtype)
    with torch.inference_mode():
        try:
            ours, plain = Packed(layer)(x).float(), layer(x).float()
            return bool((ours - plain).abs().max() <= 8 * torch.finfo(dtype).eps * plain.abs().max())
        except (RuntimeError, AttributeError, TypeError):  # a torch without oneDNN, or with other functions
            return False
