"""A loaded model -> the same model, made for speed on its device.

On a CPU 3×3 convolutions take fewer products (winograd.py), in float32; benchmarks/unet.py measures what it gains. On a
GPU the model is laid out otherwise, its layers are fused (layers.py) and its steps replayed (graphs.py);
benchmarks/gpu.py measures that. Names, shapes and the state dict stay the checkpoint's; results differ from the plain
model's by rounding alone.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from minedit.speed.graphs import Recorded, searched
from minedit.speed.winograd import Winograd, suits
from minedit.stack.model import Model
from minedit.stack.unet import CrossAttention


def fast(model: Model) -> Model:
    """`model` with its modules changed in place; on a CPU in half precision, where nothing is known to help, as it was.

    Merge LoRAs before: `lora.merge` refuses a fast model.
    """
    if model.fast or (model.device.type == "cpu" and model.dtype != torch.float32):
        return model
    parts = model.unet, model.vae
    for module in parts:
        (spare_products if model.device.type == "cpu" else lay_out)(module)
    if model.device.type == "cuda":
        fuse = fusing(model.device)
        model.unet.unfused = fuse is None
        for module in parts if fuse else ():
            fuse(module)
        model.unet.forward = Recorded(model.unet.forward)
        for name in ("encode", "decode"):
            setattr(model.vae, name, partial(_searched, getattr(model.vae, name)))
    model.unet.fast = True
    return model


def fusing(device: torch.device) -> Callable[..., None] | None:
    """`layers.fuse`; None where Triton is not installed or does not run."""
    try:
        from minedit.speed import layers
    except Exception:  # no package triton, or one that does not load
        return None
    return layers.fuse if layers.runs(device) else None


def _searched(work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with searched():
        return work(x)


def spare_products(module: nn.Module) -> None:
    """Winograd's forward for each convolution that it suits. Channels-last, or one product for q, k and v: no gain."""
    for layer in filter(suits, module.modules()):
        layer.forward = Winograd(layer)


def lay_out(module: nn.Module) -> None:
    """Channels-last, and in each self-attention one matrix [3C,C], of which to_q, to_k and to_v are the thirds."""
    module.to(memory_format=torch.channels_last)
    for layer in module.modules():
        if isinstance(layer, CrossAttention) and layer.site.kind == "self":
            parts = (layer.to_q, layer.to_k, layer.to_v)
            layer.to_qkv = torch.cat([part.weight.detach() for part in parts])
            for part, weight in zip(parts, layer.to_qkv.chunk(3), strict=True):
                part.weight = nn.Parameter(weight, requires_grad=False)
