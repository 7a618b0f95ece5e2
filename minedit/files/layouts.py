"""The names in a file of weights -> the names of this project's modules, for checkpoint.py and lora.py.

The layout is recognised from the names. Every tensor is taken, is on the short list of EXTRAS, or is an error.
The names are those of CompVis/stable-diffusion (LDM) and huggingface/diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from minedit.config import MineditError, shown
from minedit.files.formats import EXPECTED
from minedit.files.stored import Stored

Tensors = dict[str, Stored]


@dataclass(frozen=True)
class Weights:
    layout: str  # in words, for messages
    parts: dict[str, Tensors]  # unet, vae: our names; text: "text_model." and CLIP's, as published
    extras: list[str]  # names of tensors that no model is made of


def recognise(path: Path, tensors: Tensors) -> Weights:
    """`tensors` of `path` by part. Raises MineditError for a layout not in LAYOUTS and for a name of no part."""
    layout = _layout(path, tensors)
    parts: dict[str, Tensors] = {part: {} for part in layout.prefixes}
    extras, unknown = [], []
    for name, tensor in tensors.items():
        part = next((part for part, prefix in layout.prefixes.items() if name.startswith(prefix)), None)
        if EXTRAS.fullmatch(name):
            extras.append(name)
        elif part is None:
            unknown.append(name)
        else:
            parts[part][name.removeprefix(layout.prefixes[part])] = tensor
    if unknown:
        raise MineditError(f"{path} looks like {layout.name}, but has {first(unknown)} besides; {EXPECTED}")
    for part, held in parts.items():
        parts[part] = layout.rename.get(part, dict)(held)
        if len(parts[part]) != len(held):
            raise MineditError(f"{path} looks like {layout.name}, but names tensors of its {part} twice; {EXPECTED}")
    return Weights(layout.name, parts, extras)


def first(names: Iterable[str]) -> str:
    """As in "7 tensors (a, b, c, ...)"."""
    names = list(names)
    few = ", ".join([shown(name) for name in names[:3]] + ["..."] * (len(names) > 3))
    return f"{len(names)} tensor{'s' * (len(names) != 1)} ({few})"


def _layout(path: Path, tensors: Tensors) -> Layout:
    for what, mark in REFUSED.items():
        if any(re.match(mark, name) for name in tensors):
            raise MineditError(f"{path} looks like {what}; {EXPECTED}")
    for layout in LAYOUTS:
        if any(name.startswith(layout.prefixes["unet"]) for name in tensors):
            return layout
    for what, mark in ALONE.items():
        if any(re.match(mark, name) for name in tensors):
            raise MineditError(f"{path} looks like {what} alone; {EXPECTED}")
    raise MineditError(f"{path} has a layout unknown here: {first(tensors)}; {EXPECTED}")


# Tensors that may lie beside the models, by their whole names.
EXTRAS = re.compile(
    r"model_ema\..+"  # the UNet's weights averaged over training
    r"|betas|alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod|sqrt_((recip|recipm1)_)?alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"  # the noise schedule; ddim.py computes its own
    r"|(cond_stage_model\.transformer\.|text_encoder/)(text_model\.)?embeddings\.position_ids"  # 0, 1, ... 76
)

# By a name that gives it away: what people have and this project cannot read.
REFUSED = {
    "Stable Diffusion 2 (its text encoder is OpenCLIP)": r"cond_stage_model\.model\.",
    "Stable Diffusion XL": r"conditioner\.embedders\.|unet/add_embedding\.",
    "Stable Diffusion 3 or Flux": r"model\.diffusion_model\.(joint|double)_blocks\.",
    "a ControlNet": r"control_model\.|controlnet_",
    "a LoRA, which is a change to a model and not a model": r"lora_|lycoris_|.*[._]lora[._]|.*\.(hada_|lokr_)",
}

# Parts of a model, where there is no UNet in either layout.
ALONE = {
    "a text encoder": r"(cond_stage_model\.transformer\.)?(text_model|embeddings|encoder\.layers)\.",
    "a VAE": r"(first_stage_model\.)?(encoder|decoder|quant_conv|post_quant_conv)\.",
    "the UNet of a diffusers folder": r"(down_blocks|up_blocks|mid_block)\.",
}


def _clip(tensors: Tensors) -> Tensors:
    """transformers 5 writes folders without the "text_model." that published files have."""
    return {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}


def _diffusers_unet(tensors: Tensors) -> Tensors:
    n = 1 + sum(bool(re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.norm1\.weight", name)) for name in tensors)
    attends = {name.split(".")[1] for name in tensors if re.match(r"up_blocks\.\d+\.attentions\.", name)}
    rules = diffusers_unet_rules(n, attends)
    return {_renamed(name, rules): tensor for name, tensor in tensors.items()}


def diffusers_unet_rules(n: int, attends: Collection[str]) -> Rules:
    """n: blocks of a level, on the way up. attends: the numbers of the up_blocks that have attention."""
    resnet = r"^(input_blocks\.\d+\.0|middle_block\.[02]|output_blocks\.\d+\.0)"
    return (
        (r"^time_embedding\.linear_1", "time_embed.0"),
        (r"^time_embedding\.linear_2", "time_embed.2"),
        (r"^conv_in", "input_blocks.0.0"),
        (r"^conv_norm_out", "out.0"),
        (r"^conv_out", "out.2"),
        (r"^down_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"input_blocks.{n * int(m[1]) + int(m[2]) + 1}.0"),
        (r"^down_blocks\.(\d+)\.attentions\.(\d+)", lambda m: f"input_blocks.{n * int(m[1]) + int(m[2]) + 1}.1"),
        (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{n * int(m[1]) + n}.0.op"),
        (r"^mid_block\.resnets\.0", "middle_block.0"),
        (r"^mid_block\.attentions\.0", "middle_block.1"),
        (r"^mid_block\.resnets\.1", "middle_block.2"),
        (r"^up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"output_blocks.{n * int(m[1]) + int(m[2])}.0"),
        (r"^up_blocks\.(\d+)\.attentions\.(\d+)", lambda m: f"output_blocks.{n * int(m[1]) + int(m[2])}.1"),
        (
            r"^up_blocks\.(\d+)\.upsamplers\.0",  # behind the attention, where the level has one
            lambda m: f"output_blocks.{n * int(m[1]) + n - 1}.{1 + (m[1] in attends)}",
        ),
        (rf"{resnet}\.norm1", r"\1.in_layers.0"),
        (rf"{resnet}\.conv1", r"\1.in_layers.2"),
        (rf"{resnet}\.time_emb_proj", r"\1.emb_layers.1"),
        (rf"{resnet}\.norm2", r"\1.out_layers.0"),
        (rf"{resnet}\.conv2", r"\1.out_layers.3"),
        (rf"{resnet}\.conv_shortcut", r"\1.skip_connection"),
    )


def _diffusers_vae(tensors: Tensors) -> Tensors:
    last = max((int(m[1]) for m in (re.match(r"decoder\.up_blocks\.(\d+)", name) for name in tensors) if m), default=0)
    rules: Rules = (
        (r"\.mid_block\.resnets\.0", ".mid.block_1"),
        (r"\.mid_block\.resnets\.1", ".mid.block_2"),
        (r"\.mid_block\.attentions\.0", ".mid.attn_1"),
        (r"\.attn_1\.group_norm", ".attn_1.norm"),
        (r"\.attn_1\.(to_q|query)\b", ".attn_1.q"),  # query, key, value, proj_attn: before diffusers 0.15
        (r"\.attn_1\.(to_k|key)\b", ".attn_1.k"),
        (r"\.attn_1\.(to_v|value)\b", ".attn_1.v"),
        (r"\.attn_1\.(to_out\.0|proj_attn)\b", ".attn_1.proj_out"),
        (r"\.down_blocks\.(\d+)\.resnets\.(\d+)", r".down.\1.block.\2"),
        (r"\.down_blocks\.(\d+)\.downsamplers\.0", r".down.\1.downsample"),
        (r"\.up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f".up.{last - int(m[1])}.block.{m[2]}"),
        (r"\.up_blocks\.(\d+)\.upsamplers\.0", lambda m: f".up.{last - int(m[1])}.upsample"),
        (r"\.conv_norm_out", ".norm_out"),
        (r"\.conv_shortcut", ".nin_shortcut"),
    )
    ours = {_renamed(name, rules): tensor for name, tensor in tensors.items()}
    linear = re.compile(r".+\.mid\.attn_1\.(q|k|v|proj_out)\.weight")  # [C, C]; LDM's is a convolution
    return {name: _convolution(x) if linear.fullmatch(name) else x for name, x in ours.items()}


def _convolution(x: Stored) -> Stored:
    return x if len(x.shape) != 2 else replace(x, shape=(*x.shape, 1, 1), stride=(*x.stride, 1, 1))  # [C, C, 1, 1]


Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


def _renamed(name: str, rules: Rules) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


@dataclass(frozen=True)
class Layout:
    name: str
    prefixes: dict[str, str]  # of unet, vae, text
    rename: dict[str, Callable[[Tensors], Tensors]]  # of those whose names then still differ


LAYOUTS = (
    Layout(
        "an LDM file",
        {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model.transformer."},
        {"text": _clip},
    ),
    Layout(
        "a diffusers folder",
        {"unet": "unet/", "vae": "vae/", "text": "text_encoder/"},
        {"unet": _diffusers_unet, "vae": _diffusers_vae, "text": _clip},
    ),
)
