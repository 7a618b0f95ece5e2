"""Noise maps of a photo: what each step of ancestral sampling lacks to stay on the photo's noised latents."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minedit.attention.rules import Attn
from minedit.inversion.spared import spared
from minedit.sampling import ddim
from minedit.sampling.coded import overflow
from minedit.sampling.loop import Predict, Step, context, guided
from minedit.sampling.way import Job


@dataclass(frozen=True, eq=False)
class Maps:
    """Of a run of S steps."""

    course: Tensor  # [S + 1, 1, 4, h, w] latents before each step, each noised independently, and the photo's own
    noises: Tensor  # [S, 1, 4, h, w] the noise in the first S of them
    added: Tensor  # [S, 1, 4, h, w] the maps times their standard deviation; 0 for steps left out


@torch.no_grad()
def found(job: Job, guidance: float, first: int) -> Maps:
    """The maps of the steps from `first` on. Noise is drawn from the seed, for the last step first, as released."""
    x0, schedule = job.photo.latents, ddim.schedule(job.run.steps)
    generator = torch.Generator("cpu").manual_seed(job.seed)
    drawn = [torch.randn(x0.shape, generator=generator).to(x0.device) for _ in schedule]
    noises = torch.stack(drawn[::-1])
    noised = [ddim.diffuse(x0, noise, t) for noise, (t, _) in zip(noises, schedule, strict=True)]
    course, added = torch.stack([*noised, x0]), torch.zeros_like(noises)
    predict, rows = guided(job.sd, guidance), context(job.sd, [job.source.text], job.run.negative_prompt)
    job.tick.total += len(schedule) - first
    for index, (t, t_prev) in list(enumerate(schedule))[first:]:
        eps = predict(course[index], index, t, Attn(attend=job.sd.attend), rows)
        mean, _ = ddim.mean(ddim.predict_x0(course[index], eps, t), eps, t, t_prev, eta=1)
        added[index] = course[index + 1] - mean
        job.tick()
    if not added.isfinite().all():
        raise overflow("the UNet of the inversion", job.sd.dtype)
    return Maps(course, noises, added)


def redrawn(job: Job, maps: Maps) -> tuple[Predict, Callable[[Step], Tensor]]:
    """(what predicts noise, what makes each step ancestral, with the photo's maps, and writes the source)."""
    schedule = ddim.schedule(job.run.steps)

    def after(step: Step) -> Tensor:
        mean, _ = ddim.mean(step.x0[1:], step.eps[1:], *schedule[step.index], eta=1)
        return torch.cat([maps.course[step.index + 1], mean + maps.added[step.index]])

    return spared(job, maps.noises), after
