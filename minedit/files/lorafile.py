"""A LoRA's file or folder -> its tensors, not read yet, and what is said of its alpha. What is in them: lora.py.

Settings are peft's: diffusers writes them into the header of a file (`lora_adapter_metadata`), peft itself into a file
adapter_config.json beside the weights.
"""

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from minedit.config import MineditError, foreign_json, shown
from minedit.files import stored
from minedit.files.formats import named, read_other, settings_of
from minedit.files.stored import Files, Stored

EXPECTED = "expected a LoRA of Stable Diffusion v1, by kohya's, diffusers' or peft's names"
FILES = tuple(f"{name}.{end}" for name in ("pytorch_lora_weights", "adapter_model") for end in ("safetensors", "bin"))
CONFIG, HEADER = "adapter_config.json", "lora_adapter_metadata"
PARTS = ("unet", "text_encoder")


def read_lora(path: str | os.PathLike) -> tuple[Path, dict[str, Stored], dict[str, str]]:
    """(the file, its tensors, its metadata with the settings beside it). Raises MineditError where it is none."""
    path = named(path, EXPECTED)
    try:
        files = _in_folder(path) if path.is_dir() else {"": path}
        tensors: dict[str, Stored] = {}
        metadata: dict[str, str] = {}
        for part, file in files.items():
            held, about = read_other(file, EXPECTED)
            tensors |= {part + name: tensor for name, tensor in held.items()}
            metadata |= about
            config = file.with_name(CONFIG)
            if config.is_file():
                metadata[part + CONFIG] = settings_of(config)
    except OSError as error:
        raise MineditError(f"{path} cannot be read ({error.strerror or error}); {EXPECTED}") from error
    return (path if len(files) > 1 else next(iter(files.values()))), tensors, metadata


def fingerprint(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> str:
    """Twelve hexadecimal digits: others for other numbers, or for other settings of alpha. Raises MineditError."""
    with Files() as files:
        numbers = stored.fingerprint({"": tensors}, files)
    said = [f"{key} {metadata[key]}" for key in _settings() if key in metadata]
    return hashlib.sha256("\n".join([numbers, *said]).encode()).hexdigest()[:12] if said else numbers


def _settings() -> tuple[str, ...]:
    return (HEADER, CONFIG, *(f"{part}.{CONFIG}" for part in PARTS))


def _in_folder(folder: Path) -> dict[str, Path]:
    """The files of a LoRA by what their tensors' names are to begin with: one, or one for each part of a model."""
    own = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if own is not None:
        return {"": own}
    files = [(f"{part}.", folder / part / name) for part in PARTS for name in FILES[::-1]]
    parts = {part: file for part, file in files if file.is_file()}  # the preferred comes last
    if parts:
        return parts
    others = sorted(file for file in folder.iterdir() if file.suffix == ".safetensors" and file.is_file())
    if len(others) == 1:
        return {"": others[0]}
    names = ", ".join(shown(file.name, 40) for file in others[:3])
    what = f"{len(others)} files .safetensors ({names}); name one" if others else f"none of {', '.join(FILES)}"
    raise MineditError(f"{folder} is a folder with {what}; {EXPECTED}")


def alphas(path: Path, metadata: Mapping[str, str]) -> Callable[[str], tuple[float | None, bool]]:
    """For a layer as the file names it: (alpha if it is said, rank-stabilised).

    Entries begin with the part's name where those of the tensors do. Raises MineditError for settings that are none.
    """
    config: dict[str, object] = {}
    for key in _settings():
        if key in metadata:
            said = _object(path, key, metadata[key])
            config |= (
                {key.removesuffix(CONFIG) + name: value for name, value in said.items()} if key != HEADER else said
            )
    special = {}
    for key, value in config.items():
        if key.endswith("use_dora") and value:
            raise MineditError(f"{path} looks like a DoRA: its settings say so; {EXPECTED}")
        if key.endswith("lora_alpha") and value is not None:
            _number(path, key, value)
        if key.endswith("alpha_pattern") and value:
            special[key] = _patterns(path, key, value)

    def alpha_of(name: str) -> tuple[float | None, bool]:
        part = next((f"{part}." for part in PARTS if name.startswith(f"{part}.")), "")
        if not any(key.startswith(part) for key in config):
            part = ""
        own = special.get(f"{part}alpha_pattern", {})
        words = name.removeprefix(part).replace("base_model.model.", "", 1).split(".")
        ends = [".".join(words[at:]) for at in range(len(words))]
        found = [own[end] for end in ends if end in own] + [own[f"^{end}"] for end in ends[:1] if f"^{end}" in own]
        alpha = min(found)[1] if found else config.get(f"{part}lora_alpha", config.get(f"{part}alpha"))
        return alpha, bool(config.get(f"{part}use_rslora"))

    return alpha_of


def _object(path: Path, key: str, text: str) -> dict:
    try:
        said = foreign_json(text)
    except ValueError as error:
        raise MineditError(f"{path} is damaged: {key} is not JSON ({error})") from error
    if not isinstance(said, dict):
        raise MineditError(f"{path} is damaged: {key} is {shown(repr(said), 40)}, expected an object")
    return said


def _number(path: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MineditError(f"{path} says {shown(key)} is {shown(repr(value), 40)}, expected a finite number")
    return float(value)


def _patterns(path: Path, key: str, value: object) -> dict[str, tuple[int, float]]:
    """Ends of names -> (their place, alpha). peft runs them as regular expressions, which can be made to never end.

    So only names are taken, with the signs that programs put around them: ^, $ and \\ before a dot.
    """
    if not isinstance(value, dict):
        raise MineditError(f"{path} says {shown(key)} is {shown(repr(value), 40)}, expected an object")
    found = {}
    for place, (pattern, alpha) in enumerate(value.items()):
        name = pattern.removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"\^?[\w.-]+", name):
            fault = f"{path} has the pattern {shown(repr(pattern), 60)} in {shown(key)}"
            raise MineditError(f"{fault}, expected names of layers: patterns are not run")
        found.setdefault(name, (place, _number(path, f"{key} of {name}", alpha)))
    return found
