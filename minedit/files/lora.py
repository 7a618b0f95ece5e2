"""LoRA (Hu et al., 2021, arXiv:2106.09685): a model and a file of low-rank changes -> the model with them added.

    W' = W + scale · (alpha / rank) · ΔW          for every layer that the file names, in float32; ΔW: products.py

Files are those of kohya-ss/sd-scripts and LyCORIS, by diffusers' or LDM's names of the layers, and of diffusers and
peft, new and old. With underscores for dots all name a layer alike, and layouts.py's rules lead from there to our
names. Every tensor is merged or the file is refused: nothing of a LoRA is left out.
"""

import copy
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor, nn

from minedit.config import MineditError, UNetConfig, shown
from minedit.files.declared import check_header
from minedit.files.layouts import Rules, diffusers_unet_rules, first
from minedit.files.lorafile import EXPECTED, alphas, fingerprint, read_lora
from minedit.files.products import delta, kind_of, rank_of, whole
from minedit.files.stored import Stored
from minedit.stack.model import Model

LoRA = str | os.PathLike | tuple[str | os.PathLike, float]  # a file, or a file and its scale


def merge(model: Model, path: str | os.PathLike, scale: float = 1.0) -> Model:
    """`model` with the LoRA in file `path`, or in the file of that folder, added, as a new Model: the one given stays.

    They share every weight that the LoRA does not change. Several LoRAs are merged one after the other; in float16 or
    bfloat16 each rounds the weights once. scale: any finite number; 0 changes nothing. Raises MineditError for a file
    that is no LoRA, is of another kind or another model, or overflows the model's dtype, and for a fast model.
    """
    if isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale):
        raise MineditError(f"scale of {path} is {scale!r}, expected a finite number; 1 is the LoRA as it was trained")
    if model.fast:
        raise MineditError(f"{model.config.name} is made for speed; merge {path} first, or load both at once")
    file, tensors, metadata = read_lora(path)
    check_header(file, metadata)
    changes = _changes(file, tensors, metadata, model.config.unet)
    parts = {"unet": model.unet, "text": model.text}
    layers = {part: _layers(module) for part, module in parts.items()}
    _check(file, changes, layers, model.config.name)
    broken: list[str] = []  # names of the file's tensors that hold NaN or infinity
    for part, module in parts.items():
        own = [(layers[part][change.layer][0], change) for change in changes if change.part == part]
        merged = {name: _merged(file, module.get_submodule(name).weight, change, scale, broken) for name, change in own}
        lost = [f"{part}.{name}" for name, weight in merged.items() if not weight.isfinite().all()]
        if lost:
            kind = str(model.dtype).removeprefix("torch.")
            fault = f"{file} at scale {scale:g} leaves NaN or infinity in {first(lost)} in {kind}"
            if broken:
                raise MineditError(
                    f"{fault}, as at any scale, since it holds them in {first(broken)}; download it again"
                )
            raise MineditError(f"{fault}, expected finite weights; try a smaller scale or a wider --dtype")
        parts[part] = _with(module, merged) if merged else module
    merged = str(path), float(scale), fingerprint(tensors, metadata)
    return replace(model, unet=parts["unet"], text=parts["text"], lora=(*model.lora, merged))


def pairs(lora: LoRA | Sequence[LoRA]) -> list[tuple[str | os.PathLike, float]]:
    """Files with their scales, 1 where none is given; one alone need not be in a list. Raises MineditError."""
    if isinstance(lora, str | os.PathLike) or (
        isinstance(lora, tuple) and len(lora) == 2 and isinstance(lora[1], Real)
    ):
        lora = [lora]
    if isinstance(lora, Sequence):
        each = [(item, 1.0) if isinstance(item, str | os.PathLike) else item for item in lora]
        if all(isinstance(pair, Sequence) and len(pair) == 2 for pair in each):
            return [(file, scale) for file, scale in each]
    raise MineditError(
        f"lora is {shown(repr(lora))}, expected a file, or a list of files, or of files and their scales"
    )


def settings(model: Model) -> dict:
    """The LoRAs merged into a model, as JSON values for the settings of a picture; nothing where there are none."""
    return {"lora": [list(each) for each in model.lora]} if model.lora else {}


@dataclass(frozen=True)
class Change:
    """What a LoRA does to one layer; kernels are those of a convolution."""

    part: str  # unet or text
    layer: str  # with underscores for dots: our name of it, where the model has it
    name: str  # as the file has it
    factors: dict[str, Stored]  # by their names in products.py; not read yet
    alpha: Stored | float | None  # None: the rank
    root: bool = False  # rank-stabilised (arXiv:2312.03732): alpha / √rank

    @property
    def kind(self) -> str | None:
        return kind_of(self.factors)


@torch.no_grad()
def _merged(file: Path, weight: Tensor, change: Change, scale: float, broken: list[str]) -> Tensor:
    factors = {name: stored.read(torch.float32).to(weight.device) for name, stored in change.factors.items()}
    broken += [f"{change.name}.{name}" for name, factor in factors.items() if not factor.isfinite().all()]
    alpha, rank = change.alpha, rank_of(factors)
    if isinstance(alpha, Stored):
        alpha = alpha.read(torch.float64).item()
    if alpha is not None and not math.isfinite(alpha):
        raise MineditError(f"{file} has alpha {alpha} for {shown(change.name)}, expected a number; download it again")
    factor = 1.0 if alpha is None or rank is None else alpha / (math.sqrt(rank) if change.root else rank)
    return (weight.float() + scale * factor * delta(factors).view_as(weight)).to(weight.dtype)


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
    "an OFT": r".*\.oft_",
    "whole differences of weights, not a LoRA": r".*\.diff(_b)?$",
    "a LoRA of Stable Diffusion XL": r"lora_te2_|text_encoder_2\.",
    "a LoRA of Stable Diffusion 3, Flux or the like": r"(lora_)?transformer[._]|lora_unet_(double|single)_",
}

# lora_down, lora_A, lora_A.default, lora.down, to_q_lora.down, lora_linear_layer.down, and their other halves
NAME = re.compile(
    r"(.+?)(?:[._]lora(?:_linear_layer)?[._](down|mid|A|up|B)(?:\.\w+)?\.weight|\.(alpha)"
    r"|\.((?:hada|lokr)_(?:w[12](?:_[ab])?|t[12]))(?:\.\w+)?)"
)
HALF = {"down": "down", "A": "down", "mid": "mid", "up": "up", "B": "up"}
LONGEST = 400  # characters of a name
# Without text: the UNet. lora_te1 is what diffusers' own conversion to kohya's names says, for Stable Diffusion v1 too;
# CLIP's "text_model_" is left out by transformers 5, and doubled by some wrappers.
PREFIX = re.compile(
    r"(?:(?:lora|lycoris)_)?unet_|(?P<text>(?:(?:lora|lycoris)_te1?|text_encoder)_(?:text_model_)*)"
    r"|(?:lycoris_)?(?P<plain>(?:text_model_)*(?=encoder_layers_))|lycoris_"
)
OLD_UNET: Rules = ((r"_to_out$", r"_to_out_0"),)  # diffusers before 0.18 named its own attention processors
OLD_TEXT: Rules = ((r"_to_([qkv])$", r"_\1_proj"), (r"_to_out$", r"_out_proj"))


def _changes(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], cfg: UNetConfig) -> list[Change]:
    """The tensors of a file by layer. Raises MineditError for a tensor that is no part of a LoRA known here."""
    for what, mark in REFUSED.items():
        if found := [name for name in tensors if re.match(mark, name)]:
            raise MineditError(f"{path} looks like {what}: it has {first(found)}; {EXPECTED}")
    forms = {name: NAME.fullmatch(name) if len(name) <= LONGEST else None for name in tensors}
    unknown = [name for name, form in forms.items() if not form or (form[3] and math.prod(tensors[name].shape) != 1)]
    if len(unknown) == len(tensors):
        raise MineditError(f"{path} is no LoRA: it has {first(unknown)}; {EXPECTED}")
    if unknown:
        raise MineditError(f"{path} has {first(unknown)} besides a LoRA; {EXPECTED}")
    attends = {str(i) for i, attends in enumerate(reversed(cfg.attention)) if attends}
    rules = {"unet": (*OLD_UNET, *diffusers_unet_rules(cfg.blocks + 1, attends)), "text": OLD_TEXT}
    held: dict[str, dict[str, Stored]] = {}
    for name, form in forms.items():
        held.setdefault(form[1], {})[HALF.get(form[2]) or form[3] or form[4]] = tensors[name]
    alpha_of = alphas(path, metadata)
    changes = []
    for name, factors in held.items():
        plain = name.replace("base_model.model.", "", 1).replace(".processor.", ".").replace(".", "_")
        prefix = PREFIX.match(plain)
        part = "text" if prefix and prefix.lastgroup else "unet"
        layer = plain[prefix.end() :] if prefix else plain
        for pattern, new in rules[part]:
            layer = re.sub(pattern.replace(r"\.", "_"), new, layer).replace(".", "_")
        alpha, root = (factors.pop("alpha"), False) if "alpha" in factors else alpha_of(name)
        changes.append(Change(part, layer, name, factors, alpha, root))
    return changes


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
    halves = [change.name for change in changes if not whole(change.factors)]
    absent = [change.name for change in changes if change.layer not in layers[change.part]]
    if twice or halves:
        kind = next((change.kind for change in changes if change.name in halves and change.kind), "a LoRA")
        fault = "has one half only of" if kind == "a LoRA" else f"looks like {kind}, but lacks factors of"
        fault = f"names layers twice: {first(twice)}" if twice else f"{fault} {first(halves)}"
        raise MineditError(f"{path} {fault}; download it again")
    weights = {change.name: layers[change.part].get(change.layer, ("", None))[1] for change in changes}
    unlike = [
        f"{change.name} {' x '.join(str(list(factor.shape)) for factor in _ordered(change))} for {list(weight.shape)}"
        for change in changes
        if (weight := weights[change.name]) is not None and not _fits(change, weight)
    ]
    if absent or unlike:
        faults = [f"{model} lacks {first(absent)}"] if absent else []
        faults += [f"the shapes differ of {first(unlike)}"] if unlike else []
        raise MineditError(f"{path} looks like a LoRA of {_other(changes)}: {'; '.join(faults)}; {EXPECTED}")


def _ordered(change: Change) -> list[Stored]:
    """The factors, as a product is written: up before down."""
    return [change.factors[name] for name in sorted(change.factors, reverse=change.kind == "a LoRA")]


def _fits(change: Change, weight: Tensor) -> bool:
    """By shapes alone: nothing is read, nothing is made."""
    if not all(factor.dtype.is_floating_point and 0 not in factor.shape for factor in change.factors.values()):
        return False
    if change.kind == "a LoRA" and "mid" not in change.factors:
        up, down, own = (
            (*x.shape[:2],) if x.shape[2:] == (1, 1) else tuple(x.shape)
            for x in (change.factors["up"], change.factors["down"], weight)
        )
        return up == (own[0], down[0]) and down[1:] == own[1:]
    try:
        shape = delta({name: torch.empty(x.shape, device="meta") for name, x in change.factors.items()}).shape
    except (RuntimeError, ValueError, IndexError):  # of factors that do not fit each other
        return False
    return shape[0] == weight.shape[0] and shape.numel() == weight.numel() and 0 < len(shape) <= weight.ndim


def _other(changes: Sequence[Change]) -> str:
    """Which model a LoRA that does not fit may be of, by the width of what its layers read and by their depth."""
    downs = (change.factors["down"].shape for change in changes if "down" in change.factors)
    widths = {shape[1] for shape in downs if len(shape) > 1}
    if 2048 in widths or any("_transformer_blocks_1_" in change.layer for change in changes):
        return "Stable Diffusion XL"
    return "Stable Diffusion 2" if 1024 in widths else "another model"
