"""The feed-forward layers of a transformer block."""

import torch.nn.functional as F
from torch import Tensor, nn


class GEGLU(nn.Module):
    """Linear, half of it gated by GELU of the other half: [B,N,C] -> [B,N,4C]. Shazeer, arXiv:2002.05202."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 8 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """[B,N,C] -> [B,N,C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
