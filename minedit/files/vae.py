"""A file or folder of a VAE alone -> its tensors by our names, for a model that has none or another."""

import os

from minedit.config import MineditError
from minedit.files.declared import scaling
from minedit.files.formats import FOLDERS, named, read_other, settings_of, weights_in
from minedit.files.layouts import EXPECTED_VAE, Tensors, vae_of


def read_vae(path: str | os.PathLike) -> tuple[Tensors, float | None]:
    """(tensors, scaling_factor if its config says one) of a VAE's file or folder, or of a model with one."""
    path = named(path, EXPECTED_VAE)
    folder = path / "vae" if (path / "vae").is_dir() else path
    file = path
    if path.is_dir():
        file = weights_in(folder, FOLDERS["vae"])
        if file is None:
            raise MineditError(f"{path} has none of {', '.join(FOLDERS['vae'])}; {EXPECTED_VAE}")
    tensors, _ = read_other(file, EXPECTED_VAE)
    beside = file.parent / "config.json"
    said = {beside.name: settings_of(beside)} if path.is_dir() and beside.is_file() else {}
    return vae_of(path, tensors), scaling(file.parent, said, beside.name)
