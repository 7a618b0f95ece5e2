"""`edit`: a prompt pair → the source picture, drawn or a photograph, and its edit."""

import time
from dataclasses import replace

import torch
from PIL.Image import Image
from torch import Tensor

from minedit.inversion.choose import inversion_settings
from minedit.methods.choose import DEFAULT, METHODS, method_settings
from minedit.sampling.coded import pictures
from minedit.sampling.loop import Progress, Run, Ticks
from minedit.sampling.numbers import SEED
from minedit.sampling.way import Job
from minedit.settings import Settings
from minedit.stack.model import Model
from minedit.stack.tokens import align
from minedit.verbs.asked import OnStep, check_model, read_photo, read_prompt
from minedit.verbs.results import EditResult, change, reading, record, redrawn, unsaid


def edit(
    sd: Model,
    source: str,
    target: str,
    method: str = DEFAULT,
    *,
    image: Image | Tensor | None = None,
    inversion: str | None = None,
    seed: int = 0,
    steps: int = 50,
    guidance: float = 7.5,
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str = "",
    settings: Settings | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    **overrides: object,
) -> EditResult:
    """The picture of `source` and its edit into `target`, from one noise; or a photograph and its edit.

    Args:
        source: what the picture shows; it is also the prompt that a photograph is inverted by. "" is noted there.
        method: one of `minedit.METHODS`.
        image: a photograph of any size and mode, or latents such as `EditResult.edited_latent`, [1, 4, h, w].
        inversion: one of `minedit.INVERSIONS`, of methods that need one; None for the default.
        seed, steps, guidance, eta, negative_prompt, progress, on_step: as in `generate`; a Step's rows are the source
            and the target, or the target alone where the method draws no source.
        height, width: as in `generate`; None: a photograph's own shape, as many pixels as trained.
        settings: the method's; None for its defaults.
        overrides: single fields of `settings`, or of the inversion's, by name: `tau=0.5`, `lambda_s=0.9`, `dps=False`,
            `reweight={"red": 2}`.

    Prompts with the same words give the same picture twice, bit for bit, unless words are reweighted.

    Raises:
        MineditError: an empty or over-long prompt, an unknown method or setting, a number out of range, no picture, or
            NaN from a model in too narrow a dtype.
    """
    began = time.perf_counter()
    check_model(sd)
    inverse, overrides = inversion_settings(image is not None, METHODS.get(str(method)), inversion, overrides)
    chosen = method_settings(method, settings, overrides)
    run = Run(steps, guidance, eta, height, width, negative_prompt)
    photo, run = read_photo(sd, image, run) if image is not None else (None, run)
    seed, pair = SEED.check("seed", seed), (read_prompt(sd, source, empty=photo is not None), read_prompt(sd, target))
    job = Job(sd, *pair, align(*pair), seed, run, Ticks(progress, run.steps), photo)
    if inverse:
        job = replace(job, found=inverse.prepare(job))
    way = chosen.prepare(job)
    way = way.on(job.found) if job.found else way
    job.tick.total -= way.first
    prompts = way.prompts or (source, target)
    hooks = way.rules, way.watch, way.start, way.first, way.after, way.predict
    for step in run(sd, prompts, [seed] * len(prompts), job.tick, *hooks):
        latents = step.latents
        if on_step:
            on_step(step)
    if way.source is not None:
        latents = torch.cat([way.source.to(latents), latents])
    latents, told = latents.cpu() / sd.config.latent_scale, way.told()
    images, decoding = pictures(sd, latents)
    said = *unsaid(pair[0], inverse), *reading(sd, pair)
    return EditResult(
        source=images[0],
        edited=images[-1].copy(),
        source_latent=latents[:1],
        edited_latent=latents[-1:].clone(),
        words=told.words,
        notes=(*told.notes, *redrawn(photo, images[0]), *change(images), *said, *decoding),
        settings=record(sd, source, target, method, seed, run, chosen, photo and photo.digest, inverse),
        seconds=time.perf_counter() - began,
        statistics=told.statistics,
    )
