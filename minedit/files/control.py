"""A ControlNet's file or folder -> the network, for a model that is loaded.

Names are LDM's, with the `control_model.` of the released files or without, a whole model beside them or none; or those
of diffusers' ControlNetModel, a file or folder.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from minedit.config import Config, MineditError, foreign_json, shown
from minedit.files.formats import FOLDERS, named, read_other, settings_of, weights_in
from minedit.files.layouts import EXTRAS, LAYOUTS, Rules, Tensors, blocks_up, diffusers_unet_rules, first, renamed
from minedit.files.sizes import misfits
from minedit.files.stored import Files, fingerprint
from minedit.speed.fast import alike
from minedit.stack.control import FACTOR, ControlNet
from minedit.stack.model import Model, check_model

EXPECTED = "expected a ControlNet of Stable Diffusion v1: a file by LDM's or diffusers' names, or its folder"
PREFIX = "control_model."
RULES: Rules = (  # of what a UNet has not
    (r"^controlnet_cond_embedding\.conv_in", "input_hint_block.0"),
    (r"^controlnet_cond_embedding\.blocks\.(\d+)", lambda m: f"input_hint_block.{2 * int(m[1]) + 2}"),
    (r"^controlnet_cond_embedding\.conv_out", "input_hint_block.14"),
    (r"^controlnet_down_blocks\.(\d+)", r"zero_convs.\1.0"),
    (r"^controlnet_mid_block", "middle_block_out.0"),
)
# Of a diffusers folder's config.json: what the layers do not show, as they are trained here
SETTINGS = {"global_pool_conditions": False, "controlnet_conditioning_channel_order": "rgb"}


def load_control(path: str | os.PathLike, model: Model) -> ControlNet:
    """The ControlNet in a file or folder, on the model's device and in its dtype, without gradients.

    `generate` and `edit` take it as `control`. Every tensor must find its place. Raises MineditError, in one line, for
    what is none, or one of another model. An LDM file does not say that its outputs are averaged over their pixels, as
    those of "shuffle" are, and is then read as any other.
    """
    check_model(model)
    path = named(path, EXPECTED)
    unet, vae = model.config.unet, model.config.vae
    if (unet.in_channels, vae.factor) != (vae.z_channels, FACTOR):
        what = f"{model.config.name} reads {unet.in_channels} channels at 1/{vae.factor} of a picture's side"
        raise MineditError(f"{what}; a ControlNet steers a model that reads {vae.z_channels} at 1/{FACTOR}")
    tensors = _ours(path, _read(path))
    with torch.device("meta"):
        control = ControlNet(replace(unet, guidance_dim=0))
    _check(path, model.config, tensors, {name: tuple(x.shape) for name, x in control.state_dict().items()})
    with Files() as files:
        state = {name: stored.read(model.dtype, files).to(model.device) for name, stored in tensors.items()}
        control.weights = fingerprint({"control": tensors}, files)
        control.kept = files.kept() if model.device.type == "cpu" else ()
    control.load_state_dict(state, strict=True, assign=True)
    control.file = str(path.absolute())
    return alike(model, control.eval().requires_grad_(False))


def _read(path: Path) -> Tensors:
    if not path.is_dir():
        return read_other(path, EXPECTED)[0]
    folder = path / "controlnet" if (path / "controlnet").is_dir() else path
    file = weights_in(folder, FOLDERS["unet"])
    if file is None:
        raise MineditError(f"{path} has none of {', '.join(FOLDERS['unet'])}; {EXPECTED}")
    if (folder / "config.json").is_file():
        try:
            said = foreign_json(settings_of(folder / "config.json"))
            other = [name for name, value in SETTINGS.items() if said.get(name, value) != value]
        except (OSError, ValueError, AttributeError) as error:
            raise MineditError(f"{folder / 'config.json'} is no config; download it again") from error
        if other:
            found = f"{path} is a ControlNet whose {other[0]} is {shown(said[other[0]], 40)}"
            raise MineditError(f"{found}, expected {SETTINGS[other[0]]}; choose another")
    return read_other(file, EXPECTED)[0]


def _ours(path: Path, tensors: Tensors) -> Tensors:
    """By our names; without the model that a released file has beside its ControlNet."""
    if any(name.startswith(PREFIX) for name in tensors):
        beside = (*LAYOUTS[0].prefixes.values(), "cond_stage_model.")
        besides = [name for name in tensors if not (name.startswith((PREFIX, *beside)) or EXTRAS.fullmatch(name))]
        if besides:
            raise MineditError(f"{path} looks like a ControlNet, but has {first(besides)} besides; {EXPECTED}")
        return {name.removeprefix(PREFIX): x for name, x in tensors.items() if name.startswith(PREFIX)}
    if not any(name.startswith("controlnet_cond_embedding.") for name in tensors):
        if "input_hint_block.0.weight" not in tensors:
            raise MineditError(f"{path} holds no ControlNet: it has {first(tensors)}; {EXPECTED}")
        return tensors
    rules = (*RULES, *diffusers_unet_rules(blocks_up(tensors), ()))
    ours = {renamed(name, rules): tensor for name, tensor in tensors.items()}
    if len(ours) != len(tensors):
        raise MineditError(f"{path} looks like a ControlNet, but names tensors twice; {EXPECTED}")
    return ours


def _check(path: Path, config: Config, tensors: Tensors, wanted: dict[str, Sequence[int]]) -> None:
    """Raises MineditError unless the tensors are those of the network."""
    widths = (x.shape[1] for name, x in tensors.items() if name.endswith("attn2.to_k.weight") and len(x.shape) == 2)
    text = next(widths, 0)
    reads = config.unet.context_dim
    if text not in (0, reads):
        fault = f"{path} is a ControlNet that reads text of width {text}, expected {reads}, as {config.name} does"
        raise MineditError(f"{fault}; {EXPECTED}")
    if faults := misfits(tensors, wanted):
        raise MineditError(f"{path} is no ControlNet of {config.name}: it {faults}; {EXPECTED}")
