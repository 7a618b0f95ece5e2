"""Fewer rows of the UNet: where the source's course is known, what it predicts is computed only for others to read."""

from collections.abc import Callable

import torch
from torch import Tensor

from minedit.attention.rules import Attn
from minedit.sampling import ddim
from minedit.sampling.guidance import two_way
from minedit.sampling.loop import Predict, Step
from minedit.sampling.rows import few, needed
from minedit.sampling.way import Job


def back_on(trajectory: Tensor) -> Callable[[Step], Tensor]:
    """What puts the source, the first row, on its course [steps + 1, 1, 4, h, w] after each step."""
    return lambda step: torch.cat([trajectory[step.index + 1], step.latents[1:]])


def spared(job: Job, trajectory: Tensor) -> Predict:
    """`loop.guided`, but the source's noise is that which leads along the trajectory [steps + 1, 1, 4, h, w].

    Rows of the UNet that nobody reads are left out; what layers report of them is 0.
    """
    model, guidance, schedule = job.sd, job.run.guidance, ddim.schedule(job.run.steps)

    def predict(latents: Tensor, step: int, t: int, attn: Attn, context: Tensor) -> Tensor:
        count = len(latents)
        known = ddim.noise_between(latents[:1], trajectory[step + 1], t, schedule[step][1])
        if count == 1:
            return known
        drawn = [*range(1, count), *range(count + 1, 2 * count)]
        rows = needed(attn.rules, drawn, {count} if attn.watch else set())
        eps = two_way(*few(model, latents, t, attn, context, {row: row for row in rows}).chunk(2), guidance)
        return torch.cat([known, eps[1:]])

    return predict
