"""A module that learns by a low-rank change of its matrices and filters (Hu et al., 2021, arXiv:2106.09685).

W' = W + up · down, W frozen. Vectors, embeddings and what low rank would not make smaller learn whole.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """W [out,in,...] → W + scale · up [out,rank] · down [rank,in·...]; nothing is added at first.

    `down` has rows of about length 1. With the scale a step of `up` moves W' about as far as one of W's own would, and
    `down` is small enough to turn within some hundred steps towards what there is to learn.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.scale = (columns / rank) ** 0.5
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * self.up @ self.down).view_as(weight)


def lower(module: nn.Module, rank: int, whole: tuple[str, ...] = ()) -> nn.Module:
    """`module`, whose linear layers and convolutions now learn by LowRank, those named in `whole` aside."""
    layers = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for name, layer in layers:
        rows, columns = layer.weight.flatten(1).shape
        if name not in whole and rank * (rows + columns) < rows * columns:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
            layer.parametrizations.weight.original.requires_grad_(False)
    return module


def factors(name: str) -> bool:
    """Whether the parameter is a factor of a low-rank change: what Muon is for."""
    return name.endswith((".parametrizations.weight.0.up", ".parametrizations.weight.0.down"))


def learnt_by(module: nn.Module) -> dict[str, Tensor]:
    """What `module` learned, by the names of its parameters: `NAME.up` and `NAME.down`, or NAME where it is whole."""
    found = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad and not factors(name)}
    for name, change in ((name, m) for name, m in module.named_modules() if isinstance(m, LowRank)):
        weight = name.removesuffix(".parametrizations.weight.0") + ".weight"
        found |= {f"{weight}.up": change.scale * change.up.detach(), f"{weight}.down": change.down.detach()}
    return found
