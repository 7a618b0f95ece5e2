"""Files of weights <-> a Model: the public `load` and `save`, with formats.py for bytes and layouts.py for names.

Modules are built without memory, then take the file's tensors, every one of them and no other. A missing name, a
further name or another shape is an error that says which, never a warning.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from minedit.attention import backend
from minedit.config import IP2P, SD14, Config, MineditError
from minedit.formats import read
from minedit.layouts import LAYOUTS, Weights, first, recognise
from minedit.lora import merge
from minedit.model import Model
from minedit.text import TextEncoder
from minedit.tokens import Tokenizer
from minedit.unet import UNet
from minedit.vae import VAE

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CONFIG_KEY = "minedit.config"  # in the metadata of a safetensors file: Config.to_json


def load(
    path: str | os.PathLike | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str = "auto",
    lora: Sequence[tuple[str | os.PathLike, float]] = (),
) -> Model:
    """The embedded model, or that of a .safetensors, a .ckpt or a diffusers folder of Stable Diffusion v1.

    dtype: float32, float16 or bfloat16. attention: see `attention.backend`. lora: files and scales, merged in this
    order (`lora.merge`). Raises MineditError, in one line, for what is missing, damaged, of another model, or cannot be
    used on this machine.
    """
    kind, place, attend = _dtype(dtype), torch_device(device), backend(attention)
    path = _embedded() if path is None else Path(path).expanduser()
    tensors, metadata = read(path)
    weights = recognise(path, tensors)
    config = _config(path, weights, metadata)
    unet, vae, text = modules = _build(path, config)
    for module, fitted in zip(modules, _fitted(path, weights, config, modules), strict=True):
        # Copied also where nothing changes: a view of the file's pages is not aligned, and sums then round otherwise.
        cast = {name: tensor.to(place, kind, copy=True) for name, tensor in fitted.items()}
        module.load_state_dict(cast, strict=True, assign=True)
        module.to(place).eval().requires_grad_(False)
    model = Model(unet, vae, text, tokenizer(config), config, attend, attention, place, kind)
    for file, scale in lora:
        model = merge(model, file, scale)
    return model


def save(model: Model, path: str | os.PathLike, dtype: str | None = None) -> None:
    """Writes an LDM-layout .safetensors with the config in its metadata, in the model's dtype unless another is given.

    The file appears under its name complete or not at all. Raises MineditError where it cannot be written.
    """
    path = Path(path).expanduser()
    kind = model.dtype if dtype is None else _dtype(dtype)
    prefixes = LAYOUTS[0].prefixes
    parts = {"unet": model.unet, "vae": model.vae, "text": model.text}
    tensors = {
        prefixes[part] + _public(module, name): tensor.detach().to("cpu", kind).contiguous()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # the user's; save_file's own is private
        save_file(tensors, partial, {CONFIG_KEY: model.config.to_json(), "format": "pt"})
        partial.chmod(mode)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise MineditError(f"{path} cannot be written ({error}); choose another place") from error
    finally:
        partial.unlink(missing_ok=True)


def weights_folder() -> Path:
    """The embedded weights: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parent
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


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise MineditError(f"dtype {name!r} is unknown; expected {', '.join(DTYPES)}")
    return DTYPES[name]


def torch_device(name: str) -> torch.device:
    try:
        torch.zeros(1, device=name).cpu()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:80]
        raise MineditError(f'device {name!r} cannot be used here ({reason}); expected "cpu" or one present') from error


def _config(path: Path, weights: Weights, metadata: dict[str, str]) -> Config:
    """The file's own config, if it has one; else Stable Diffusion v1's or InstructPix2Pix's, by the first layer."""
    if CONFIG_KEY in metadata:
        try:
            return Config.from_json(metadata[CONFIG_KEY])
        except MineditError as error:
            raise MineditError(f"{path}: {error}") from error
    stem = weights.parts["unet"].get("input_blocks.0.0.weight")
    inputs = stem.shape[1] if stem is not None and stem.ndim == 4 else SD14.unet.in_channels
    known = {config.unet.in_channels: config for config in (SD14, IP2P)}
    if inputs not in known:
        raise MineditError(f"{path}: its UNet takes {inputs} channels, expected 4 (SD v1) or 8 (InstructPix2Pix)")
    return known[inputs]


def _build(path: Path, config: Config) -> tuple[UNet, VAE, TextEncoder]:
    """The modules on the meta device: names and shapes, no memory."""
    try:
        with torch.device("meta"):
            return UNet(config.unet), VAE(config.vae), TextEncoder(config.text)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise MineditError(f"{path}: the config in it describes no model ({error}); download it again") from error


def _fitted(path: Path, weights: Weights, config: Config, modules: tuple[nn.Module, ...]) -> list[dict[str, Tensor]]:
    """The file's tensors by the names of each module's state dict. Raises MineditError unless they are its very own."""
    missing, besides, unlike, fitted = [], [], [], []
    for (part, found), module in zip(weights.parts.items(), modules, strict=True):
        wanted = {_public(module, name): (name, tensor.shape) for name, tensor in module.state_dict().items()}
        missing += [f"{part}.{name}" for name in wanted if name not in found]
        besides += [f"{part}.{name}" for name in found if name not in wanted]
        for name in wanted.keys() & found.keys():
            shape, kind, expected = list(found[name].shape), found[name].dtype, list(wanted[name][1])
            if shape != expected or not kind.is_floating_point:
                unlike.append(f"{part}.{name} {shape} {str(kind).removeprefix('torch.')} for {expected}")
        fitted.append({wanted[name][0]: found[name] for name in wanted if name in found})
    faults = [
        f"{fault} {first(sorted(names))}"
        for fault, names in (("lacks", missing), ("has besides", besides), ("differs in the shape of", unlike))
        if names
    ]
    if faults:
        raise MineditError(f"{path} looks like {weights.layout} but is not {config.name}: it {'; '.join(faults)}")
    return fitted


def _public(module: nn.Module, name: str) -> str:
    """A name as files have it: transformers 5 dropped CLIP's "text_model.", which every published file keeps."""
    if not isinstance(module, TextEncoder):
        return name
    return "text_model." + name.removeprefix("clip.").removeprefix("text_model.")
