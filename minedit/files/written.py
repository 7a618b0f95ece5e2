"""Tensors -> a .safetensors file, which appears complete or not at all; names and metadata as our files have them."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from minedit import image
from minedit.stack.text import TextEncoder

CONFIG_KEY = "minedit.config"  # in the metadata of a safetensors file: Config.to_json


def public(module: nn.Module, name: str) -> str:
    """A name as files have it: transformers 5 dropped CLIP's "text_model.", which every published file keeps."""
    if not isinstance(module, TextEncoder):
        return name
    return "text_model." + name.removeprefix("clip.").removeprefix("text_model.")


def write(tensors: Mapping[str, Tensor], path: str | os.PathLike, metadata: dict[str, str] | None = None) -> None:
    """Tensors as a .safetensors file, which appears complete or not at all. Raises MineditError where it cannot."""
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def save_whole(part: Path) -> None:
        part.touch()
        mode = part.stat().st_mode  # the user's; save_file's own is private
        try:
            save_file(found, part, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        part.chmod(mode)

    image.write_whole(path, save_whole)
