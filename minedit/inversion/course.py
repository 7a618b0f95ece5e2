"""The course of a photo: the sampler's steps backwards, along the noise that the source prompt predicts."""

import torch
from torch import Tensor

from minedit.attention.rules import Attn
from minedit.sampling import ddim
from minedit.sampling.coded import overflow
from minedit.sampling.loop import embed
from minedit.sampling.way import Job


@torch.no_grad()
def course(job: Job) -> Tensor:
    """Latents [steps + 1, 1, 4, h, w] float32 before each step and after the last: from noise to the photo's own.

    Found from the photo up, a conditional row a step, guidance 1. As in the released null-text inversion and diffusers,
    the UNet is given the time that a step leads to. Raises MineditError where a latent is NaN or infinite.
    """
    steps = ddim.schedule(job.run.steps)
    job.tick.total += len(steps)
    latents, text = job.photo.latents, embed(job.sd, [job.source.text])
    found = [latents]
    for t, t_prev in reversed(steps):
        times = torch.full((1,), t, device=latents.device)
        eps = job.sd.unet(latents.to(job.sd.dtype), times, text, Attn(attend=job.sd.attend)).float()
        latents = ddim.inverse_step(latents, eps, t, t_prev)
        found.append(latents)
        job.tick()
    found = torch.stack(found[::-1])
    if not found.isfinite().all():
        raise overflow("the UNet of the inversion", job.sd.dtype)
    return found
