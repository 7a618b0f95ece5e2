"""EDICT's steps, there and back. A pair of latents [B, 4, h, w] float64; steps are counted from the first one drawn.

Even steps move the first latent before the second, odd ones the other way round.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minedit.attention.rules import Attn
from minedit.sampling import ddim
from minedit.sampling.coded import overflow
from minedit.sampling.loop import Predict, Step, context, guided
from minedit.sampling.way import Job

Pair = tuple[Tensor, Tensor]
Noise = Callable[[Tensor], Tensor]  # of one of the latents, at the step's time


def step(pair: Pair, noise: Noise, count: int, times: tuple[int, int], mix: float) -> tuple[Pair, Tensor]:
    """(the pair at the later of the times t, t_prev; the noise that moved the first latent)."""
    found, used = list(pair), {}
    for i in (count % 2, 1 - count % 2):
        used[i] = noise(found[1 - i])
        found[i] = ddim.step(found[i], used[i].double(), *times)[0]
    x = mix * found[0] + (1 - mix) * found[1]
    return (x, mix * found[1] + (1 - mix) * x), used[0]


def undone(pair: Pair, noise: Noise, count: int, times: tuple[int, int], mix: float) -> Pair:
    """The pair that `step` came from."""
    x, y = pair
    y = (y - (1 - mix) * x) / mix
    found = [(x - (1 - mix) * y) / mix, y]
    for i in (1 - count % 2, count % 2):
        found[i] = ddim.inverse_step(found[i], noise(found[1 - i]).double(), *times)
    return found[0], found[1]


@torch.no_grad()
def inverted(job: Job, mix: float, first: int) -> Pair:
    """The pair before step `first`, from two of the photo's latents. Raises MineditError where it is not finite."""
    rows, predict = context(job.sd, [job.source.text], job.run.negative_prompt), guided(job.sd, job.run.guidance)
    pair, schedule = (job.photo.latents.double(),) * 2, ddim.schedule(job.run.steps)
    job.tick.total += len(schedule) - first
    for index, times in reversed(list(enumerate(schedule))[first:]):

        def noise(latents: Tensor, at: int = index, t: int = times[0]) -> Tensor:
            return predict(latents.float(), at, t, Attn(attend=job.sd.attend), rows)

        pair = undone(pair, noise, index - first, times, mix)
        job.tick()
    if not all(latents.isfinite().all() for latents in pair):
        raise overflow("the UNet of the inversion", job.sd.dtype)
    return pair


def redrawn(job: Job, mix: float, first: int, begin: Pair) -> tuple[Predict, Callable[[Step], Tensor]]:
    """(what predicts noise and moves the pair, what gives the run the first of it)."""
    schedule, guide, now = ddim.schedule(job.run.steps), guided(job.sd, job.run.guidance), {}

    def predict(latents: Tensor, at: int, t: int, attn: Attn, context: Tensor) -> Tensor:
        if at == first:
            now["pair"] = tuple(each.expand(len(latents), -1, -1, -1) for each in begin)
        changed = (latents - now["pair"][0].float()).double()  # by a method, after the last step
        pair = tuple(each + changed for each in now["pair"])
        now["pair"], eps = step(pair, lambda x: guide(x.float(), at, t, attn, context), at - first, schedule[at], mix)
        return eps

    return predict, lambda _: now["pair"][0].float()
