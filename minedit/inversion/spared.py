"""Fewer rows of the UNet: a row whose noise is known, or that of another row, is computed only for others to read."""

from collections.abc import Callable

import torch
from torch import Tensor

from minedit.attention.rules import Attn
from minedit.sampling import ddim
from minedit.sampling.guidance import two_way
from minedit.sampling.loop import Predict, Step, embed
from minedit.sampling.rows import few, needed
from minedit.sampling.way import Job


def back_on(trajectory: Tensor) -> Callable[[Step], Tensor]:
    """What puts the source, the first row, on its course [steps + 1, 1, 4, h, w] after each step."""
    return lambda step: torch.cat([trajectory[step.index + 1], step.latents[1:]])


def along(trajectory: Tensor) -> Tensor:
    """The noise [steps, 1, 4, h, w] that leads from each of the latents [steps + 1, 1, 4, h, w] to the next."""
    pairs = ddim.schedule(len(trajectory) - 1)
    return torch.stack([ddim.noise_between(trajectory[i], trajectory[i + 1], *pair) for i, pair in enumerate(pairs)])


def spared(job: Job, noises: Tensor) -> Predict:
    """`loop.guided`, but the source's noise at each step is known: [steps, 1, 4, h, w].

    Rows of the UNet that nobody reads are left out.
    """
    model, guidance = job.sd, job.run.guidance

    def predict(latents: Tensor, step: int, t: int, attn: Attn, context: Tensor) -> Tensor:
        count = len(latents)
        if count == 1:
            return noises[step]
        drawn = [*range(1, count), *range(count + 1, 2 * count)]
        rows = needed(attn.rules, drawn, {count} if attn.watch else set())
        eps = two_way(*few(model, latents, t, attn, context, {row: row for row in rows}).chunk(2), guidance)
        return torch.cat([noises[step], eps[1:]])

    return predict


def led_from_source(job: Job) -> Predict:
    """`loop.guided` away from the source prompt: the source's two rows are one."""
    model, guidance, text = job.sd, job.run.guidance, embed(job.sd, [job.source.text]).to(job.sd.dtype)

    def predict(latents: Tensor, step: int, t: int, attn: Attn, context: Tensor) -> Tensor:
        count = len(latents)
        context = torch.cat([text.expand(count, -1, -1), context[count:]])
        by = {row: row or count for row in range(2 * count)}
        return two_way(*few(model, latents, t, attn, context, by).chunk(2), guidance)

    return predict
