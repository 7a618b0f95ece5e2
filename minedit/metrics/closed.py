"""The closed world's own figures: what the judge reads, what should have stayed as it was, and the exact truth.

Where a rendering is the photograph, the renderer's masks are exact and its counterfactual is the truth. A picture that
the model drew has its subject where the model put it: its background is what no subject, and no change, covers in any
of CHANCES renderings of the pair.
"""

from functools import lru_cache

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from minedit.picturebook.score import Reading, rendered, scored
from minedit.picturebook.world.edits import Pair
from minedit.picturebook.world.scene import scene

FIGURES = ("s", "p", "o", "sp", "identity")
CHANCES = 16
CHANGED = 24  # of 255, by which a pixel differs at least where an edit changed it


def read_off(pair: Pair, source: Reading, edit: Reading) -> dict[str, float | None]:
    """FIGURES, of what the judge read off source and edit."""
    found = scored(pair, source, edit)
    return {name: getattr(found, name) for name in FIGURES}


@lru_cache(maxsize=4)  # of one pair, for every method
def background(pair: Pair, size: int, photograph: bool) -> Tensor:
    """What neither the subject nor the change covers: [1,1,size,size] of 0 and 1. Another time of day changes all."""
    seeds = (pair.seed,) if photograph else range(pair.seed + 1, pair.seed + 1 + CHANCES)
    covered = np.zeros((size, size), dtype=bool)
    for seed in seeds:
        before, after = (scene(factors, seed, size) for factors in (pair.before, pair.after))
        covered |= (np.asarray(before.mask) > 0) | (np.asarray(after.mask) > 0)
        covered |= apart(before.image, after.image) > 0
    return torch.from_numpy(~covered)[None, None].float()


def apart(a: Image, b: Image) -> np.ndarray:
    """The largest difference of a pixel's colours, 0 ... 255, [H,W]."""
    return np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max(axis=-1)


def beside_truth(pair: Pair, source: Image, edit: Image) -> dict[str, float | None]:
    """Of an edit of a rendering: its distance from the renderer's counterfactual, and how far they changed the same.

    `truth_error`: mean absolute difference, of 255. `iou`: of the pixels that the edit changed by CHANGED or more, and
    those that the renderer did, the share that both did; None where the renderer changed none.
    source: what the run drew the rendering again as; what is lost by that is no change.
    """
    before, truth = rendered(pair, edit.width)
    ours, theirs = apart(source, edit) >= CHANGED, apart(before, truth) >= CHANGED
    error = np.abs(np.asarray(edit, dtype=int) - np.asarray(truth, dtype=int)).mean()
    share = (ours & theirs).sum() / (ours | theirs).sum() if theirs.any() else None
    return {"truth_error": float(error), "iou": None if share is None else float(share)}
