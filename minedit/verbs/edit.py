"""`edit`: a prompt pair → the source picture, drawn or a photograph, and its edit. `edits`: several of one source."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import signature
from typing import TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from minedit.attention.tap import Begun, tap_of
from minedit.config import MineditError, shown
from minedit.inversion.choose import INVERSIONS, arguments, inversion_settings
from minedit.methods.choose import DEFAULT, METHODS, method_settings
from minedit.sampling.coded import pictures
from minedit.sampling.loop import Progress, Run, Ticks, start
from minedit.sampling.numbers import SEED
from minedit.sampling.together import joins, together
from minedit.sampling.way import Job, Way
from minedit.settings import Settings
from minedit.stack.control import ControlNet
from minedit.stack.model import Model, check_model
from minedit.stack.tokens import align
from minedit.verbs.asked import OnStep, check_calls, check_reads, read_photo, read_prompt
from minedit.verbs.counted import counted
from minedit.verbs.results import Again, EditResult, change, reading, record, redrawn, unsaid
from minedit.verbs.steered import steered


@dataclass(frozen=True)
class Wanted:
    """An edit among several."""

    target: str
    method: str
    chosen: Settings
    inverse: Settings | None  # the photograph's inversion

    def said(self) -> dict[str, object]:
        """The settings, as arguments of `edit`."""
        return {"settings": self.chosen, **arguments(self.inverse)}


def edit(sd: Model, source: str, target: str, method: str = DEFAULT, **more: object) -> EditResult:
    """The picture of `source` and its edit into `target`, from one noise; or a photograph and its edit.

    The one result of `edits`, whose keywords these are: image, inversion, seed, steps, guidance, eta, height, width,
    negative_prompt, control, hint, control_scale, settings, progress, on_step; and single settings by name: `tau=0.5`,
    `reweight={"red": 2}`. Raises MineditError as `edits` does.
    """
    if not isinstance(target, str):
        raise MineditError(f"target is {shown(repr(target), 60)}, expected a text; minedit.edits takes several")
    return edits(sd, source, [target], method, **more)[0]


def edits(
    sd: Model,
    source: str,
    targets: Sequence[str | Mapping[str, object]],
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
    control: ControlNet | None = None,
    hint: Image | None = None,
    control_scale: float = 1.0,
    settings: Settings | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    **overrides: object,
) -> list[EditResult]:
    """The picture of `source`, or a photograph, and an edit of it for each target, in one batch where methods allow it.

    Args:
        source: what the picture shows; it is also the prompt that a photograph is inverted by, and may be empty then.
        targets: prompts, or mappings such as {"target": "a sitting boy", "tau": 0.4}: what they say of the method and
            its settings takes the place of what is said below.
        method: one of `minedit.METHODS`.
        image: a photograph of any size and mode, or latents such as `EditResult.edited_latent`, [1, 4, h, w].
        inversion: one of `minedit.INVERSIONS`, of methods that need one; None for the default.
        seed, steps, guidance, eta, negative_prompt, progress, on_step: as in `generate`; a Step's rows are the source
            and the targets, or one target alone where its method draws no source.
        height, width: as in `generate`; None: a photograph's own shape, as many pixels as trained.
        control, hint, control_scale: as in `generate`; every row is steered by the one hint, the inversion's too.
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
    check_calls(progress=progress, on_step=on_step)
    if isinstance(targets, str) or not isinstance(targets, Sequence) or not targets:
        raise MineditError(f"targets is {shown(repr(targets), 60)}, expected a list of prompts")
    wanted = [_wanted(each, method, settings, overrides, image is not None, inversion) for each in targets]
    for each in wanted:
        check_reads(sd, each.method, each.chosen, image is not None)
    run, seed = Run(steps, guidance, eta, height, width, negative_prompt), SEED.check("seed", seed)
    alike = {
        "seed": seed,
        **asdict(run),
        "image": image,
        "control": control,
        "hint": hint,
        "control_scale": control_scale,
    }
    again = [Again(sd, partial(edit, sd, source, each.target, each.method, **each.said(), **alike)) for each in wanted]
    photo, run = read_photo(sd, image, run) if image is not None else (None, run)
    sd, run, steer = steered(sd, run, control, hint, control_scale, shape=photo is None)
    prompt, tick = read_prompt(sd, source, empty=photo is not None), Ticks(progress, run.steps)
    aims = [read_prompt(sd, each.target) for each in wanted]
    shared = {"photo": photo, "methods": METHODS, "inversions": INVERSIONS, "drawn": {}}
    jobs = [Job(sd, prompt, aim, align(prompt, aim), seed, run, tick, **shared) for aim in aims]
    tap = tap_of(sd.unet)
    if tap is not None and photo is None and all(_beside(each, job) for each, job in zip(wanted, jobs, strict=True)):
        prompts, sides = (
            (source, *(each.target for each in wanted)),
            tuple(start(sd, [seed], run.height, run.width).shape[2:]),
        )
        tap.foresee(Begun(_named(len(prompts), True), prompts, negative_prompt, range(steps), sides))
    with counted(sd.unet) as rows:
        inverses = dict.fromkeys(each.inverse for each in wanted if each.inverse)
        found = {each: each.prepare(jobs[0]) for each in inverses}  # of the photograph and its prompt alone
        jobs = [replace(job, found=found.get(each.inverse)) for each, job in zip(wanted, jobs, strict=True)]
        ways = [each.chosen.prepare(job) for each, job in zip(wanted, jobs, strict=True)]
        results: dict[int, EditResult] = {}
        batches = _batches(ways, wanted, jobs)
        tick.total += sum(run.steps - way.first for way, _ in batches) - run.steps
        for batch, members in batches:
            prompts = batch.prompts or (source, *(wanted[at].target for at in members))
            hooks = batch.rules, batch.watch, batch.start, batch.first, batch.after, batch.predict
            named = _named(len(prompts), drawn=batch.source is None)
            for step in run(sd, prompts, [seed] * len(prompts), tick, *hooks, named=named):
                latents = step.latents
                if on_step:
                    on_step(step)
            if batch.source is not None:
                latents = torch.cat([batch.source.to(latents), latents])
            latents = latents.cpu() / sd.config.latent_scale
            images, decoding = pictures(sd, latents)
            for at, row in zip(members, range(len(images) - len(members), len(images)), strict=True):
                told = ways[at].on(jobs[at].found).told() if jobs[at].found else ways[at].told()
                pair = images[:1] if row == 0 else [images[0], images[row]]
                read = *unsaid(prompt, bool(wanted[at].inverse)), *reading(sd, (prompt, aims[at]))
                made = wanted[at].method, seed, run, wanted[at].chosen, photo and photo.digest, wanted[at].inverse
                results[at] = EditResult(
                    source=images[0],
                    edited=images[row].copy(),
                    source_latent=latents[:1],
                    edited_latent=latents[row : row + 1].clone(),
                    words=told.words,
                    notes=(
                        *told.notes,
                        *wanted[at].chosen.idle,
                        *redrawn(photo, images[0]),
                        *change(pair),
                        *read,
                        *decoding,
                    ),
                    settings=record(sd, source, wanted[at].target, *made) | steer,
                    seconds=time.perf_counter() - began,
                    rows=sum(rows),
                    statistics=told.statistics,
                    again=again[at],
                )
    return [results[at] for at in range(len(wanted))]


Verb = TypeVar("Verb", bound=Callable)


def spelled(verb: Verb) -> Verb:
    """A verb whose `**more` goes to `edits`, with that one's keywords in its signature: for help() and Tab."""
    own = signature(verb)
    rest = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
    more = [each for each in signature(edits).parameters.values() if each.kind in (each.KEYWORD_ONLY, each.VAR_KEYWORD)]
    verb.__signature__ = own.replace(parameters=[*rest, *(each for each in more if each.name not in own.parameters)])
    return verb


spelled(edit)


def asked(target: str, method: str, more: Mapping[str, object]) -> Wanted:
    """What `edit` is asked for by these keywords. Raises MineditError."""
    own = {name: value for name, value in more.items() if name not in signature(edits).parameters}
    return _wanted(target, method, more.get("settings"), own, more.get("image") is not None, more.get("inversion"))


def _beside(wanted: Wanted, job: Job) -> bool:
    """Whether it is known before anything is computed that source and target are drawn, at all steps."""
    return getattr(wanted.chosen, "draws_both", False) and not job.alignment.identical


def _named(count: int, drawn: bool) -> tuple[str, ...]:
    """Names of the rows of a batch. drawn: whether the source is one of them."""
    targets = count - drawn
    names = ("target",) if targets == 1 else tuple(f"target{at}" for at in range(1, targets + 1))
    return ("source", *names) if drawn else names


def _wanted(
    asked: str | Mapping[str, object],
    method: str,
    settings: Settings | None,
    overrides: Mapping[str, object],
    image: bool,
    inversion: str | None,
) -> Wanted:
    """One of the targets with its method and settings. Raises MineditError."""
    own = dict(asked) if isinstance(asked, Mapping) else {"target": asked}
    if not isinstance(own.get("target"), str) or not all(isinstance(name, str) for name in own):
        raise MineditError(f"a target is {shown(repr(asked), 60)}, expected a prompt or {{'target': prompt, ...}}")
    target, chosen = own.pop("target"), own.pop("method", method)
    settings = settings if isinstance(chosen, str) and chosen == method else None
    inverse, rest = inversion_settings(image, METHODS.get(str(chosen)), inversion, {**overrides, **own})
    return Wanted(target, chosen, method_settings(chosen, settings, rest), inverse)


def _batches(ways: Sequence[Way], wanted: Sequence[Wanted], jobs: Sequence[Job]) -> list[tuple[Way, list[int]]]:
    """What is drawn in one batch each: edits that join, from one inversion; any other alone."""
    members: dict[object, list[int]] = {}
    for at, way in enumerate(ways):
        members.setdefault(("joined", wanted[at].inverse) if joins(way) else at, []).append(at)
    batches = [(together([ways[at] for at in each]), jobs[each[0]].found, each) for each in members.values()]
    return [(way.on(found) if found else way, each) for way, found, each in batches]
