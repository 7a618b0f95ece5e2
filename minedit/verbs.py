"""The public verbs. `generate`: prompts -> pictures. `edit`: a prompt pair -> the source picture and its edit.

Both pictures of a pair come from one run. How it goes is the method's to say, through the one face that all methods
have (methods/__init__.py).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from PIL.Image import Image
from torch import Tensor

from minedit.config import MineditError, shown
from minedit.files import lora
from minedit.image import difference
from minedit.methods import Job, WordPlan
from minedit.methods.choose import DEFAULT, method_settings
from minedit.sampling.loop import Progress, Run, Step, Ticks, pictures
from minedit.sampling.numbers import SEED
from minedit.settings import Settings
from minedit.stack.model import Model
from minedit.stack.tokens import Prompt, align, foreign

OnStep = Callable[[Step], None]
# Of 255, mean over a picture. 120 soft edits of the embedded model were 1.3 to 43 apart, 39 unrelated pairs of its
# pictures 35 to 85, nineteen of twenty more than 46. LITTLE is a hundredth of a picture that changes by 50.
LITTLE, MUCH = 0.5, 45


@dataclass(frozen=True)
class Generated:
    images: list[Image]
    latents: Tensor  # [B, 4, h, w] float32 on the CPU, what the VAE decodes
    notes: tuple[str, ...] = ()  # what a reader should know of how they were made, a sentence each

    def __repr__(self) -> str:
        sizes = " ".join(dict.fromkeys("{} x {}".format(*image.size) for image in self.images))
        return f"<{len(self.images)} pictures of {sizes} pixels>"


@dataclass(frozen=True)
class EditResult:
    source: Image
    edited: Image
    source_latent: Tensor  # [1, 4, h, w] float32 on the CPU, what the VAE decodes
    edited_latent: Tensor
    words: tuple[WordPlan, ...]  # of the target prompt: text, kind, tau
    notes: tuple[str, ...]  # what a reader should know of how the edit was decided, a sentence each
    settings: dict  # JSON values: model, its hash, dtype, attention; the arguments of `edit` that make this again
    seconds: float
    statistics: object  # what the method measured, such as `wordmaps.Statistics`; None where it needs none

    def __repr__(self) -> str:
        said = (f"{self.settings[name]!r:.60}" for name in ("source", "target"))
        size = "{} x {}".format(*self.edited.size)
        return f"<{' -> '.join(said)} by {self.settings['method']}, seed {self.settings['seed']}, {size} pixels>"


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
        height, width: of the pictures, in pixels; None: as trained. Multiples of 8 for Stable Diffusion.
        progress: called after every step.
        on_step: called with every `Step` of the pictures: for previews, or to stop by raising.

    Raises:
        MineditError: an empty or over-long prompt, a number out of range, or NaN from a model in too narrow a dtype.
    """
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise MineditError(f"prompts is {shown(repr(prompts))}, expected a text, or a list of texts")
    _model(sd)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    one = isinstance(seed, str | bytes) or not (isinstance(seed, Sequence) or getattr(seed, "ndim", 0) == 1)
    seeds = [seed] * len(prompts) if one else list(seed)
    if len(prompts) == 1:
        prompts = prompts * len(seeds)
    if not prompts or len(seeds) != len(prompts):
        raise MineditError(f"{len(prompts)} prompts and {len(seeds)} seeds; expected one seed for all, or one each")
    run = Run(steps, guidance, eta, height, width)
    for prompt in prompts:
        _prompt(sd, prompt)
    seeds = [SEED.check("seed", each) for each in seeds]
    for step in run(sd, prompts, seeds, Ticks(progress, run.steps)):
        latents = step.latents
        if on_step:
            on_step(step)
    latents = latents.cpu() / sd.config.latent_scale
    images, notes = pictures(sd, latents)
    return Generated(images, latents, (*reading(sd, [sd.tokenizer.encode(prompt) for prompt in prompts]), *notes))


def edit(
    sd: Model,
    source: str,
    target: str,
    method: str = DEFAULT,
    *,
    seed: int = 0,
    steps: int = 50,
    guidance: float = 7.5,
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    **overrides: object,
) -> EditResult:
    """The picture of `source` and its edit into `target`, from one noise.

    Args:
        method: one of `minedit.METHODS`.
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
    _model(sd)
    run, chosen = Run(steps, guidance, eta, height, width), method_settings(method, settings, overrides)
    seed, pair, tick = SEED.check("seed", seed), (_prompt(sd, source), _prompt(sd, target)), Ticks(progress, run.steps)
    way = chosen.prepare(Job(sd, *pair, align(*pair), seed, run, tick))
    tick.total -= way.first
    prompts = way.prompts or (source, target)
    hooks = way.rules, way.watch, way.start, way.first, way.after, way.predict
    for step in run(sd, prompts, [seed] * len(prompts), tick, *hooks):
        latents = step.latents
        if on_step:
            on_step(step)
    latents, told = latents.cpu() / sd.config.latent_scale, way.told()
    images, decoding = pictures(sd, latents)
    return EditResult(
        source=images[0],
        edited=images[-1].copy(),
        source_latent=latents[:1],
        edited_latent=latents[-1:].clone(),
        words=told.words,
        notes=(*told.notes, *_change(images), *reading(sd, pair), *decoding),
        settings=record(sd, source, target, method, seed, run, chosen),
        seconds=time.perf_counter() - began,
        statistics=told.statistics,
    )


def record(sd: Model, source: str, target: str, method: str, seed: int, run: Run, chosen: Settings) -> dict:
    """An edit's settings, as JSON values."""
    sizes = {name: int(getattr(run, name) or sd.config.image_size) for name in ("height", "width")}
    return {
        "model": sd.config.name,
        **({"weights": sd.weights} if sd.weights else {}),
        "dtype": str(sd.dtype).removeprefix("torch."),
        "attention": sd.attention,
        **lora.settings(sd),
        "source": source,
        "target": target,
        "method": method,
        "seed": seed,
        **asdict(run),
        **sizes,
        **asdict(chosen),
    }


def _model(sd: object) -> None:
    if not isinstance(sd, Model):
        raise MineditError(f"the model is {shown(repr(sd), 60)}, expected what minedit.load returns")


def _prompt(sd: Model, text: str) -> Prompt:
    if not isinstance(text, str) or not text.strip():
        raise MineditError(f"prompt is {shown(repr(text))}, expected a text; write what the picture shows")
    prompt = sd.tokenizer.encode(text)
    if not prompt.words:
        raise MineditError(f"prompt {shown(repr(text))} has no words; write what the picture shows")
    return prompt


def reading(sd: Model, prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """Notes on marks that the model reads as plain text, and on words that it was never trained on."""
    marks = dict.fromkeys(mark for prompt in prompts for mark in foreign(prompt.text))
    notes = []
    for file, remedy in ((False, "weigh words with --reweight WORD=FACTOR"), (True, "merge a LoRA with --lora FILE")):
        found = ", ".join(repr(mark) for mark in marks if mark.startswith("<") is file)
        notes += [f"read as plain text, which means nothing to the model: {found}; {remedy}"] if found else []
    words = dict.fromkeys(word for prompt in prompts for word in sd.tokenizer.unknown(prompt))
    return (*notes, *([f"{sd.config.name} was never trained on: {', '.join(words)}"] if words else []))


def _change(images: Sequence[Image]) -> tuple[str, ...]:
    """A note on an edit that changed next to nothing, or nearly everything; none where one picture serves as both."""
    apart = difference(images[0], images[-1])
    amount = f"the two pictures differ by {apart:.1f} of 255 on average"
    if apart < LITTLE and len(images) > 1:
        return (f"the edit changed next to nothing: {amount}",)
    return (f"the edit changed nearly the whole picture: {amount}, as unrelated pictures do",) if apart > MUCH else ()
