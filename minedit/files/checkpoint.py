"""Files of weights <-> a Model: the public `load` and `save`, with formats.py for files and layouts.py for names.

Modules are built without memory, then take the file's tensors, every one of them and no other. A missing name, a
further name or another shape is an error that says which, never a warning.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from minedit.attention.choose import backend, name_of
from minedit.attention.rules import Attend
from minedit.config import IP2P, SD14, Config, MineditError, shown
from minedit.files.declared import honoured
from minedit.files.formats import EXPECTED, FOLDERS, named, read
from minedit.files.layouts import LAYOUTS, Tensors, Weights, recognise
from minedit.files.lora import LoRA, merge, pairs
from minedit.files.sizes import counted, misfits
from minedit.files.stored import Files, fingerprint
from minedit.files.torchnames import DTYPES as DTYPES
from minedit.files.torchnames import torch_device, torch_dtype
from minedit.files.vae import read_vae
from minedit.files.variant import VARIANTS, vary
from minedit.files.written import CONFIG_KEY, public, write
from minedit.image import place
from minedit.settings import Setting
from minedit.speed.fast import fast as lay_out
from minedit.stack.model import Model, check_model
from minedit.stack.text import TextEncoder
from minedit.stack.tokens import Tokenizer
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

FAST = Setting("", bool)
# The UNet's tensors whose second size tells models apart: input channels, and the width of the text's embeddings.
TELLING = ("input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")


@dataclass(frozen=True)
class Found:
    """What a file of weights holds, before any of it is read."""

    layout: str  # in words
    config: Config
    modules: dict[str, nn.Module]  # unet, vae, text: without memory
    tensors: dict[str, Tensors]  # of each module, by the names in its state dict; every one of them
    extras: list[str]  # tensors that no model is made of
    notes: tuple[str, ...] = ()  # what its user should know


def examine(path: Path, vae: str | os.PathLike | None = None) -> Found:
    """Raises MineditError for what is missing, damaged or of another model. vae: a file or folder of another VAE."""
    path = named(path)
    tensors, metadata = read(path, [part for part in FOLDERS if part != "vae" or vae is None])
    weights = recognise(path, tensors)
    config = honoured(path, _config(path, weights, metadata), metadata, weights.extras)
    if vae is not None:
        weights.parts["vae"], scale = read_vae(vae)
        config = replace(config, latent_scale=scale or config.latent_scale)
    absent = [what for part, what in (("vae", "VAE"), ("text", "text encoder")) if not weights.parts[part]]
    if absent == ["VAE"]:
        raise MineditError(f"{path} has no VAE; name one: --vae FILE, or load(vae=...)")
    if absent:
        fault = f"{path} looks like {weights.layout} but is not {config.name}: it has no {' and no '.join(absent)}"
        raise MineditError(f"{fault}; {EXPECTED}")
    modules = _build(path, config)
    fitted = _fitted(path, weights, config, modules)
    ours, held = (dict(zip(weights.parts, each, strict=True)) for each in (modules, fitted))
    notes = weights.notes
    if config.unet.guidance_dim:
        notes += (f"{config.name} draws in 4 to 12 steps: --steps 4, guidance 8 as it was trained",)
    return Found(weights.layout, config, ours, held, list(weights.extras), notes)


def load(
    path: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    attention: str | Attend = "auto",
    lora: LoRA | Sequence[LoRA] = (),
    fast: bool = False,
    vae: str | os.PathLike | None = None,
) -> Model:
    """The embedded model, a variant of it, or a .safetensors, a .ckpt or a diffusers folder of Stable Diffusion v1.

    Args:
        path: a file or folder, or the name of a variant, one of `variant.VARIANTS`; None is the embedded model.
        device: torch's, or its name: "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32", "float16", "bfloat16", or torch's of that name: of weights and of what is computed.
        attention: a name, "module:function", or the function itself: see `attention.choose.backend`.
        lora: files, or files and scales, merged in this order (`lora.merge`).
        fast: made for speed (`fast.fast`).
        vae: a file or folder whose VAE is taken instead.

    Raises:
        MineditError: what is missing, damaged, of another model, or cannot be used on this machine.

    On a CPU weights stay in a large file of the same dtype, whose pages come into memory at their first use; otherwise
    the peak is the model in `dtype` and little more. Replacing or deleting that file is safe. Do not write into it nor
    cut it short: a run that begins then is an error, one that goes on ends the process. `Model.notes`: what its user
    should know.
    """
    kind, device, fast = torch_dtype(dtype), torch_device(device), FAST.check("fast", fast)
    lora = pairs(lora)
    if isinstance(path, str) and path in VARIANTS:
        model = vary(load(None, device, dtype, attention, vae=vae), weights_folder() / VARIANTS[path])
        return _finished(model, lora, fast)
    attend = backend(attention, device)
    found = examine(_embedded() if path is None else path, vae)
    with Files() as files:
        for part, module in found.modules.items():
            state = {name: stored.read(kind, files).to(device) for name, stored in found.tensors[part].items()}
            module.load_state_dict(state, strict=True, assign=True)
            module.to(device).eval().requires_grad_(False)
        weights = fingerprint(found.tensors, files)
        kept = files.kept() if device.type == "cpu" else ()
    parts, told = found.modules.values(), {"notes": found.notes, "weights": weights, "kept": kept}
    model = Model(*parts, tokenizer(found.config), found.config, attend, name_of(attention), device, kind, **told)
    return _finished(model, lora, fast)


def _finished(model: Model, lora: list[tuple[str | os.PathLike, float]], fast: bool) -> Model:
    for file, scale in lora:
        model = merge(model, file, scale)
    return lay_out(model) if fast else model


def save(model: Model, path: str | os.PathLike, dtype: str | torch.dtype | None = None) -> None:
    """Writes an LDM-layout .safetensors with the config in its metadata, in the model's dtype unless another is given.

    The file appears under its name complete or not at all. Raises MineditError where it cannot be written.
    """
    check_model(model)
    path = place(path)
    model.check_files()
    kind = model.dtype if dtype is None else torch_dtype(dtype)
    prefixes = LAYOUTS[0].prefixes
    parts = {"unet": model.unet, "vae": model.vae, "text": model.text}
    tensors = {
        prefixes[part] + public(module, name): tensor.detach().to("cpu", kind)
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }

    write(tensors, path, {CONFIG_KEY: model.config.to_json(), "format": "pt"})


def weights_folder() -> Path:
    """The embedded weights: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "weights"
    return installed if installed.is_dir() else package.parent / "weights"


def tokenizer(config: Config) -> Tokenizer:
    """The tokenizer whose ids `config.text` embeds. Raises MineditError where neither of ours is."""
    size = config.text.vocab_size
    folder = "tokenizer" if size == SD14.text.vocab_size else "tokenizer-picturebook"
    found = Tokenizer(weights_folder() / folder, config.text.context_length)
    if (found.size, found.bos, found.eos) != (size, config.text.bos, config.text.eos):
        raise MineditError(
            f"{config.name} embeds {size} tokens, {folder} has {found.size}: checkpoint and minedit differ in version"
        )
    return found


def _embedded() -> Path:
    path = weights_folder() / "picturebook.safetensors"
    if not path.is_file():
        raise MineditError(f"the embedded checkpoint {path} is not there; reinstall minedit or name another checkpoint")
    return path


def _config(path: Path, weights: Weights, metadata: dict[str, str]) -> Config:
    """The file's own config, if it has one; else Stable Diffusion v1's or InstructPix2Pix's, by the first layer.

    Of either with fewer layers, if so.
    """
    if CONFIG_KEY in metadata:
        try:
            config = Config.from_json(metadata[CONFIG_KEY])
        except MineditError as error:
            raise MineditError(f"{path}: {error}") from error
        layers = sum(part.blocks * len(part.channels) for part in (config.unet, config.vae)) + config.text.layers
        count = sum(map(len, weights.parts.values()))
        if 8 * layers > count:  # else a few bytes could ask for a model that takes hours to build
            raise MineditError(f"{path}: its config has {layers} layers, too many for {count} tensors")
        return config
    unet = weights.parts["unet"]
    inputs, width = (unet[name].shape[1] if name in unet and len(unet[name].shape) > 1 else None for name in TELLING)
    if width in (1024, 2048):
        what = "Stable Diffusion 2" if width == 1024 else "Stable Diffusion XL"
        raise MineditError(f"{path} looks like {what}: its UNet reads text of width {width}, expected 768 (SD v1)")
    known = {None: SD14, **{config.unet.in_channels: config for config in (SD14, IP2P)}}
    if inputs not in known:
        what = "an inpainting model" if inputs == 9 else "another model"
        raise MineditError(
            f"{path} is {what}: its UNet takes {inputs} channels, expected 4 (SD v1) or 8 (InstructPix2Pix)"
        )
    return counted(known[inputs], unet)


def _build(path: Path, config: Config) -> tuple[UNet, VAE, TextEncoder]:
    """The modules on the meta device: names and shapes, no memory."""
    try:
        with torch.device("meta"):
            return UNet(config.unet), VAE(config.vae), TextEncoder(config.text)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        reason = shown(str(error).split("\n")[0])
        raise MineditError(f"{path}: the config in it describes no model ({reason}); download it again") from error


def _fitted(path: Path, weights: Weights, config: Config, modules: tuple[nn.Module, ...]) -> list[Tensors]:
    """The file's tensors by the names of each module's state dict. Raises MineditError unless they are its very own."""
    found, wanted, fitted = {}, {}, []
    for (part, tensors), module in zip(weights.parts.items(), modules, strict=True):
        ours = {public(module, name): name for name in module.state_dict()}
        wanted |= {f"{part}.{public(module, name)}": x.shape for name, x in module.state_dict().items()}
        found |= {f"{part}.{name}": tensor for name, tensor in tensors.items()}
        fitted.append({ours[name]: tensor for name, tensor in tensors.items() if name in ours})
    if faults := misfits(found, wanted):
        raise MineditError(f"{path} looks like {weights.layout} but is not {config.name}: it {faults}")
    return fitted
