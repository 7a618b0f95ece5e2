"""A loaded model -> the same model, laid out for speed on a GPU. benchmarks/gpu.py measures what it gains.

On a CPU nothing that was tried made a step of SD-v1.4 faster, so there the model stays as it is: channels-last with
linear layers packed for oneDNN took 1.1 x the time, those layers alone, or one product for q, k and v, gained less than
the noise.
Names, shapes and the state dict stay the checkpoint's; results differ from the plain model's by rounding alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from minedit.graphs import Recorded
from minedit.model import Model
from minedit.unet import CrossAttention


def fast(model: Model) -> Model:
    """The modules of `model` changed in place, in a Model that says so; on a CPU `model` itself.

    Convolutions read channels-last, self-attention multiplies once for q, k and v, and on CUDA the UNet's steps are
    replayed (graphs.py). Merge LoRAs before: `lora.merge` refuses a fast model.
    """
    if model.fast or model.device.type == "cpu":
        return model
    lay_out(model.unet)
    lay_out(model.vae)
    if model.device.type == "cuda":
        model.unet.forward = Recorded(model.unet.forward)
    return replace(model, fast=True)


def lay_out(module: nn.Module) -> None:
    """Channels-last, and in each self-attention one matrix [3C,C], of which to_q, to_k and to_v are the thirds."""
    module.to(memory_format=torch.channels_last)
    for layer in module.modules():
        if isinstance(layer, CrossAttention) and layer.site.kind == "self":
            parts = (layer.to_q, layer.to_k, layer.to_v)
            layer.to_qkv = torch.cat([part.weight.detach() for part in parts])
            for part, weight in zip(parts, layer.to_qkv.chunk(3), strict=True):
                part.weight = nn.Parameter(weight, requires_grad=False)
