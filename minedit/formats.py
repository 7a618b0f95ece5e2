"""A file or folder of weights -> tensors by the names in it, and its metadata. What the names mean: layouts.py.

The container is recognised from the first bytes, never from the file's own name. Pickles are read by torch's
weights-only unpickler, which runs no code of the file's choosing.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minedit.config import MineditError
from minedit.layouts import EXPECTED

Contents = tuple[dict[str, Tensor], dict[str, str]]  # tensors, metadata


def read(path: Path) -> Contents:
    """Raises MineditError where `path` is absent, unreadable, damaged, or no weights at all."""
    if not path.exists():
        raise MineditError(f"{path} does not exist; {EXPECTED}")
    try:
        return _folder(path) if path.is_dir() else _file(path)
    except OSError as error:
        raise MineditError(f"{path} cannot be read ({error.strerror or _line(error)}); {EXPECTED}") from error


def read_file(path: Path, expected: str) -> Contents:
    """As `read`, for weights of another kind than a model; `expected` is what its errors ask for."""
    try:
        return read(path)
    except MineditError as error:
        raise MineditError(str(error).replace(EXPECTED, expected)) from error


def _file(path: Path) -> Contents:
    with path.open("rb") as file:
        head = file.read(512)
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise MineditError(f"{path} is a web page, not weights; download it again, logged in if the site asks for it")
    if head.startswith(b"version https://git-lfs"):
        raise MineditError(f"{path} is a Git LFS pointer, not weights; fetch the file with `git lfs pull`")
    if head[8:9] == b"{":
        return _safetensors(path)
    if head.startswith((b"PK\x03\x04", b"\x80")):  # torch's zip files, and those from before torch 1.6
        return _torch(path, mmap=head.startswith(b"PK")), {}
    raise MineditError(f"{path} begins with {head[:8]!r}, neither safetensors nor a torch file; {EXPECTED}")


def _safetensors(path: Path) -> Contents:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise MineditError(f"{path} is damaged or cut short ({_line(error)}); download it again") from error


def _torch(path: Path, mmap: bool) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in INERT]):
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle can raise any
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise MineditError(f"{path} asks for {asked[1]}, and only tensors are loaded; {EXPECTED}") from error
        raise MineditError(f"{path} is damaged or cut short ({_line(error)}); download it again") from error
    if isinstance(data, dict) and "state_dict" in data:
        beside = sorted(str(key) for key in data if key not in BOOKKEEPING)
        if beside:
            raise MineditError(f"{path} has {', '.join(beside[:3])} beside its state_dict; {EXPECTED}")
        data = data["state_dict"]
    if not isinstance(data, dict) or not all(isinstance(x, Tensor) and isinstance(n, str) for n, x in data.items()):
        raise MineditError(f"{path} holds other things than named tensors; {EXPECTED}")
    return data


def _folder(path: Path) -> Contents:
    """Names begin with "unet/", "vae/" or "text_encoder/"; the metadata are those of the UNet's file."""
    absent = [folder for folder in FOLDERS if not (path / folder).is_dir()]
    if absent:
        found = ", ".join(sorted(item.name for item in path.iterdir())[:6]) or "nothing"
        raise MineditError(f"{path} is a folder without {', '.join(absent)} (it has {found}); {EXPECTED}")
    tensors: dict[str, Tensor] = {}
    about: dict[str, dict[str, str]] = {}
    for folder, files in FOLDERS.items():
        file = next((path / folder / name for name in files if (path / folder / name).is_file()), None)
        if file is None:
            raise MineditError(f"{path / folder} has none of {', '.join(files)}; download the weights too")
        held, about[folder] = _file(file)
        tensors |= {f"{folder}/{name}": tensor for name, tensor in held.items()}
    return tensors, about["unet"]


def _line(error: Exception) -> str:
    """The line of its message that says what happened; torch puts a paragraph of advice before it."""
    lines = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()
    return (lines or [type(error).__name__])[0][:120]


class Inert:
    """Stands for an object of Lightning's bookkeeping, which is read past without code of Lightning or numpy."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


INERT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)

# What PyTorch Lightning keeps beside the weights.
BOOKKEEPING = (
    *("state_dict", "epoch", "global_step", "pytorch-lightning_version", "callbacks", "optimizer_states"),
    *("lr_schedulers", "loops", "native_amp_scaling_state", "amp_scaling_state", "hparams_name", "hyper_parameters"),
)

# The files of a diffusers folder; the first that is there is read.
_NETWORK = tuple(f"diffusion_pytorch_model{end}" for end in (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin"))
_CLIP = ("model.safetensors", "pytorch_model.bin", "model.fp16.safetensors", "pytorch_model.fp16.bin")
FOLDERS = {"unet": _NETWORK, "vae": _NETWORK, "text_encoder": _CLIP}
