"""Pictures ↔ latents, by the VAE."""

import copy

import torch
from PIL.Image import Image
from torch import Tensor

from minedit.attention.tap import tap_of
from minedit.config import MineditError
from minedit.image import to_pil, to_tensor
from minedit.stack.model import Model


@torch.inference_mode()
def pictures(model: Model, latents: Tensor) -> tuple[list[Image], tuple[str, ...]]:
    """Latents [B, 4, h, w] as the VAE decodes them -> pictures, and what a reader should know of how they were made.

    A decoder that overflows in half precision decodes once more in float32, which is noted. Raises MineditError where
    that does not help.
    """
    model.check_files()
    images, notes = model.vae.decode(latents.to(model.device, model.dtype)), ()
    if model.dtype != torch.float32 and not images.isfinite().all():
        images = copy.deepcopy(model.vae).float().decode(latents.to(model.device))
        notes = (f"the decoder overflowed in {_name(model.dtype)}: the pictures were decoded again in float32",)
    if not images.isfinite().all():
        raise overflow("the decoder", model.dtype)
    return to_pil(images), notes


@torch.no_grad()  # inversions go on from them, null-text with gradients
def encode(model: Model, image: Image) -> Tensor:
    """A picture, sides multiples of the VAE's factor -> latents [1, 4, h, w] float32 of unit variance, on the device.

    The mean of the posterior, as inversions take it; of an encoder that overflows in half precision, that in float32.
    Raises MineditError.
    """
    model.check_files()
    pixels = to_tensor(image).to(model.device)
    if (tap := tap_of(model.unet)) is not None:
        tap.photo(tuple(side // model.config.vae.factor for side in pixels.shape[2:]))
    moments = model.vae.encode(pixels.to(model.dtype))
    if model.dtype != torch.float32 and not moments.isfinite().all():
        moments = copy.deepcopy(model.vae).float().encode(pixels)
    if not moments.isfinite().all():
        raise overflow("the encoder", model.dtype)
    return moments.chunk(2, dim=1)[0].float() * model.config.latent_scale


def overflow(stage: str, dtype: torch.dtype) -> MineditError:
    """What to raise where a stage of a run gave NaN or infinity."""
    wider = {torch.float16: "bfloat16 or float32", torch.bfloat16: "float32"}.get(dtype)
    remedy = f"try --dtype {wider}" if wider else "its weights are damaged, or a setting is far out of range"
    return MineditError(f"NaN or infinity from {stage} in {_name(dtype)}, expected finite numbers; {remedy}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
