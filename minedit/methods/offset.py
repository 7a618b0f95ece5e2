"""The offset of a difference-driven edit (flow.py): what it adds to the picture, moved step by step.

A step of the sampler's own for the source and one for the target, from one noise, differ as the formula of "ode" says;
so the loop goes on as ever, and the source is put back after it. `settings` are those of flow.py throughout.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minedit.attention.rules import Attn
from minedit.config import MineditError
from minedit.methods import Job, Told, Way
from minedit.methods.plan import first_steps, unscheduled
from minedit.sampling import ddim, lcm
from minedit.sampling.guidance import two_way
from minedit.sampling.loop import Predict, Step
from minedit.sampling.rows import few, needed
from minedit.settings import Settings


def offset(job: Job, settings: Settings, ruling: Way | None) -> Way:
    """The way of the edit. ruling: that of a method whose rules act on the same rows."""
    lcm.refuse(job.sd, "a difference-driven edit")
    schedule = ddim.schedule(job.run.steps)
    first = first_steps(settings.skipped, len(schedule))
    if first == len(schedule):
        raise MineditError(f"skipped is {settings.skipped:g} of {first} steps: none is left; expected less")
    ruling, picture = ruling or Way(told=lambda: Told(unscheduled(job))), job.picture()
    noise = noises(job.seed, picture, settings)

    def pair(added: Tensor, t: int, draw: int = 0) -> Tensor:
        """Source and target [2, 4, h, w] at time t, from one noise."""
        return ddim.diffuse(torch.cat([picture, picture + added]), noise(draw), t)

    def after(step: Step) -> Tensor:
        t = schedule[step.index][1]
        added = apart(step.latents, t) if settings.form == "ode" else step.x0[1:] - step.x0[:1]
        added = localised(added, settings.local) if settings.local else added
        last = step.index + 1 == len(schedule)
        latents = torch.cat([picture, picture + added]) if last else pair(added, t)
        changed = ruling.after(replace(step, latents=latents)) if ruling.after else None
        return latents if changed is None else changed

    def told() -> Told:
        found, drawn = ruling.told(), len(schedule) - first
        note = f"the last {drawn} of {len(schedule)} steps move the source, {settings.form}, {settings.noise} noise"
        return replace(found, notes=(note, *found.notes))

    predict, start = predicting(job, settings, pair), pair(torch.zeros_like(picture), schedule[first][0])
    return Way(told, (), ruling.rules, ruling.watch, after, start, first, predict=predict)


def apart(latents: Tensor, t: int) -> Tensor:
    """The offset [1, 4, h, w] of a pair at time t."""
    return (latents[1:] - latents[:1]) / math.sqrt(ddim.alpha(t))


def localised(added: Tensor, share: float) -> Tensor:
    """The offset [1, 4, h, w] where it is large: `share` of its largest and more stays, half of that and less goes.

    A pixel's is its root mean square over channels and the eight around it.
    """
    size = F.avg_pool2d(added.square().sum(1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False).sqrt()
    return added * (2 * size / (share * size.amax()).clamp(min=1e-12) - 1).clamp(0, 1)


def noises(seed: int, like: Tensor, settings: Settings) -> Callable[[int], Tensor]:
    """The noise, like the picture, of a step's first draw, second ...; the very first is that of a run of the seed."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw(_: int) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    return draw if settings.noise == "fresh" else [draw(at) for at in range(settings.draws)].__getitem__


def predicting(job: Job, settings: Settings, pair: Callable[[Tensor, int, int], Tensor]) -> Predict | None:
    """The mean noise of a step's draws, each part by its guidance; None where that is the loop's own."""
    target = job.run.guidance
    source = target if settings.source_guidance is None else settings.source_guidance
    if source == target != 1 and settings.draws == 1:
        return None
    rows = [row for row, scale in enumerate((source, target)) if scale != 1] + [2, 3]
    guidance = torch.tensor([source, target], device=job.sd.device).view(2, 1, 1, 1)

    def predict(latents: Tensor, step: int, t: int, attn: Attn, context: Tensor) -> Tensor:
        drawn = [latents, *(pair(apart(latents, t), t, draw) for draw in range(1, settings.draws))]
        by = {row: row for row in needed(attn.rules, rows, set())}
        found = [few(job.sd, each, t, attn, context, by).chunk(2) for each in drawn]
        return torch.stack([two_way(*halves, guidance) for halves in found]).mean(0)

    return predict
