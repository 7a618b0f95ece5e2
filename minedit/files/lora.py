"""LoRA (Hu et al., 2021, arXiv:2106.09685): a model and a file of low-rank changes -> the model with them added.

    W' = W + scale · (alpha / rank) · up down          for every layer that the file names, in float32

Files are those of kohya-ss/sd-scripts, by diffusers' or LDM's names of the layers, and of diffusers and peft, new and
old. With underscores for dots all name a layer alike, and layouts.py's rules lead from there to our names. Every tensor
is merged or the file is refused: nothing of a LoRA is left out.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minedit.config import MineditError, UNetConfig
from minedit.files.formats import read_file
from minedit.files.layouts import Rules, diffusers_unet_rules, first
from minedit.stack.model import Model

EXPECTED = "expected a LoRA of Stable Diffusion v1, by kohya's or diffusers' names"


def merge(model: Model, path: str | os.PathLike, scale: float = 1.0) -> Model:
    """`model` with the LoRA in file `path` added, as a new Model: the one given stays as it is.

    They share every weight that the LoRA does not change. Several LoRAs are merged one after the other; in float16 or
    bfloat16 each rounds the weights once. scale: any finite number; 0 changes nothing. Raises MineditError for a file
    that is no LoRA, is of another kind or another model, or overflows the model's dtype, and for a fast model.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise MineditError(f"scale of {path} is {scale!r}, expected a finite number; 1 is the LoRA as it was trained")
    if model.fast:
        raise MineditError(f"{model.config.name} is made for speed; merge {path} first, or load both at once")
    file = Path(path).expanduser()
    changes = _changes(file, *read_file(file, EXPECTED), model.config.unet)
    parts = {"unet": model.unet, "text": model.text}
    layers = {part: _layers(module) for part, module in parts.items()}
    _check(file, changes, layers, model.config.name)
    for part, module in parts.items():
        own = [(layers[part][change.layer][0], change) for change in changes if change.part == part]
        merged = {name: _merged(module.get_submodule(name).weight, change, scale) for name, change in own}
        lost = [f"{part}.{name}" for name, weight in merged.items() if not weight.isfinite().all()]
        if lost:
            kind = str(model.dtype).removeprefix("torch.")
            fault = f"{file} at scale {scale:g} leaves NaN or infinity in {first(lost)} in {kind}"
            raise MineditError(f"{fault}, expected finite weights; try a smaller scale or a wider --dtype")
        parts[part] = _with(module, merged) if merged else module
    return replace(model, unet=parts["unet"], text=parts["text"], lora=(*model.lora, (str(path), float(scale))))


def settings(model: Model) -> dict:
    """The LoRAs merged into a model, as JSON values for the settings of a picture; nothing where there are none."""
    return {"lora": [list(pair) for pair in model.lora]} if model.lora else {}


@dataclass(frozen=True)
class Change:
    """What a LoRA does to one layer; kernels are those of a convolution."""

    part: str  # unet or text
    layer: str  # with underscores for dots: our name of it, where the model has it
    name: str  # as the file has it
    down: Tensor | None  # [rank, in] or [rank, in, kernel, kernel]
    up: Tensor | None  # [out, rank] or [out, rank, 1, 1]
    alpha: Tensor | float | None  # None: the rank
    root: bool = False  # rank-stabilised (arXiv:2312.03732): alpha / √rank

    @property
    def factor(self) -> float:
        rank = len(self.down)
        return 1.0 if self.alpha is None else float(self.alpha) / (math.sqrt(rank) if self.root else rank)


@torch.no_grad()
def _merged(weight: Tensor, change: Change, scale: float) -> Tensor:
    down, up = (x.to(weight.device, torch.float32).flatten(1) for x in (change.down, change.up))
    delta = (up @ down).view_as(weight)  # [out, in] or [out, in, kernel, kernel]
    return (weight.float() + scale * change.factor * delta).to(weight.dtype)


def _with(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module with the weights of some layers replaced; it shares the other tensors."""
    tensors = (*module.parameters(), *module.buffers())
    copied = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    for layer, weight in weights.items():
        copied.get_submodule(layer).weight = nn.Parameter(weight, requires_grad=False)
    return copied


# --- names -----------------------------------------------------------------------------------------------------------

# By a name that gives it away: what people have and this file cannot merge.
REFUSED = {
    "a DoRA, which scales weights besides": r".*\.(dora_scale|lora_magnitude_vector)",
    "a LoHa": r".*\.hada_",
    "a LoKr": r".*\.lokr_",
    "an OFT": r".*\.oft_",
    "a LoCon in Tucker form": r".*\.lora_mid\.",
    "whole differences of weights, not a LoRA": r".*\.diff(_b)?$",
    "a LoRA of Stable Diffusion XL": r"lora_te2_|text_encoder_2\.",
    "a LoRA of Stable Diffusion 3, Flux or the like": r"(lora_)?transformer[._]|lora_unet_(double|single)_",
}

# lora_down, lora_A, lora.down, to_q_lora.down, lora_linear_layer.down, and their other halves
NAME = re.compile(r"(.+?)(?:[._]lora(?:_linear_layer)?[._](down|A|up|B)\.weight|\.(alpha))")
HALF = {"down": "down", "A": "down", "up": "up", "B": "up", "alpha": "alpha"}
# None: the UNet. lora_te1 is what diffusers' own conversion to kohya's names says, for Stable Diffusion v1 too.
PREFIX = re.compile(r"(?:lora_)?unet_|(lora_te1?|text_encoder)_(?:text_model_)?")
OLD_UNET: Rules = ((r"_to_out$", r"_to_out_0"),)  # diffusers before 0.18 named its own attention processors
OLD_TEXT: Rules = ((r"_to_([qkv])$", r"_\1_proj"), (r"_to_out$", r"_out_proj"))


def _changes(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], cfg: UNetConfig) -> list[Change]:
    """The tensors of a file by layer. Raises MineditError for a tensor that is no part of a LoRA known here."""
    for what, mark in REFUSED.items():
        if found := [name for name in tensors if re.match(mark, name)]:
            raise MineditError(f"{path} looks like {what}: it has {first(found)}; {EXPECTED}")
    forms = {name: NAME.fullmatch(name) for name in tensors}
    unknown = [name for name, form in forms.items() if not form or (form[3] and tensors[name].numel() != 1)]
    if len(unknown) == len(tensors):
        raise MineditError(f"{path} is no LoRA: it has {first(unknown)}; {EXPECTED}")
    if unknown:
        raise MineditError(f"{path} has {first(unknown)} besides a LoRA; {EXPECTED}")
    attends = {str(i) for i, attends in enumerate(reversed(cfg.attention)) if attends}
    rules = {"unet": (*OLD_UNET, *diffusers_unet_rules(cfg.blocks + 1, attends)), "text": OLD_TEXT}
    halves: dict[str, dict[str, Tensor]] = {}
    for name, form in forms.items():
        halves.setdefault(form[1], {})[HALF[form[2] or form[3]]] = tensors[name]
    alpha_of = _header(path, metadata)
    changes = []
    for name, held in halves.items():
        prefix = PREFIX.match(plain := name.replace(".processor.", ".").replace(".", "_"))
        part = "text" if prefix and prefix[1] else "unet"
        layer = plain[prefix.end() :] if prefix else plain
        for pattern, new in rules[part]:
            layer = re.sub(pattern.replace(r"\.", "_"), new, layer).replace(".", "_")
        alpha, root = (held["alpha"], False) if "alpha" in held else alpha_of(name)
        changes.append(Change(part, layer, name, held.get("down"), held.get("up"), alpha, root))
    return changes


def _header(path: Path, metadata: Mapping[str, str]) -> Callable[[str], tuple[float | None, bool]]:
    """For a layer as the file names it (alpha, rank-stabilised) as diffusers writes peft's LoraConfig into the header.

    Its entries begin with the part's name where those of the tensors do.
    """
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except json.JSONDecodeError as error:
        raise MineditError(f"{path} is damaged: lora_adapter_metadata is not JSON ({error})") from error

    def alpha_of(name: str) -> tuple[float | None, bool]:
        part = next((f"{part}." for part in ("unet", "text_encoder") if name.startswith(f"{part}.")), "")
        special = config.get(f"{part}alpha_pattern") or {}
        own = (value for pattern, value in special.items() if re.fullmatch(rf"(.*\.)?({pattern})", name))
        return next(own, config.get(f"{part}lora_alpha")), bool(config.get(f"{part}use_rslora"))

    return alpha_of


Layers = dict[str, tuple[str, Tensor]]  # by names with underscores for dots: the name, the weight


def _layers(module: nn.Module) -> Layers:
    """The layers that a LoRA can change. Those of CLIP stand without "text_model."."""
    named = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return {re.sub(r"^clip\.(text_model\.)?", "", n).replace(".", "_"): (n, layer.weight) for n, layer in named}


# --- whether all of it fits ------------------------------------------------------------------------------------------


def _check(path: Path, changes: Sequence[Change], layers: Mapping[str, Layers], model: str) -> None:
    """Raises MineditError unless every change is whole and is of a layer, each of another."""
    found = Counter((change.part, change.layer) for change in changes)
    twice = [change.name for change in changes if found[change.part, change.layer] > 1]
    halves = [change.name for change in changes if change.down is None or change.up is None]
    absent = [change.name for change in changes if change.layer not in layers[change.part]]
    if twice or halves:
        fault = f"names layers twice: {first(twice)}" if twice else f"has one half only of {first(halves)}"
        raise MineditError(f"{path} {fault}; download it again")
    shapes = {
        change.name: (change.up, change.down, layers[change.part][change.layer][1])
        for change in changes
        if change.layer in layers[change.part]
    }
    unlike = [
        f"{name} {list(up.shape)} x {list(down.shape)} for {list(weight.shape)}"
        for name, (up, down, weight) in shapes.items()
        if not _fits(up, down, weight)
    ]
    if absent or unlike:
        faults = [f"{model} lacks {first(absent)}"] if absent else []
        faults += [f"the shapes differ of {first(unlike)}"] if unlike else []
        raise MineditError(f"{path} looks like a LoRA of {_other(changes)}: {'; '.join(faults)}; {EXPECTED}")


def _fits(up: Tensor, down: Tensor, weight: Tensor) -> bool:
    up, down, weight = (x.flatten(1) if x.shape[2:] == (1, 1) else x for x in (up, down, weight))
    numbers = up.is_floating_point() and down.is_floating_point()
    return numbers and len(down) > 0 and up.shape == (len(weight), len(down)) and down.shape[1:] == weight.shape[1:]


def _other(changes: Sequence[Change]) -> str:
    """Which model a LoRA that does not fit may be of, by the width of what its layers read and by their depth."""
    widths = {change.down.shape[1] for change in changes if change.down.ndim > 1}
    if 2048 in widths or any("_transformer_blocks_1_" in change.layer for change in changes):
        return "Stable Diffusion XL"
    return "Stable Diffusion 2" if 1024 in widths else "another model"
