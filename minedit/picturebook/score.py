"""How good an edit of the closed world is, as the judge reads it off source and edit.

S: the requested factor is in the edit, 1 or 0. P: the share of the factors that should stay, named and unnamed, that
are read the same off both. O = √(S · P). Identity: of skin and hair alone, where a person is edited. What should stay
is what the renderer's counterfactual shows unchanged (`shown`): of two big apples that become one, not the size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from minedit.image import to_tensor
from minedit.picturebook.training.judge_net import Judge
from minedit.picturebook.training.train_vae import reconstruct
from minedit.picturebook.world.edits import Pair
from minedit.picturebook.world.scene import scene
from minedit.picturebook.world.shown import LOOKS, shown
from minedit.stack.model import Model

Reading = dict[str, object]  # the value of every factor in a picture, by the judge
DRAWN = 2000  # resamplings of the bootstrap


@dataclass(frozen=True)
class Score:
    """Of one edit. s and o are None where the request does not show even in the renderer's own pictures."""

    s: float | None
    p: float
    identity: float | None  # None where nobody's skin and hair are there to keep

    @property
    def o(self) -> float | None:
        return None if self.s is None else (self.s * self.p) ** 0.5

    @property
    def sp(self) -> float | None:
        return None if self.s is None else self.s * self.p


def kept(pair: Pair) -> tuple[str, ...]:
    """The factors that an edit should leave: those that show the same before and after it."""
    before, after = shown(pair.before, pair.seed), shown(pair.after, pair.seed)
    return tuple(name for name in before if before[name] == after.get(name) and name not in pair.changed)


def scored(pair: Pair, source: Reading, edit: Reading) -> Score:
    """What was read off source and edit, as figures."""
    asked = getattr(pair.after, pair.factor)  # or what is drawn where that does not fit
    want, had = (shown(f, pair.seed)[pair.factor] for f in (pair.after, pair.before))
    same = {name: source[name] == edit[name] for name in kept(pair)}
    looks = [same[name] for name in LOOKS if name in same]
    return Score(
        s=None if want == had else float(edit[pair.factor] in (asked, want)),
        p=sum(same.values()) / len(same),
        identity=sum(looks) / len(looks) if looks else None,
    )


def read(judge: Judge, images: Sequence[Image], batch: int = 64) -> list[Reading]:
    """What the judge reads off each picture, of 128 × 128 pixels."""
    parts = (images[start : start + batch] for start in range(0, len(images), batch))
    return [found for part in parts for found in judge.read_all(torch.cat([to_tensor(image) for image in part]))]


def score(judge: Judge, pairs: Sequence[Pair], sources: Sequence[Image], edits: Sequence[Image]) -> list[Score]:
    """A Score for each pair, its source and its edit."""
    before, after = read(judge, sources), read(judge, edits)
    return [scored(*each) for each in zip(pairs, before, after, strict=True)]


def rendered(pair: Pair, size: int = 128) -> tuple[Image, Image]:
    """The renderer's picture of the source, and its exact counterfactual."""
    return scene(pair.before, pair.seed, size).image, scene(pair.after, pair.seed, size).image


def through(model: Model, images: Sequence[Image]) -> Tensor:
    """What the autoencoder makes of pictures, [B,3,H,W] in [-1,1]: no edit by the model can be drawn better."""
    given = torch.cat([to_tensor(image) for image in images]).to(model.device)
    return reconstruct(model.vae, given).clamp(-1, 1).cpu()


def mean(values: Sequence[float | None], seed: int = 0) -> tuple[float, float, float, int]:
    """(mean, lower and upper end of its 95 % bootstrap interval, of how many); None are left out, of none: NaN."""
    found = np.array([value for value in values if value is not None], dtype=float)
    if not len(found):
        return float("nan"), float("nan"), float("nan"), 0
    low, high = np.percentile(found[_again(len(found), seed)].mean(axis=1), (2.5, 97.5))
    return found.mean().item(), low.item(), high.item(), len(found)


@lru_cache(maxsize=16)
def _again(count: int, seed: int) -> np.ndarray:
    """Which of so many values each resampling of the bootstrap draws."""
    return np.random.default_rng(seed).integers(count, size=(DRAWN, count))
