"""What only the UNet can tell as it runs: what its layers see, and the parts of a Rule that are made from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Seen:
    """What a watched layer saw at this step."""

    hidden: Tensor  # [B,N,C] the layer-normed input of the layer: E_[V]
    columns: Tensor | None  # [B,N,T] float32, probabilities before any edit, mean over heads; None: not asked for

    def of(self, rows: Sequence[int]) -> Seen:
        """Of these rows, in this order."""
        rows = list(rows)
        return Seen(self.hidden[rows], None if self.columns is None else self.columns[rows])

    def placed(self, rows: Sequence[int], count: int) -> Seen:
        """Of a batch of `count` rows, of which these were computed; the others are 0."""
        columns = None if self.columns is None else spread(self.columns, rows, count)
        return Seen(spread(self.hidden, rows, count), columns)


@dataclass(frozen=True, eq=False)
class Gate:
    """AdapEdit's spatial weight λ_S·S_p (Eq. 9), which only the layer can compute: it alone knows E_[V]."""

    key: Tensor  # [C] E_k at this site, a unit vector
    scale: float  # λ_S
    slope: float  # λ_S[V]
    centre: bool  # take the mean over pixels from E_[V] first: hidden states share one large common direction

    def weights(self, hidden: Tensor) -> Tensor:
        """E_[V] [N,C] of the edited row -> [N] float32 in [0, scale]."""
        hidden = hidden.float()
        if self.centre:
            hidden = hidden - hidden.mean(dim=0)
        lengths = torch.linalg.vector_norm(hidden, dim=-1).clamp(min=1e-8)  # [N]
        with float32(hidden):
            cosine = hidden @ self.key.to(hidden) / lengths
        return self.scale * (self.slope * cosine).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Split:
    """MasaCtrl's foreground and background, which only the UNet can tell: by cross-attention of the step it is in.

    Of two rows: one whose pixels look for keys, the other has them. A row's map is the mean of what its watched layers
    saw, summed over some tokens, scaled to 0 ... 1; what reaches the threshold is foreground.
    """

    sites: tuple[str, ...]  # cross-attention watched with columns; those that run later in the step do not count
    rows: tuple[int, int]  # of the pixels, of the keys
    tokens: tuple[tuple[int, ...], tuple[int, ...]]  # of the pixels' row, of the keys'
    shape: tuple[int, int]  # height, width of the sites' maps
    to: tuple[int, int]  # of the layer's own
    threshold: float

    def keys(self, seen: Mapping[str, Seen]) -> Tensor | None:
        """[N,N] bool, keys of the pixel's own kind, all where there is none; None where no site ran before."""
        columns = [seen[name].columns for name in self.sites if name in seen]
        if not columns:
            return None
        pixels, keys = (self._foreground(columns, *of) for of in zip(self.rows, self.tokens, strict=True))
        same = pixels[:, None] == keys
        return same | ~same.any(1, keepdim=True)

    def _foreground(self, columns: Sequence[Tensor], row: int, tokens: Sequence[int]) -> Tensor:
        """[N] bool. Tokens one by one: an index from a list would make a GPU wait."""
        x = torch.stack([x[row] for x in columns]).mean(0)  # [n, T]
        x = sum(x[:, token] for token in tokens)
        x = (x - x.min()) / (x.max() - x.min())
        return F.interpolate(x.view(1, 1, *self.shape), self.to).flatten() >= self.threshold


def spread(x: Tensor, rows: Sequence[int], count: int) -> Tensor:
    """x [R, ...] at `rows` of [count, ...], 0 elsewhere."""
    whole = x.new_zeros(count, *x.shape[1:])
    whole[list(rows)] = x
    return whole


def float32(x: Tensor) -> torch.autocast:
    """Matrix products in float32 even inside a caller's autocast."""
    return torch.autocast(x.device.type, enabled=False)
