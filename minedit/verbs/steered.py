"""A model steered by a ControlNet: what `generate` and `edit` are given of it, checked, and what pictures say of it."""

import math
from dataclasses import replace
from numbers import Real

import torch
from PIL.Image import Image

from minedit import photo
from minedit.config import MineditError, shown
from minedit.image import to_tensor
from minedit.sampling.loop import Run
from minedit.stack.control import Controlled, ControlNet
from minedit.stack.model import Model
from minedit.verbs.asked import sized


def steered(
    sd: Model, run: Run, control: ControlNet | None, hint: Image | None, scale: float, shape: bool = True
) -> tuple[Model, Run, dict]:
    """The model with a steered UNet, the run in its size, and their settings as JSON values; as given without control.

    hint: a picture as the ControlNet was trained on, fitted to the run's size. shape: whether a run of no size takes
    the hint's shape, as it does a photograph's. Raises MineditError.
    """
    if not isinstance(scale, Real) or isinstance(scale, bool) or not math.isfinite(scale) or scale < 0:
        raise MineditError(f"control_scale is {shown(repr(scale), 60)}, expected a number of 0 or more")
    if control is None and hint is None:
        return sd, run, {}
    if not isinstance(control, ControlNet):
        found = "control is missing" if control is None else f"control is {shown(repr(control), 60)}"
        raise MineditError(f"{found}, expected what minedit.load_control returns: --control FILE")
    if not isinstance(hint, Image):
        found = "hint is missing" if hint is None else f"hint is {shown(repr(hint), 60)}"
        raise MineditError(
            f"{found}, expected a PIL picture such as the edges that control was trained on: --hint FILE"
        )
    if isinstance(sd.unet, Controlled) or control.cfg != replace(sd.config.unet, guidance_dim=0):
        raise MineditError(
            f"control was loaded for another model than {sd.config.name}; load it: load_control(file, sd)"
        )
    weight = control.input_hint_block[0].weight
    if (weight.device, weight.dtype) != (sd.unet.time_embed[0].weight.device, sd.dtype):
        what = f"control is of {weight.dtype} on {weight.device}, the model of {sd.dtype} on {sd.device}"
        raise MineditError(f"{what}; load it for this model: load_control(file, sd)")
    hint = photo.upright(hint)
    if shape:
        run = sized(sd, hint, run)
    run.fits(sd, 1)
    sides = (side or sd.config.image_size for side in (run.height, run.width))
    pixels = (to_tensor(photo.fitted(hint, *sides)) / 2 + 0.5).to(sd.device, sd.dtype)
    with torch.inference_mode(False), torch.no_grad():  # in which null-text inversion finds it
        unet = Controlled(sd.unet, control, pixels, float(scale)).eval()
    return replace(sd, unet=unet, kept=(*sd.kept, *control.kept)), run, settings(control, hint, scale)


def settings(control: ControlNet, hint: Image, scale: float) -> dict:
    """JSON values. hint: upright."""
    return {
        **{"control": control.file, "control_weights": control.weights, "control_scale": float(scale)},
        "hint_pixels": photo.digest(hint.tobytes()),
    }
