"""What the verbs are given, checked: a model, prompts, a photograph. All raise MineditError."""

from collections.abc import Callable
from dataclasses import replace

import torch
from PIL.Image import Image
from torch import Tensor

from minedit import photo as photos
from minedit.config import MineditError, shown
from minedit.sampling import lcm
from minedit.sampling.coded import encode
from minedit.sampling.loop import Run, Step, check_sides
from minedit.sampling.way import Photo
from minedit.settings import Settings
from minedit.stack.model import Model
from minedit.stack.tokens import Prompt

OnStep = Callable[[Step], None]


def check_calls(**calls: object) -> None:
    """Raises MineditError for one that is neither a function nor None."""
    for name, each in calls.items():
        if each is not None and not callable(each):
            raise MineditError(f"{name} is {shown(repr(each), 60)}, expected a function, or None")


def check_reads(sd: Model, method: str, settings: Settings, image: bool) -> None:
    """Raises MineditError for a model whose UNet has not the method's input channels, and where these lack a photo."""
    reads, plain, shows = sd.config.unet.in_channels, sd.config.vae.z_channels, getattr(settings, "reads_photo", False)
    needs = 2 * plain if shows else plain
    if reads != needs:
        found = f"{sd.config.name} reads {reads} channels{', a photo among them' * (reads > plain)}"
        kind = "Stable Diffusion v1" if needs == plain else "InstructPix2Pix's, which reads a photo beside the latents"
        raise MineditError(f"{found}; {method} needs a model that reads {needs}, as {kind}: --model FILE")
    if shows and not image:
        raise MineditError(f"{method} edits photographs, and draws none of a prompt; give one: --image FILE, image=")


def read_prompt(sd: Model, text: str, empty: bool = False) -> Prompt:
    if not isinstance(text, str) or not (text.strip() or empty):
        raise MineditError(f"prompt is {shown(repr(text))}, expected a text; write what the picture shows")
    prompt = sd.tokenizer.encode(text)
    if not (prompt.words or empty):
        raise MineditError(f"prompt {shown(repr(text))} has no words; write what the picture shows")
    return prompt


def read_photo(sd: Model, image: Image | Tensor, run: Run) -> tuple[Photo, Run]:
    """What is to be edited, and the run in its size. Raises MineditError."""
    lcm.refuse(sd, "the edit of a photograph")
    factor, channels = sd.config.vae.factor, sd.config.vae.z_channels
    if isinstance(image, Tensor):
        if image.ndim != 4 or image.shape[:2] != (1, channels) or not image.is_floating_point():
            found = f"image is a tensor {list(image.shape)} of {image.dtype}"
            raise MineditError(f"{found}, expected latents [1, {channels}, h, w] of floats, or a picture")
        if not image.numel() or not image.isfinite().all():
            what = "image is latents with NaN or infinity among them" if image.numel() else "image is no latents at all"
            raise MineditError(f"{what}; expected finite ones, such as an edit's edited_latent")
        height, width = (side * factor for side in image.shape[2:])
        check_sides(sd, run)
        if run.height not in (None, height) or run.width not in (None, width):
            raise MineditError(f"the latents are of {height}x{width} pixels; expected that height and width, or none")
        latents = image.detach().to(sd.device, torch.float32) * sd.config.latent_scale
        digest = photos.digest(latents.cpu().numpy().tobytes())
        return Photo(None, latents, digest), replace(run, height=height, width=width)
    if not isinstance(image, Image):
        raise MineditError(f"image is {shown(repr(image), 60)}, expected a PIL picture, or latents [1, 4, h, w]")
    image = photos.upright(image)
    run = sized(sd, image, run)
    run.fits(sd, 2)
    resized = photos.fitted(image, run.height, run.width)
    return Photo(resized, encode(sd, resized), photos.digest(image.tobytes())), run


def sized(sd: Model, image: Image, run: Run) -> Run:
    """The run, in the size in which a photograph is edited. Raises MineditError."""
    check_sides(sd, run)
    least = sd.config.vae.factor * 2 ** (len(sd.config.unet.channels) - 1)  # a pixel of the UNet's coarsest map
    height, width = photos.sides(image.size, sd.config.image_size, least, run.height, run.width)
    return replace(run, height=height, width=width)
