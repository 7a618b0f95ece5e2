"""A timestep as the UNet's layers are told it."""

import math

import torch
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Timesteps [B] -> [B,dim] float32: cosines, then sines, of dim/2 frequencies from 1 down to 1/10000."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * frequencies  # [B, dim/2]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbed(nn.Sequential):
    """Timesteps [B] -> [B,4c]. With a guidance scale beside each, [B,2], for a model that was distilled with guidance.

    That one's embedding is of Luo et al., arXiv:2310.04378, as their code has it: sines, then cosines, of 1000 (w - 1).
    """

    def __init__(self, c: int, guidance_dim: int) -> None:
        super().__init__(nn.Linear(c, 4 * c), nn.SiLU(), nn.Linear(4 * c, 4 * c))
        self.cond_proj = nn.Linear(guidance_dim, c, bias=False) if guidance_dim else None

    def forward(self, t: Tensor) -> Tensor:
        first, silu, second = (self[i] for i in range(3))
        kind = first.weight.dtype
        emb = timestep_embedding(t if t.ndim == 1 else t[:, 0], first.in_features).to(kind)
        if self.cond_proj is not None:
            half = self.cond_proj.in_features // 2
            steps = torch.arange(half, dtype=torch.float32, device=t.device) / (half - 1)
            angles = 1000 * (t[:, 1:].float() - 1) * torch.exp(-math.log(10000) * steps)  # [B, half]
            emb = emb + self.cond_proj(torch.cat([angles.sin(), angles.cos()], dim=-1).to(kind))
        return second(silu(first(emb)))
