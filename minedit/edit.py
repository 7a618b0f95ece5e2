"""The public verbs. `generate`: prompts -> pictures. `edit`: a prompt pair -> the source picture and its edit.

Methods of `edit`: "adapedit", "p2p" (Prompt-to-Prompt) and "fixed-seed" (the target prompt from the same noise, no
attention edit). Both pictures of a pair come from one run of four UNet rows; AdapEdit runs a statistics pass before it,
unless it is one-pass.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from PIL.Image import Image
from torch import Tensor

from minedit.config import MineditError
from minedit.files import lora
from minedit.methods import adapedit, p2p
from minedit.methods.adapedit import AdapEditConfig
from minedit.methods.onepass import Running
from minedit.methods.p2p import P2PConfig
from minedit.methods.plan import TARGET, Plan, WordPlan
from minedit.methods.wordmaps import Average, Statistics
from minedit.sampling.loop import Run, Step, pictures
from minedit.stack.model import Model
from minedit.stack.tokens import Prompt, align

METHODS = {"adapedit": AdapEditConfig, "p2p": P2PConfig, "fixed-seed": None}  # and their settings
Progress = Callable[[int, int], None]  # steps done and steps in all, the statistics pass included
OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class Generated:
    images: list[Image]
    latents: Tensor  # [B, 4, h, w] float32 on the CPU, what the VAE decodes
    notes: tuple[str, ...] = ()  # what a reader should know of how they were made, a sentence each


@dataclass(frozen=True)
class EditResult:
    source: Image
    edited: Image
    source_latent: Tensor  # [1, 4, h, w] float32 on the CPU, what the VAE decodes
    edited_latent: Tensor
    words: tuple[WordPlan, ...]  # of the target prompt: text, kind, tau
    notes: tuple[str, ...]  # what a reader should know of how the edit was decided, a sentence each
    settings: dict  # JSON values: model, dtype, attention, and the arguments of `edit` that make this result again
    seconds: float
    statistics: Statistics | None  # AdapEdit's word maps, similarities and pixel gates; None where it needs none


def generate(
    sd: Model,
    prompts: str | Sequence[str],
    seed: int | Sequence[int] = 0,
    steps: int = 50,
    guidance: float = 7.5,
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> Generated:
    """One picture per prompt.

    Args:
        prompts: B prompts, or one.
        seed: of every prompt, or one each; a single prompt is drawn once for each of several seeds.
        steps: DDIM steps, 1 ... 1000.
        guidance: classifier-free guidance scale, 0 or more.
        eta: 0 deterministic ... 1 ancestral sampling.
        height, width: of the pictures, in pixels; None: as trained. Multiples of 64 for Stable Diffusion.
        progress: called after every step.
        on_step: called with every `Step` of the pictures: for previews, or to stop by raising.

    Raises:
        MineditError: an empty or over-long prompt, a number out of range, or NaN from a model in too narrow a dtype.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    seeds = list(seed) if isinstance(seed, Sequence) and not isinstance(seed, str) else [seed] * len(prompts)
    if len(prompts) == 1:
        prompts = prompts * len(seeds)
    if not prompts or len(seeds) != len(prompts):
        raise MineditError(f"{len(prompts)} prompts and {len(seeds)} seeds; expected one seed for all, or one each")
    run = Run(steps, guidance, eta, height, width)
    for prompt, each in zip(prompts, seeds, strict=True):
        _prompt(sd, prompt)
        _check_seed(each)
    for step in run(sd, prompts, seeds, _ticker(progress, steps)):
        latents = step.latents
        if on_step:
            on_step(step)
    latents = latents.cpu() / sd.config.latent_scale
    images, notes = pictures(sd, latents)
    return Generated(images, latents, (*_unknown(sd, [sd.tokenizer.encode(prompt) for prompt in prompts]), *notes))


def edit(
    sd: Model,
    source: str,
    target: str,
    method: str = "adapedit",
    *,
    seed: int = 0,
    steps: int = 50,
    guidance: float = 7.5,
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    settings: AdapEditConfig | P2PConfig | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    **overrides: object,
) -> EditResult:
    """The picture of `source` and its edit into `target`, from one noise.

    Args:
        method: "adapedit", "p2p" or "fixed-seed".
        seed, steps, guidance, eta, height, width, progress, on_step: as in `generate`; a Step's rows are the source and
            the target.
        settings: the method's; None for its defaults.
        overrides: single fields of `settings` by name: `tau=0.5`, `lambda_s=0.9`, `dps=False`, `reweight={"red": 2}`.

    Prompts with the same words give the same picture twice, bit for bit, unless words are reweighted.

    Raises:
        MineditError: an empty or over-long prompt, an unknown method or setting, a number out of range, or NaN from a
            model in too narrow a dtype.
    """
    began = time.perf_counter()
    run, chosen = Run(steps, guidance, eta, height, width), method_settings(method, settings, overrides)
    _check_seed(seed)
    pair = _prompt(sd, source), _prompt(sd, target)
    identical = align(*pair).identical and not (isinstance(chosen, P2PConfig) and chosen.reweight)
    measuring = isinstance(chosen, AdapEditConfig) and chosen.measures and not identical
    running = Running(sd, *pair, steps, chosen) if measuring and chosen.one_pass else None
    first = measuring and not running  # a pass of statistics
    tick = _ticker(progress, steps + (chosen.pass_steps(steps) if first else 0))
    found = measure(sd, *pair, seed, run, chosen, tick) if first else None
    plan = running.plan if running else _plan(sd, *pair, steps, None if identical else chosen, found)
    prompts = [source] if identical else [source, target]
    shown, spatial = (steps // 4, steps // 2, steps - 1), []
    watch, looks = (adapedit.watched(sd, chosen), running.looks) if running else ({}, ())

    def observe(step: int) -> Mapping[str, bool]:
        return watch if step in looks else dict.fromkeys(plan.gates, False) if step in shown else {}

    rules = running.rules if running else plan.rules
    for step in run(sd, prompts, [seed] * len(prompts), tick, rules, observe):
        latents, latent = step.latents, step.latents.shape[-2:]
        if step.index in shown:
            hidden = {name: step.seen[name].hidden[TARGET] for name in plan.gates}
            spatial += adapedit.spatial(sd, plan.gates, step.index, hidden, latent)
        if step.index in looks:
            running.add(step.seen, latent)
            plan, found = running.plan, running.found
        if on_step:
            on_step(step)
    latents = latents.cpu() / sd.config.latent_scale
    images, decoding = pictures(sd, latents)
    same = ("the prompts are the same words: the edit is the source",) if identical else ()
    same += ("one pass: τ is that of the last step, and was another before",) if running else ()
    sizes = {name: getattr(run, name) or sd.config.image_size for name in ("height", "width")}
    return EditResult(
        source=images[0],
        edited=images[-1].copy(),
        source_latent=latents[:1],
        edited_latent=latents[-1:].clone(),
        words=plan.words,
        notes=(*same, *plan.notes, *_unknown(sd, pair), *decoding),
        settings={
            "model": sd.config.name,
            "dtype": str(sd.dtype).removeprefix("torch."),
            "attention": sd.attention,
            **lora.settings(sd),
            "source": source,
            "target": target,
            "method": method,
            "seed": seed,
            **asdict(run),
            **sizes,
            **(asdict(chosen) if chosen else {}),
        },
        seconds=time.perf_counter() - began,
        statistics=replace(found, spatial=tuple(spatial)) if found else None,
    )


def measure(
    sd: Model,
    source: Prompt,
    target: Prompt,
    seed: int,
    run: Run,
    settings: AdapEditConfig,
    tick: Callable[[], None] = lambda: None,
) -> Statistics:
    """AdapEdit's statistics pass: the target (or source) prompt alone, from the noise of `seed`."""
    prompt, key_words, _ = adapedit.subject(source, target)
    run = replace(run, steps=settings.pass_steps(run.steps))
    looks = range(run.steps - 1 if settings.statistics == "last" else 0, run.steps)
    watch, seen = adapedit.watched(sd, settings), Average()
    for step in run(sd, [prompt.text], [seed], tick, observe=lambda s: watch if s in looks else {}):
        if step.index in looks:
            seen.add(step.seen, row=1)  # conditional
    return adapedit.statistics(sd, prompt, key_words, seen.means(), settings, step.latents.shape[-2:])


def method_settings(
    method: str, settings: AdapEditConfig | P2PConfig | None, overrides: Mapping[str, object]
) -> AdapEditConfig | P2PConfig | None:
    """The settings of a method with single fields replaced; None for "fixed-seed", which has none."""
    if method not in METHODS:
        raise MineditError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    kind = METHODS[method]
    names = [field.name for field in fields(kind)] if kind else []
    unknown = sorted(set(overrides) - set(names))
    if unknown:
        raise MineditError(f"{method} has no setting {', '.join(unknown)}; it has {', '.join(names) or 'none'}")
    if settings is not None and (kind is None or not isinstance(settings, kind)):
        wanted = kind.__name__ if kind else "no settings"
        raise MineditError(f"{method} got {type(settings).__name__}, expected {wanted}")
    return replace(settings or kind(), **overrides) if kind else None


def _plan(
    sd: Model,
    source: Prompt,
    target: Prompt,
    steps: int,
    settings: AdapEditConfig | P2PConfig | None,
    found: Statistics | None,
) -> Plan:
    """The plan of a pair; without settings the empty one, which is that of the fixed seed."""
    if isinstance(settings, AdapEditConfig):
        return adapedit.plan(sd, source, target, steps, settings, found)
    if isinstance(settings, P2PConfig):
        return p2p.plan(sd, source, target, steps, settings)
    return Plan(words=tuple(WordPlan(target.words[p.word].text, p.kind, 0.0) for p in align(source, target).pairs))


def _prompt(sd: Model, text: str) -> Prompt:
    if not isinstance(text, str) or not text.strip():
        raise MineditError(f"prompt is {text!r}, expected a text; write what the picture shows")
    prompt = sd.tokenizer.encode(text)
    if not prompt.words:
        raise MineditError(f"prompt {text!r} has no words; write what the picture shows")
    return prompt


def _unknown(sd: Model, prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """A note on the words that the model was never trained on."""
    words = dict.fromkeys(word for prompt in prompts for word in sd.tokenizer.unknown(prompt))
    return (f"{sd.config.name} was never trained on: {', '.join(words)}",) if words else ()


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise MineditError(f"seed is {seed!r}, expected a whole number, 0 or more")


def _ticker(progress: Progress | None, total: int) -> Callable[[], None]:
    """A function that reports one step more each time it is called."""
    counter = iter(range(1, total + 1))
    return (lambda: progress(next(counter), total)) if progress else (lambda: None)
