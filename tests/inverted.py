"""The edit of the golden files of inversions: a small model, a photo's latents, two prompts."""

import torch
from seeded import normal
from small_model import small_model

from minedit.sampling.loop import Run, Ticks, context
from minedit.sampling.way import Job, Photo
from minedit.stack.model import Model
from minedit.stack.tokens import align

PROMPTS = "a boy in the park", "a sitting boy in the park"
STEPS, FEW, SKIP, GUIDANCE = 50, 10, 3, 3.0  # of null-text; of the others; those left out of them
LIMIT = 1e-4


def photo() -> torch.Tensor:
    """Latents [1, 4, 8, 8] of unit variance."""
    return normal("photo's latents", 1, 4, 8, 8)


def job(sd: Model, steps: int, guidance: float, seed: int = 0) -> Job:
    pair = [sd.tokenizer.encode(text) for text in PROMPTS]
    run = Run(steps, guidance, height=64, width=64)
    return Job(sd, *pair, align(*pair), seed, run, Ticks(None, steps), Photo(None, photo(), ""))


def texts(sd: Model) -> torch.Tensor:
    """[4, T, width]: unconditional source and target, source, target."""
    return context(sd, PROMPTS)


__all__ = ["FEW", "GUIDANCE", "LIMIT", "PROMPTS", "SKIP", "STEPS", "job", "photo", "small_model", "texts"]
