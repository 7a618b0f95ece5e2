"""The UNet's blocks: what they are made of, how many parameters they have, how long each takes."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from minedit.attention.rules import Attn
from minedit.attention.tap import root
from minedit.record.names import catalogue
from minedit.report.gather import block_names
from minedit.sampling import ddim
from minedit.stack.model import Model
from minedit.stack.unet import Downsample, ResBlock, SpatialTransformer, Upsample

TIMED = 3  # runs, after one to warm up
BATCH = 4  # rows of the UNet while a pair is drawn


def blocks(sd: Model, sides: tuple[int, int]) -> list[dict]:
    """In the order in which they run: name, shape, params, ms and layers of each; `out` last."""
    unet, known = root(sd.unet), catalogue(sd.config, sides)
    parts = {name: unet.get_submodule(name) for name in [*block_names(sd), "out"]}
    times = timed(sd, parts, sides)
    found = []
    for name, part in parts.items():
        shape = known["out.2.out" if name == "out" else f"{name}.out"].shape
        layers = [
            {"name": f"{name}.{at}", "what": _said(layer), "params": count(layer)}
            for at, layer in part.named_children()
        ]
        sites = [site.name for site in sd.unet.sites if site.kind == "cross" and site.name.startswith(f"{name}.")]
        each = {"name": name, "shape": list(shape), "params": count(part), "ms": round(times[name], 3)}
        found.append(each | {"layers": layers, "sites": sites})
    return found


def count(part: nn.Module) -> int:
    return sum(p.numel() for p in part.parameters())


@torch.inference_mode()
def timed(sd: Model, parts: dict[str, nn.Module], sides: tuple[int, int]) -> dict[str, float]:
    """The median milliseconds of each part, for BATCH rows, launched one by one on a GPU too."""
    unet, cfg = root(sd.unet), sd.config.unet
    x = ddim.noise(0, *sides).to(sd.device, sd.dtype)
    x = x.repeat(BATCH, cfg.in_channels // x.shape[1], 1, 1)
    shape = (BATCH, 2) if cfg.guidance_dim else (BATCH,)
    t = torch.full(shape, 500, device=sd.device)
    text = torch.zeros(BATCH, sd.config.text.context_length, cfg.context_dim, device=sd.device, dtype=sd.dtype)
    found: dict[str, list[float]] = {name: [] for name in parts}

    def now() -> float:
        if sd.device.type == "cuda":
            torch.cuda.synchronize(sd.device)
        return time.perf_counter()

    began: list[float] = []
    hooks = []
    for name, part in parts.items():
        hooks.append(part.register_forward_pre_hook(lambda *_: began.append(now())))
        hooks.append(part.register_forward_hook(lambda *_, name=name: found[name].append(now() - began.pop())))
    try:
        for _ in range(TIMED + 1):
            type(unet).forward(unet, x, t, text, Attn(attend=sd.attend))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: 1000 * statistics.median(each[1:]) for name, each in found.items()}


def _said(layer: nn.Module) -> str:
    match layer:
        case ResBlock():
            return "residual block: two 3×3 convolutions, told the time"
        case SpatialTransformer():
            return "transformer: self-attention, cross-attention to the text, feed-forward"
        case Downsample():
            return "half the side: a 3×3 convolution of stride 2"
        case Upsample():
            return "twice the side: pixels doubled, then a 3×3 convolution"
        case nn.Conv2d():
            return f"convolution, {layer.in_channels} → {layer.out_channels} channels"
        case nn.GroupNorm():
            return "normalisation over groups of channels"
    return type(layer).__name__
