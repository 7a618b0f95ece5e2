"""`generate`: prompts → pictures."""

from collections.abc import Sequence
from functools import partial

from PIL.Image import Image

from minedit.config import MineditError, shown
from minedit.sampling.coded import pictures
from minedit.sampling.loop import Progress, Run, Ticks
from minedit.sampling.numbers import SEED
from minedit.stack.control import ControlNet
from minedit.stack.model import Model, check_model
from minedit.verbs.asked import OnStep, check_calls, read_prompt
from minedit.verbs.results import Again, Generated, reading
from minedit.verbs.steered import steered


def generate(
    sd: Model,
    prompts: str | Sequence[str],
    seed: int | Sequence[int] = 0,
    steps: int = 50,
    guidance: float = 7.5,
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str = "",
    control: ControlNet | None = None,
    hint: Image | None = None,
    control_scale: float = 1.0,
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
        negative_prompt: the text that guidance leads away from.
        control: what `load_control` returns, to steer the pictures by `hint`, with and without the prompt alike.
        hint: a picture of the kind that control was trained on, edges on black ...; it is resized as a photograph, and
            gives its shape to pictures of no height and width.
        control_scale: of what control adds, 0 or more.
        progress: called after every step, as `progress(done, total)`.
        on_step: called with every `Step` of the pictures: for previews, or to stop by raising.

    Raises:
        MineditError: an empty or over-long prompt, a number out of range, or NaN from a model in too narrow a dtype.
    """
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise MineditError(f"prompts is {shown(repr(prompts))}, expected a text, or a list of texts")
    check_model(sd)
    check_calls(progress=progress, on_step=on_step)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    one = isinstance(seed, str | bytes) or not (isinstance(seed, Sequence) or getattr(seed, "ndim", 0) == 1)
    seeds = [seed] * len(prompts) if one else list(seed)
    if len(prompts) == 1:
        prompts = prompts * len(seeds)
    if not prompts or len(seeds) != len(prompts):
        raise MineditError(f"{len(prompts)} prompts and {len(seeds)} seeds; expected one seed for all, or one each")
    numbers = steps, guidance, eta, height, width, negative_prompt
    again = Again(sd, partial(generate, sd, prompts, seeds, *numbers, control, hint, control_scale))
    run = Run(*numbers)
    for prompt in prompts:
        read_prompt(sd, prompt)
    seeds = [SEED.check("seed", each) for each in seeds]
    sd, run, _ = steered(sd, run, control, hint, control_scale)
    named = [str(at) for at in range(len(prompts))]
    for step in run(sd, prompts, seeds, Ticks(progress, run.steps), named=named):
        latents = step.latents
        if on_step:
            on_step(step)
    latents = latents.cpu() / sd.config.latent_scale
    images, notes = pictures(sd, latents)
    notes = (*reading(sd, [sd.tokenizer.encode(prompt) for prompt in prompts]), *notes)
    return Generated(images, latents, notes, again)
