"""The sampling loop: a generator that yields every step, so that progress, previews and early stop are the caller's.

In: a model, starting latents, text rows. Out: Step after Step; the last one's `latents` is the result.
Rows of the UNet's batch: B unconditional, then B conditional, unless `predict` has others. `rules` says what attention
does at each step and `observe` which layers to look at; both are functions of the step, 0 for pure noise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

from minedit.attention.rules import Attn, Rule, Seen
from minedit.attention.tap import Begun, Tap, tap_of
from minedit.config import MineditError
from minedit.sampling import ddim, lcm
from minedit.sampling.coded import overflow
from minedit.sampling.guidance import two_way
from minedit.sampling.memory import check_memory
from minedit.sampling.numbers import Numbers
from minedit.sampling.tapped import tapped
from minedit.stack.model import Model

Progress = Callable[[int, int], None]  # steps done and steps in all, those of every pass
Predict = Callable[[Tensor, int, int, Attn, Tensor], Tensor]  # latents, step, time, attention, context → their noise


@dataclass(frozen=True)
class Step:
    """The state after one step. B images of latent size h, w."""

    index: int  # 0, 1 ... steps - 1
    timestep: int  # the time the UNet was given, 981 ... 1 for 50 steps
    latents: Tensor  # [B, 4, h, w] float32, after the step
    eps: Tensor  # [B, 4, h, w] float32, guided noise prediction
    x0: Tensor  # [B, 4, h, w] float32, the clean latents it implies
    seen: Mapping[str, Seen]  # observed layers by name; rows as in the UNet's batch


def embed(model: Model, prompts: Sequence[str]) -> Tensor:
    """Text rows [B, T, width] of prompts. Encoded one by one, so that a row does not depend on its neighbours."""
    ids = (torch.tensor([model.tokenizer.encode(prompt).ids], device=model.device) for prompt in prompts)
    return torch.cat([model.text(row) for row in ids])


def context(model: Model, prompts: Sequence[str], negative: str = "") -> Tensor:
    """[2B, T, width]: the negative prompt B times, then the prompts. Raises MineditError for an encoder's overflow."""
    empty = embed(model, [negative])
    rows = torch.cat([empty.expand(len(prompts), -1, -1), embed(model, prompts)])
    if not rows.isfinite().all():
        raise overflow("the text encoder", model.dtype)
    return rows


def start(model: Model, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> Tensor:
    """Starting noise [B, 4, h, w] of the seeds, on the model's device; height, width: pixels, None as trained."""
    h, w = ((side or model.config.image_size) // model.config.vae.factor for side in (height, width))
    return torch.cat([ddim.noise(seed, h, w) for seed in seeds]).to(model.device)


def _waits(x: Tensor) -> bool:
    """Whether reading a number of x waits for work that is queued."""
    return x.device.type != "cpu"


def sample(
    model: Model,
    latents: Tensor,
    context: Tensor,
    steps: int = 50,
    guidance: float = 7.5,
    rules: Callable[[int], Mapping[str, Rule]] | None = None,
    observe: Callable[[int], Mapping[str, bool]] | None = None,
    eta: float = 0.0,
    seeds: Sequence[int] = (),
    first: int = 0,
    after: Callable[[Step], Tensor | None] | None = None,
    predict: Predict | None = None,
    tap: Tap | None = None,
) -> Iterator[Step]:
    """Denoise.

    NaN or infinity anywhere in the UNet stays in the latents, so each step leaves the largest of them on the device
    and all are read with the last, before it is yielded: reading one makes a GPU wait. On the CPU each is read at once.

    Args:
        latents: [B, 4, h, w], noise of unit variance (`start`).
        context: [2B, T, width], unconditional rows first (`context`).
        steps: 1 ... 1000 (`ddim.timesteps`).
        guidance: scale of `guidance.two_way`.
        rules: attention rules of a step by site name; None edits nothing.
        observe: the layers that report into Step.seen at a step, and whether with columns; None observes nothing.
        eta: 0 deterministic ... 1 ancestral.
        seeds: one per row, needed when eta > 0: rows of one seed share every draw, whatever the batch.
        first: the step to begin at; `latents` are those before it.
        after: sees each step; the latents it returns, if any, take the place of the step's.
        predict: what predicts noise, in place of `guided`.
        tap: what looks at this run, or changes it (record/); None: nothing does.

    Raises:
        MineditError: the latents became NaN or infinite; it names the first step where they did.
    """
    if predict is None and context.shape[0] != 2 * latents.shape[0]:
        raise ValueError(f"context has {context.shape[0]} rows for {latents.shape[0]} latents, expected twice as many")
    if (eta > 0 or model.config.unet.guidance_dim) and len(seeds) != len(latents):
        raise ValueError(f"eta is {eta}: expected one seed for each of {len(latents)} rows, found {len(seeds)}")
    if not 0 <= first < steps:
        raise MineditError(f"the run begins at step {first}, expected one of its {steps}: nothing is left to draw")
    consistent = model.config.unet.guidance_dim > 0
    draw = _step_noise(seeds, latents) if eta > 0 or consistent else lambda: None
    predict = predict or (lcm.conditional if consistent else guided)(model, guidance)
    context = context.to(model.dtype) if tap is None else tap.value("text", context.to(model.dtype))
    latents, largest = latents.float(), []
    for index, (t, t_prev) in list(enumerate((lcm if consistent else ddim).schedule(steps)))[first:]:
        watch = observe(index) if observe else {}
        attn = Attn(attend=model.attend, rules=rules(index) if rules else {}, watch=watch, seen={})
        if tap is not None:
            attn = replace(attn, tap=tap if tap.step(index, t) else None)
            latents = tap.value("x_t", latents)
        eps = predict(latents, index, t, attn, context)
        if tap is not None:
            eps = tapped(tap, latents, eps, t)
        if consistent:
            latents, x0 = lcm.step(latents, eps, t, t_prev, draw())
        else:
            latents, x0 = ddim.step(latents, eps, t, t_prev, eta, draw())
        largest.append(latents.abs().amax())  # NaN if one is
        if index + 1 == steps or not _waits(latents):
            flags = torch.stack(largest).isfinite().tolist()
            if not all(flags):
                raise overflow(f"the UNet at step {first + flags.index(False) + 1} of {steps}", model.dtype)
        done = Step(index, t, latents, eps, x0, attn.seen)
        changed = after(done) if after else None
        if changed is not None:
            latents = changed
            done = replace(done, latents=latents)
        yield done


def guided(model: Model, guidance: float) -> Predict:
    """Noise of B latents by `guidance.two_way`, from 2B rows of the UNet and of context."""

    def predict(latents: Tensor, step: int, t: int, attn: Attn, context: Tensor) -> Tensor:
        batch = torch.cat([latents, latents]).to(model.dtype)  # [2B, 4, h, w]
        times = torch.full((len(batch),), t, device=latents.device)
        return two_way(*model.unet(batch, times, context, attn).float().chunk(2), guidance)

    return predict


def _step_noise(seeds: Sequence[int], latents: Tensor) -> Callable[[], Tensor]:
    """Draws of noise like `latents`; each seed's generator continues after its starting noise."""
    shape = (1, *latents.shape[1:])
    generators = {seed: torch.Generator("cpu").manual_seed(seed) for seed in seeds}
    for generator in generators.values():
        torch.randn(shape, generator=generator)  # the starting noise

    def draw() -> Tensor:
        drawn = {seed: torch.randn(shape, generator=generator) for seed, generator in generators.items()}
        return torch.cat([drawn[seed] for seed in seeds]).to(latents.device)

    return draw


class Ticks:
    """Called after each step of a run, it tells how many are done, of how many in all. `total` may grow before."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total

    def __call__(self) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total)


def check_sides(sd: Model, run: Numbers) -> None:
    """Raises MineditError where a height or width that is given is no whole number of latents."""
    multiple = sd.config.vae.factor
    for name, side in (("height", run.height), ("width", run.width)):
        whole = isinstance(side, Integral) and not isinstance(side, bool)
        if side is not None and (not whole or side < 1 or side % multiple):
            raise MineditError(f"{name} is {side!r}, expected a multiple of {multiple} pixels for {sd.config.name}")


@dataclass(frozen=True)
class Run(Numbers):
    """A sampling run."""

    def fits(self, sd: Model, rows: int) -> None:
        """Raises MineditError where height or width is no whole number of latents, or `rows` pictures are too large.

        And where a file that the weights stay in was written to since the model was loaded.
        """
        check_sides(sd, self)
        sd.check_files()
        check_memory(sd, rows, *(side or sd.config.image_size for side in (self.height, self.width)))

    @torch.inference_mode()
    def __call__(
        self,
        sd: Model,
        prompts: Sequence[str],
        seeds: Sequence[int],
        tick: Callable[[], None],
        rules: Callable[[int], Mapping[str, Rule]] | None = None,
        observe: Callable[[int], Mapping[str, bool]] | None = None,
        begin: Tensor | None = None,
        first: int = 0,
        after: Callable[[Step], Tensor | None] | None = None,
        predict: Predict | None = None,
        named: Sequence[str] = (),
    ) -> Iterator[Step]:
        """Sample the prompts from the noise of their seeds, without gradients, and call `tick` after each step.

        begin: latents, a row or one each, in place of that noise. named: the rows' names, where the run draws what is
        given back: a tap looks at such runs alone. The rest as in `sample`; `after` is called outside of inference
        mode.
        Raises MineditError where height or width is no whole number of latents, and for a model that wants more than
        noise and text where nothing else predicts.
        """
        if not predict and (channels := sd.config.unet.in_channels) != sd.config.vae.z_channels:
            fault = f"{sd.config.name} reads {channels} channels, a photo's among them"
            raise MineditError(
                f"{fault}; expected a model that reads {sd.config.vae.z_channels}, as Stable Diffusion v1"
            )
        if predict or begin is not None or self.eta:
            lcm.refuse(sd, "eta" if self.eta else "this method")
        self.fits(sd, len(seeds))
        latents = start(sd, seeds, self.height, self.width) if begin is None else begin.expand(len(seeds), -1, -1, -1)
        tap = tap_of(sd.unet) if named else None
        if tap is not None:
            steps = range(first, self.steps)
            tap.begin(Begun(tuple(named), tuple(prompts), self.negative_prompt, steps, tuple(latents.shape[2:])))
        hooks = first, torch.inference_mode(False)(after) if after else None, predict, tap
        rows = context(sd, prompts, self.negative_prompt)
        numbers = self.steps, self.guidance, rules, observe, self.eta, seeds
        for step in sample(sd, latents, rows, *numbers, *hooks):
            tick()
            yield step
