"""Noise as what looks at a run, or changes it, leaves it (record/)."""

import torch
from torch import Tensor

from minedit.attention.tap import Tap
from minedit.sampling import ddim


def tapped(tap: Tap, latents: Tensor, eps: Tensor, t: int) -> Tensor:
    """The guided noise as a tap leaves it, which may also change the clean latents that it implies."""
    eps = tap.value("eps", eps)
    x0 = ddim.predict_x0(latents, eps, t)
    changed = tap.value("x0", x0)
    if changed is x0:
        return eps
    moved = (changed != x0).flatten(1).any(1).view(-1, 1, 1, 1)
    return torch.where(moved, ddim.predict_eps(latents, changed, t), eps)
