"""What attention says about the words of a prompt: a map each, what lies under it, how alike that is to the key words.

The arithmetic of AdapEdit's equations 5-7 (arXiv:2312.08019) on what watched layers saw; adapedit.py says which layers
and when. W words, N pixels, T tokens, C channels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from minedit.attention.rules import Seen


@dataclass(frozen=True)
class Spatial:
    """S (eq. 9) of one layer at one step of the edit, before lambda_s: what DPS let through."""

    site: str
    step: int
    map: Tensor  # [height, width] float32, 0 ... 1

    @property
    def mean(self) -> float:
        return self.map.mean().item()

    @property
    def spread(self) -> float:
        """Standard deviation over pixels."""
        return self.map.std(correction=0).item()


@dataclass(frozen=True)
class Statistics:
    """What was found for the W words of the measured prompt. Tensors are on the CPU, float32."""

    prompt: str  # the target, or the source when words are only removed
    words: tuple[str, ...]
    key_words: tuple[int, ...]  # indices into words
    maps: Tensor  # [W, h, w], mean attention of each word's tokens at map_size, unmasked
    masks: Tensor  # [W, h, w] bool, the pixels used: all of them for a word in `empty`
    empty: tuple[int, ...]  # words of which nothing survived alpha_m
    similarity: tuple[float, ...]  # A_i, -1 ... 1
    tau: tuple[float, ...]  # tau_i by eq. 7, 0 ... 1
    keys: Mapping[str, Tensor]  # E_k [C] of each cross-attention layer, unit length
    spatial: tuple[Spatial, ...] = field(default=())  # filled by the edit pass


def threshold(alpha_m: float, tokens: int) -> float:
    """alpha_m for `tokens` tokens: the same multiple of uniform attention as over the paper's 77."""
    return alpha_m * 77 / tokens


def masked(maps: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """(masks [W, N], empty [W]) of maps [W, N]: entries of at least `level`; of a word without any, all."""
    masks = maps >= level
    empty = ~masks.any(1)
    return masks | empty[:, None], empty


def embeddings(maps: Tensor, hidden: Tensor, centre: bool) -> Tensor:
    """E_i [W, C] float64, unit length (eq. 5): the mean of hidden [N, C] under each map [W, N]."""
    maps, hidden = _double(maps), _double(hidden)
    if centre:
        hidden = hidden - hidden.mean(0)
    return F.normalize(maps / maps.sum(1, keepdim=True) @ hidden, dim=1)


def _double(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()  # Apple's GPUs have no float64


def key_embedding(words: Tensor) -> Tensor:
    """E_k [C], unit length: the mean of the key words' embeddings [K, C]."""
    return F.normalize(words.mean(0), dim=0)


def taus(similarity: Sequence[float], key_words: Sequence[int], lambda_tau: float) -> tuple[float, ...]:
    """tau_i (eq. 7), clipped to 0 ... 1; 0 for key words."""
    free = (min(max(lambda_tau * (1 - math.exp(a - 1)), 0.0), 1.0) for a in similarity)
    return tuple(0.0 if i in key_words else tau for i, tau in enumerate(free))


def resized(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Maps [W, h, w] of another shape, flat [W, N]: box average down, bilinear up."""
    if shape[1] < maps.shape[-1]:
        maps = F.interpolate(maps[None], shape, mode="area")[0]
    elif shape[1] > maps.shape[-1]:
        maps = F.interpolate(maps[None], shape, mode="bilinear", align_corners=False)[0]
    return maps.flatten(1)


class Average:
    """The mean over steps of what one row of the watched layers saw, on the layers' device."""

    def __init__(self) -> None:
        self.count, self.sums = 0, {}

    def add(self, seen: Mapping[str, Seen], row: int) -> None:
        self.count += 1
        for name, at in seen.items():
            now = (None if at.columns is None else at.columns[row].float()), at.hidden[row].float()
            self.sums[name] = tuple(map(_sum, self.sums.get(name, (None, None)), now))

    def means(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        """(columns [N, T] where they were watched, hidden [N, C]) by layer."""
        return {name: tuple(s if s is None else s / self.count for s in sums) for name, sums in self.sums.items()}


def _sum(before: Tensor | None, now: Tensor | None) -> Tensor | None:
    return now if before is None else before + now
