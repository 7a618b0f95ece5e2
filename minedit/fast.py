"""A loaded model -> the same model, laid out for speed. benchmarks/unet.py and gpu.py measure what it gains.

Names, shapes and the state dict stay the checkpoint's; results differ from the plain model's by rounding alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from minedit.graphs import Recorded
from minedit.model import Model
from minedit.unet import CrossAttention


def fast(model: Model) -> Model:
    """The modules of `model` changed in place, in a Model that says so.

    Convolutions read channels-last, which spares the reordering before and after each. On a CPU the UNet's linear
    layers keep their float32 weights a second time, as oneDNN reads them. Elsewhere self-attention multiplies once for
    q, k and v, and on CUDA the UNet's steps are replayed (graphs.py). Merge LoRAs before: `lora.merge` refuses a fast
    model.
    """
    if model.fast:
        return model
    for module in (model.unet, model.vae):
        module.to(memory_format=torch.channels_last)
    if model.device.type != "cpu":
        fuse(model.unet)
        if model.device.type == "cuda":
            model.unet.forward = Recorded(model.unet.forward)
    elif model.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        pack(model.unet)
    return replace(model, fast=True)


def fuse(unet: nn.Module) -> None:
    """In each self-attention one matrix [3C,C], whose thirds are the weights of to_q, to_k, to_v: the same memory."""
    for layer in unet.modules():
        if isinstance(layer, CrossAttention) and layer.site.kind == "self":
            parts = (layer.to_q, layer.to_k, layer.to_v)
            layer.to_qkv = torch.cat([part.weight.detach() for part in parts])
            for part, weight in zip(parts, layer.to_qkv.chunk(3), strict=True):
                part.weight = nn.Parameter(weight, requires_grad=False)


class PackedLinear(nn.Module):
    """nn.Linear on a CPU, its weights arranged for oneDNN once: torch's own calls MKL, slow on other makers' chips."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias  # for the state dict
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), ROWS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


ROWS = 1024  # that oneDNN arranges for; other numbers work as well


def pack(unet: nn.Module) -> None:
    """Each nn.Linear of the UNet replaced by a PackedLinear of the same name."""
    for parent in list(unet.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear:
                setattr(parent, name, PackedLinear(layer))
