"""A module that learns by a low-rank change of its matrices and filters (Hu et al., 2021, arXiv:2106.09685).

W' = W + up · down, W frozen. Vectors, embeddings and what low rank would not make smaller learn whole.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """W [out,in,...] → W + up [out,rank] · down [rank,in·...]; nothing is added at first.

    `down` is drawn so that a step of the size of W's own moves W' about as far as it would move W.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.down = nn.Parameter(torch.randn(rank, columns) / rank**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


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
    return {
        name.replace(".parametrizations.weight.0.", ".weight."): p.detach()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
