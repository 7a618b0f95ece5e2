"""A file or folder of weights -> its tensors by the names in it, not read yet, and its metadata.

The container is recognised from the first bytes, never from the file's own name. What the names mean: layouts.py.
"""

import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError, safe_open

from minedit.config import LIMIT, MineditError, foreign_json, shown
from minedit.files import torchfile
from minedit.files.stored import Refused, Stored, contiguous

Contents = tuple[dict[str, Stored], dict[str, str]]  # tensors, metadata
HEADER = 100_000_000  # bytes of a safetensors file's header, at most, as its format says
EXPECTED = "expected an LDM .safetensors or .ckpt of Stable Diffusion v1, or a diffusers folder"


def named(path: object, expected: str = EXPECTED) -> Path:
    """The path that a user names, with its ~. Raises MineditError for what names none, or nothing that is there."""
    if not isinstance(path, str | os.PathLike):
        raise MineditError(f"{shown(repr(path))} is no path; {expected}")
    try:
        found = Path(path).expanduser()
        if found.exists():
            return found
    except (OSError, RuntimeError, ValueError) as error:  # no permission, too long a name, no such user, a zero byte
        reason = getattr(error, "strerror", None) or error
        raise MineditError(f"{shown(path, 300)} cannot be read ({reason}); {expected}") from error
    raise MineditError(f"{shown(found, 300)} does not exist; {expected}")


def read(path: Path, needed: Sequence[str] = ("unet", "vae", "text_encoder")) -> Contents:
    """Raises MineditError where `path` is absent, unreadable, damaged, or no weights at all.

    needed: what a folder must hold.
    """
    path = named(path)
    try:
        return _folder(path, needed) if path.is_dir() else _whole(path)
    except OSError as error:
        raise MineditError(f"{path} cannot be read ({error.strerror or _line(error)}); {EXPECTED}") from error


def read_other(path: Path, expected: str) -> Contents:
    """As `read`, of weights of another kind than a model; `expected` is what its errors ask for.

    Raises MineditError for a tensor with more numbers than are stored, too.
    """
    try:
        stored, metadata = read(path)
    except MineditError as error:
        raise MineditError(str(error).replace(EXPECTED, expected)) from error
    repeated = [name for name, tensor in stored.items() if tensor.repeats]
    if repeated:
        tensor = stored[repeated[0]]
        what = f"{shown(repeated[0])} of shape {list(tensor.shape)}"
        raise MineditError(f"{path} has fewer numbers than {what} needs; {expected}")
    return stored, metadata


def _whole(path: Path) -> Contents:
    """Of one file, or of those that an index of shards lists."""
    return _shards(path) if re.search(r"\.index(\.fp16)?\.json$", path.name) else _file(path)


def _file(path: Path) -> Contents:
    if not path.is_file():
        raise MineditError(f"{path} is neither a file nor a folder; {EXPECTED}")
    with path.open("rb") as file:
        head = file.read(512)
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise MineditError(f"{path} is a web page, not weights; download it again, logged in if the site asks for it")
    if head.startswith(b"version https://git-lfs"):
        raise MineditError(f"{path} is a Git LFS pointer, not weights; fetch the file with `git lfs pull`")
    if head.startswith(b"GGUF"):
        raise MineditError(f"{path} is a GGUF file, whose weights are quantised; {EXPECTED}")
    if head[257:262] == b"ustar":
        raise MineditError(f"{path} is a tar archive, as the first versions of torch wrote; {EXPECTED}")
    try:
        if head[8:9] == b"{":
            return _safetensors(path)
        if head.startswith(b"PK\x03\x04"):
            return torchfile.zipped(path), {}
        if head.startswith(b"\x80"):
            return torchfile.legacy(path), {}
    except Refused as error:
        raise MineditError(f"{path} {error}; {EXPECTED}") from error
    except DAMAGE as error:
        raise MineditError(f"{path} is damaged or cut short ({_line(error)}); download it again") from error
    raise MineditError(f"{path} begins with {head[:8]!r}, neither safetensors nor a torch file; {EXPECTED}")


def _line(error: Exception) -> str:
    if isinstance(error, LookupError | TypeError):  # whose text says nothing of the file
        return "its parts do not fit together"
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0])


def _safetensors(path: Path) -> Contents:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER:
            raise ValueError(f"its header has {size} bytes, expected {HEADER} at most")
        header = foreign_json(file.read(size))
    with safe_open(path, "np") as checked:  # that the header describes the file, byte for byte
        metadata = checked.metadata() or {}
    tensors = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        if about["dtype"] not in DTYPES:
            raise Refused(f"has numbers of the type {shown(about['dtype'])} in {shown(name)}")
        shape = tuple(about["shape"])
        offset = 8 + size + about["data_offsets"][0]
        tensors[name] = Stored(path, offset, DTYPES[about["dtype"]], shape, contiguous(shape))
    return tensors, metadata


def _folder(path: Path, needed: Sequence[str]) -> Contents:
    """Names begin with "unet/", "vae/" or "text_encoder/".

    The metadata are those of the UNet's file, and the texts of the folder's SETTINGS by their names.
    """
    absent = [folder for folder in needed if not (path / folder).is_dir()]
    if absent:
        found = ", ".join(shown(name) for name in sorted(item.name for item in path.iterdir())[:6]) or "nothing"
        way = "; name one: --vae FILE, or load(vae=...)" if absent == ["vae"] else f"; {EXPECTED}"
        raise MineditError(f"{path} is a folder without {', '.join(absent)} (it has {found}){way}")
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for folder in needed:
        file = weights_in(path / folder, FOLDERS[folder])
        if file is None:
            raise MineditError(f"{path / folder} has none of {', '.join(FOLDERS[folder])}; download the weights too")
        held, about = _whole(file)
        metadata |= about if folder == "unet" else {}
        tensors |= {f"{folder}/{name}": tensor for name, tensor in held.items()}
    return tensors, metadata | {name: settings_of(path / name) for name in SETTINGS if (path / name).is_file()}


def weights_in(folder: Path, files: Sequence[str]) -> Path | None:
    """The preferred of the forms of `files` in a folder, if any is there."""
    return next((folder / name for name in _forms(files) if (folder / name).is_file()), None)


def settings_of(path: Path) -> str:
    """The text of a small JSON file."""
    with path.open("rb") as file:
        return file.read(LIMIT).decode(errors="replace")


def _forms(files: Sequence[str]) -> list[str]:
    """Names under which diffusers and transformers write weights, whole or in shards, the preferred first."""
    forms = []
    for variant in ("", ".fp16"):
        for file in files:
            stem, _, kind = file.rpartition(".")
            forms += [f"{stem}{variant}.{kind}", f"{file}.index{variant}.json", f"{stem}{variant}.{kind}.index.json"]
    return forms


def _shards(index: Path) -> Contents:
    """The tensors that `index` lists, each in the file beside it that it names for them; and no others."""
    try:
        with index.open("rb") as file:
            listed = foreign_json(file.read(LIMIT))["weight_map"]
        shards = sorted(set(listed.values()))
        outside = [name for name in shards if name != Path(name).name or "\\" in name]
    except (*DAMAGE, AttributeError) as error:
        raise MineditError(f"{index} is no index of weights ({_line(error)}); download it again") from error
    if outside:
        raise MineditError(f"{index} names {shown(outside[0])}, expected files beside it; download it again")
    absent = [shown(name) for name in shards if not (index.parent / name).is_file()]
    if absent:
        raise MineditError(f"{index} names {', '.join(absent[:3])}, not there; download every file of the folder")
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        held, about = _file(index.parent / shard)
        unlike = held.keys() ^ {name for name, file in listed.items() if file == shard}
        if unlike:
            raise MineditError(f"{index} and {shown(shard)} differ in {shown(min(unlike))}; download both again")
        tensors |= held
        metadata |= about
    return tensors, metadata


# What the readers raise for a damaged file.
DAMAGE = (ValueError, LookupError, TypeError, OverflowError, RecursionError, NotImplementedError)
DAMAGE += (BadZipFile, SafetensorError, struct.error, EOFError)

FOLDERS = {
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}

# Of a diffusers folder: what it says of how its model was trained; see declared.py.
SETTINGS = ("scheduler/scheduler_config.json", "unet/config.json", "vae/config.json", "text_encoder/config.json")

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
