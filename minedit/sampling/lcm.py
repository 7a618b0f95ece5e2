"""Latent consistency models (Luo et al. 2023, arXiv:2310.04378): a step guesses the clean latents and noises them anew.

Guidance is a number that the UNet is told, in place of a second row. Times and steps are those of the released
scheduler, of its fifty original steps.
"""

import math
from collections.abc import Callable

from torch import Tensor

from minedit.attention.rules import Attn
from minedit.config import MineditError
from minedit.sampling import ddim
from minedit.sampling.numbers import TRAIN_STEPS
from minedit.sampling.rows import few
from minedit.stack.model import Model

ORIGINAL = 50  # steps of the sampler that it was distilled from
SIGMA, SCALING = 0.5, 10.0  # of the boundary condition: at time 0 the guess is the latent itself


def schedule(steps: int) -> list[tuple[int, int]]:
    """The pairs (t, t_prev) of a run of 1 ... 50 steps; the last t_prev is -1. Raises MineditError."""
    if steps > ORIGINAL:
        raise MineditError(f"steps is {steps}, expected 1 to {ORIGINAL} of a latent consistency model, best 4 to 12")
    times = [TRAIN_STEPS // ORIGINAL * k - 1 for k in range(ORIGINAL, 0, -1)]
    times = [times[math.floor(i * ORIGINAL / steps)] for i in range(steps)]
    return list(zip(times, [*times[1:], -1], strict=True))


def refuse(model: Model, what: str) -> None:
    """Raises MineditError for such a model: `what` goes by DDIM's steps."""
    if model.config.unet.guidance_dim:
        raise MineditError(f"{what} needs DDIM's sampling, {model.config.name} has its own; choose another model")


def step(x: Tensor, eps: Tensor, t: int, t_prev: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(x at t_prev, the clean latent guessed); at t_prev -1 both are the guess. noise: like x, standard normal."""
    scaled = SCALING * t
    keep, out = SIGMA**2 / (scaled**2 + SIGMA**2), scaled / math.sqrt(scaled**2 + SIGMA**2)
    guess = out * ddim.predict_x0(x, eps, t) + keep * x
    return (guess, guess) if t_prev < 0 else (ddim.diffuse(guess, noise, t_prev), guess)


def conditional(model: Model, guidance: float) -> Callable[..., Tensor]:
    """Noise of B latents, a `loop.Predict`: of the B conditional rows, all that there are.

    Rules, and what layers report, are of 2B rows as everywhere; the first B, of which nothing is computed, are 0.
    """

    def predict(latents: Tensor, step: int, t: int, attn: Attn, context: Tensor) -> Tensor:
        count = len(latents)
        by = {row: row for row in range(count, 2 * count)}
        return few(model, latents, t, attn, context, by, guidance)[count:]

    return predict
