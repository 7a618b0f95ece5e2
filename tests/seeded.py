"""Random weights and inputs that depend on nothing but a name, so that golden files need hold outputs only."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor, nn


def normal(name: str, *shape: int) -> Tensor:
    """Standard normal float32, the same for the same name and shape, today and elsewhere."""
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(zlib.crc32(name.encode())))


def weight(name: str, *shape: int) -> Tensor:
    """A parameter that keeps activations of order 1: weights over the root of their fan-in, norms about 1, biases 0."""
    drawn = normal(name, *shape)
    if len(shape) >= 2:
        return drawn / (drawn[0].numel() ** 0.5 if "embedding" not in name else 2)
    return 1 + drawn / 5 if name.endswith("weight") else drawn / 10


@torch.no_grad()
def fill(module: nn.Module, rename: Callable[[str], str] = str) -> nn.Module:
    """`weight` for every parameter, by its name, renamed; returns the module, in eval mode."""
    for name, p in module.named_parameters():
        p.copy_(weight(rename(name), *p.shape))
    return module.eval()


def relative(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|b|; b is the oracle's."""
    if a.shape != b.shape:
        raise AssertionError(f"shape {tuple(a.shape)}, expected {tuple(b.shape)}")
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()
