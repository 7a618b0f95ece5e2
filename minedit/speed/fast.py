"""A loaded model -> the same model, made for speed on its device.

On a CPU, cpu.py says what it is good at. In float32 3×3 convolutions take fewer products (winograd.py); where bfloat16
is multiplied in hardware its filters are laid out once (packed.py), and so are float32's beside AMX. benchmarks/unet.py
measures what that gains. The dtype stays the one asked for: bfloat16 changes pictures by more than rounding float32
does, so `said` only says where it is faster. On a GPU the model is laid out otherwise, its layers are fused (layers.py)
and its steps replayed (graphs.py); benchmarks/gpu.py measures that. Names, shapes and the state dict stay the
checkpoint's; results differ from the plain model's by rounding alone.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from minedit.speed import cpu, packed
from minedit.speed.graphs import Recorded, Repeated, searched
from minedit.speed.winograd import Winograd, suits
from minedit.stack.model import Model
from minedit.stack.unet import CrossAttention


def fast(model: Model) -> Model:
    """`model` with its modules changed in place; as it was where nothing is known to help.

    Merge LoRAs before: `lora.merge` refuses a fast model.
    """
    change = _change(model)
    if model.fast or change is None:
        return model
    parts = model.unet, model.vae
    for module in parts:
        change(module)
    if model.device.type == "cuda":
        fuse = fusing(model.device)
        model.unet.unfused = fuse is None
        for module in parts if fuse else ():
            fuse(module)
        model.unet.forward = Recorded(model.unet.forward)
        model.text.forward = Repeated(model.text.forward)
        for name in ("encode", "decode"):
            setattr(model.vae, name, partial(_searched, getattr(model.vae, name)))
    model.unet.fast = True
    return model


def alike(model: Model, module: nn.Module) -> nn.Module:
    """A module that runs beside a model: where that was made fast, laid out as its layers; none are fused."""
    change = _change(model)
    if model.fast and change is not None:
        change(module)
    return module


def _change(model: Model) -> Callable[[nn.Module], None] | None:
    """What to change in the modules of a model; None for nothing."""
    return way(model.dtype, cpu.this()) if model.device.type == "cpu" else lay_out


def way(dtype: torch.dtype, here: cpu.CPU) -> Callable[[nn.Module], None] | None:
    """What to change in a module on such a CPU; None for nothing."""
    if dtype == torch.float32 and not here.tiles:
        return spare_products
    suits = here.tiles if dtype == torch.float32 else here.bfloat16 and dtype == torch.bfloat16
    return pack if suits and packed.runs(dtype) else None


def said(model: Model, here: cpu.CPU | None = None) -> str:
    """What `fast` did with it; on a CPU, here, also in which dtype it would be faster."""
    if model.device.type != "cpu":
        return "made for speed" + ", with torch's own layers, as Triton does not run here" * model.unet.unfused
    here, name = here or cpu.this(), str(model.dtype).removeprefix("torch.")
    other = ""
    if model.dtype == torch.float32 and here.bfloat16:
        other = f"; --dtype bfloat16 is faster here ({here.bfloat16})"
    elif model.dtype == torch.bfloat16 and not here.bfloat16:
        other = "; --dtype float32 is faster here"
    change = way(model.dtype, here)
    if change is None:
        return f"--fast knows nothing for {name} on this CPU{other}"
    what = "fewer products in 3×3 convolutions" if change is spare_products else "filters laid out once"
    return f"made for speed: {name}, {what}{other}"


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


def pack(module: nn.Module) -> None:
    """Filters laid out once for each convolution."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.forward = packed.Packed(layer)


def lay_out(module: nn.Module) -> None:
    """Channels-last, and in each self-attention one matrix [3C,C], of which to_q, to_k and to_v are the thirds."""
    module.to(memory_format=torch.channels_last)
    for layer in module.modules():
        if isinstance(layer, CrossAttention) and layer.site.kind == "self":
            parts = (layer.to_q, layer.to_k, layer.to_v)
            layer.to_qkv = torch.cat([part.weight.detach() for part in parts])
            for part, weight in zip(parts, layer.to_qkv.chunk(3), strict=True):
                part.weight = nn.Parameter(weight, requires_grad=False)
