"""The names in a file of weights -> the names of this project's modules, for checkpoint.py and lora.py.

The layout is recognised from the names. Every tensor is taken, is on the short list of EXTRAS, or is an error.
The names are those of CompVis/stable-diffusion (LDM) and huggingface/diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minedit.config import SD14, MineditError, shown
from minedit.files.formats import EXPECTED
from minedit.files.stored import Stored
from minedit.stack.unet import UNet

Tensors = dict[str, Stored]


@dataclass(frozen=True)
class Weights:
    layout: str  # in words, for messages
    parts: dict[str, Tensors]  # unet, vae: our names; text: "text_model." and CLIP's, as published
    extras: Tensors  # that no model is made of, by their names in the file
    notes: tuple[str, ...] = ()  # what its user should know


def recognise(path: Path, tensors: Tensors) -> Weights:
    """`tensors` of `path` by part. Raises MineditError for a layout not in LAYOUTS and for a name of no part."""
    notes = ()
    if not any(name.startswith(LAYOUTS[0].prefixes["unet"]) for name in tensors):
        tensors, averaged = _averaged(tensors)
        notes = (f"{path} has the UNet's average over training only; that one is read",) * averaged
    layout = _layout(path, tensors)
    parts: dict[str, Tensors] = {part: {} for part in layout.prefixes}
    extras, unknown = {}, []
    for name, tensor in tensors.items():
        part = next((part for part, prefix in layout.prefixes.items() if name.startswith(prefix)), None)
        if EXTRAS.fullmatch(name):
            extras[name] = tensor
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
    return Weights(layout.name, parts, extras, notes)


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
    found = [what for what, mark in ALONE.items() if any(re.match(mark, name) for name in tensors)]
    if found:
        how = "without a UNet" if len(found) > 1 else "alone"
        raise MineditError(f"{path} looks like {' and '.join(found)} {how}; {EXPECTED}")
    raise MineditError(f"{path} has a layout unknown here: {first(tensors)}; {EXPECTED}")


def _averaged(tensors: Tensors) -> tuple[Tensors, bool]:
    """With the names of the UNet for those of its average, which have no dots; whether there are any."""
    prefix, ours = "model_ema.diffusion_model", LAYOUTS[0].prefixes["unet"]
    if not any(name.startswith(prefix) for name in tensors):
        return tensors, False
    with torch.device("meta"):
        names = {prefix + name.replace(".", ""): ours + name for name in UNet(SD14.unet).state_dict()}
    return {names.get(name, name): tensor for name, tensor in tensors.items()}, True


def vae_of(path: Path, tensors: Tensors) -> Tensors:
    """The VAE in a file of its own, of either layout, or in a model's. Raises MineditError where there is none."""
    for prefix in ("first_stage_model.", "vae/", ""):
        held = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
        held = {name: x for name, x in held.items() if not re.match(r"loss\.|model_ema\.", name)}
        if "decoder.conv_in.weight" in held:
            theirs = any(name.startswith("decoder.up_blocks.") for name in held)
            return _diffusers_vae(held) if theirs else _ldm_vae(held)
    raise MineditError(f"{path} holds no VAE: it has {first(tensors)}; {EXPECTED_VAE}")


EXPECTED_VAE = "expected a VAE of Stable Diffusion v1: a file by LDM's or diffusers' names, or its folder"

# Tensors that may lie beside the models, by their whole names.
EXTRAS = re.compile(
    r"model_ema\..+"  # the UNet's weights averaged over training
    r"|embedding_manager\..+"  # of textual inversion
    r"|first_stage_model\.(loss|model_ema)\..+"  # of the VAE's own training
    r"|cond_stage_model\.(transformer\.)?(logit_scale|text_projection(\.weight)?)"  # of CLIP, for its image encoder
    r"|text_encoder/(logit_scale|text_projection\.weight)"
    r"|scale_factor|logvar|lvlb_weights"  # declared.py reads the first
    r"|betas|alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod|sqrt_((recip|recipm1)_)?alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"  # the noise schedule; ddim.py computes its own
    r"|(cond_stage_model\.transformer\.|text_encoder/)(text_model\.)?embeddings\.position_ids"  # 0, 1, ... 76
)

# By a name that gives it away: what people have and this project cannot read.
REFUSED = {
    "a model of v-prediction or of another noise schedule": r"(v_pred|ztsnr)$|edm_(vpred|eps|mean|std)\b",
    "a motion module of AnimateDiff, which is a part of a UNet and not a model": r".*\bmotion_modules\.",
    "an IP-Adapter": r"(image_proj|ip_adapter)\.",
    "an embedding of textual inversion": r"(emb_params|string_to_param|clip_[lg])$",
    "Stable Diffusion 2 (its text encoder is OpenCLIP)": r"cond_stage_model\.model\.",
    "Stable Diffusion XL": r"conditioner\.embedders\.|unet/add_embedding\.",
    "Stable Diffusion 3 or Flux": r"model\.diffusion_model\.(joint|double)_blocks\.",
    "a ControlNet, which steers a model and is none (--control)": r"control_model\.|controlnet_",
    "a LoRA, which is a change to a model and not a model": r"lora_|lycoris_|.*[._]lora[._]|.*\.(hada_|lokr_)",
}

# Parts of a model, where there is no UNet in either layout.
ALONE = {
    "a text encoder": r"(cond_stage_model\.transformer\.)?(text_model|embeddings|encoder\.layers)\.",
    "a VAE": r"(first_stage_model\.)?(encoder\.(?!layers\.)|decoder\.|quant_conv\.|post_quant_conv\.)",
    "the UNet of a diffusers folder": r"(down_blocks|up_blocks|mid_block)\.",
}


def _clip(tensors: Tensors) -> Tensors:
    """transformers 5 writes folders without the "text_model." that published files have."""
    return {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}


def blocks_up(tensors: Tensors) -> int:
    """Blocks of a level on the way up, of a UNet by diffusers' names: one more than on the way down."""
    return 1 + sum(bool(re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.norm1\.weight", name)) for name in tensors)


def _diffusers_unet(tensors: Tensors) -> Tensors:
    attends = {name.split(".")[1] for name in tensors if re.match(r"up_blocks\.\d+\.attentions\.", name)}
    rules = diffusers_unet_rules(blocks_up(tensors), attends)
    return {renamed(name, rules): tensor for name, tensor in tensors.items()}


def diffusers_unet_rules(n: int, attends: Collection[str]) -> Rules:
    """n: blocks of a level, on the way up. attends: the numbers of the up_blocks that have attention."""
    resnet = r"^(input_blocks\.\d+\.0|middle_block\.[02]|output_blocks\.\d+\.0)"
    return (
        (r"^time_embedding\.cond_proj", "time_embed.cond_proj"),  # of latent consistency models
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
        (r"\.down_blocks\.(\d+)\.resnets\.(\d+)", r".down.\1.block.\2"),
        (r"\.down_blocks\.(\d+)\.downsamplers\.0", r".down.\1.downsample"),
        (r"\.up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f".up.{last - int(m[1])}.block.{m[2]}"),
        (r"\.up_blocks\.(\d+)\.upsamplers\.0", lambda m: f".up.{last - int(m[1])}.upsample"),
        (r"\.conv_norm_out", ".norm_out"),
        (r"\.conv_shortcut", ".nin_shortcut"),
    )
    return _ldm_vae({renamed(name, rules): tensor for name, tensor in tensors.items()})


def _ldm_vae(tensors: Tensors) -> Tensors:
    """Some LDM files have the VAE's attention as diffusers names it."""
    rules: Rules = (
        (r"\.attn_1\.group_norm", ".attn_1.norm"),
        (r"\.attn_1\.(to_q|query)\b", ".attn_1.q"),  # query, key, value, proj_attn: before diffusers 0.15
        (r"\.attn_1\.(to_k|key)\b", ".attn_1.k"),
        (r"\.attn_1\.(to_v|value)\b", ".attn_1.v"),
        (r"\.attn_1\.(to_out\.0|proj_attn)\b", ".attn_1.proj_out"),
    )
    ours = {renamed(name, rules): tensor for name, tensor in tensors.items()}
    linear = re.compile(r".+\.mid\.attn_1\.(q|k|v|proj_out)\.weight")  # [C, C]; LDM's is a convolution
    return {name: _convolution(x) if linear.fullmatch(name) else x for name, x in ours.items()}


def _convolution(x: Stored) -> Stored:
    return x if len(x.shape) != 2 else replace(x, shape=(*x.shape, 1, 1), stride=(*x.stride, 1, 1))  # [C, C, 1, 1]


Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


def renamed(name: str, rules: Rules) -> str:
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
        {"vae": _ldm_vae, "text": _clip},
    ),
    Layout(
        "a diffusers folder",
        {"unet": "unet/", "vae": "vae/", "text": "text_encoder/"},
        {"unet": _diffusers_unet, "vae": _diffusers_vae, "text": _clip},
    ),
)
