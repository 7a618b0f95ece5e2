"""Small models under the names of the published files, and these names (tests/fixtures; sources in their heads)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from seeded import fill
from torch import Tensor

from minedit.attention.choose import backend
from minedit.config import Config, TextConfig, UNetConfig, VAEConfig
from minedit.files.checkpoint import Model, tokenizer
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

FIXTURES = Path(__file__).parent / "fixtures"
# Levels, blocks and attention as SD-v1 has them; widths as small as they go. The vocabulary is CLIP's own.
SLIM = Config(
    "slim",
    UNetConfig(channels=(8, 16, 24, 24), heads=2, context_dim=8, norm_groups=4),
    VAEConfig(channels=(8, 16, 24, 24), norm_groups=4),
    TextConfig(width=8, layers=2, heads=2, mlp=16),
    image_size=64,
)


@cache
def slim() -> Model:
    """Random weights; not to be changed."""
    modules = (fill(UNet(SLIM.unet)), fill(VAE(SLIM.vae)), fill(TextEncoder(SLIM.text)))
    return Model(*modules, tokenizer(SLIM), SLIM, backend("auto"), "auto", torch.device("cpu"), torch.float32)


def rows(name: str) -> list[list[str]]:
    lines = (FIXTURES / name).read_text().splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


def diffusers_names() -> dict[str, str]:
    """LDM name -> diffusers name, as diffusers' own script has it."""
    return {ldm: name for name, _, ldm in rows("diffusers-names.tsv")}


def with_config(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file(tensors, path, {"minedit.config": SLIM.to_json()})
    return path


def as_folder(tensors: dict[str, Tensor], path: Path, old: bool = False, end: str = ".safetensors") -> Path:
    """`tensors` of an LDM file as a diffusers folder; `old` as before diffusers 0.15."""
    names = diffusers_names()
    held: dict[str, dict[str, Tensor]] = {"unet": {}, "vae": {}, "text_encoder": {}}
    for ldm, tensor in tensors.items():
        part, name = names[ldm].split("/", 1)
        if part == "vae" and ".attentions.0." in name and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0].contiguous()
        if part == "vae" and old:
            for new, was in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                name = name.replace(f".{new}.", f".{was}.")
        held[part][name] = tensor
    if old:
        held["text_encoder"]["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    else:
        held["text_encoder"] = {n.removeprefix("text_model."): x for n, x in held["text_encoder"].items()}
    for part, these in held.items():
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        (path / part).mkdir(parents=True)
        if end.endswith(".bin"):
            stem = stem.replace("model", "pytorch_model") if part == "text_encoder" else stem
            torch.save(these, path / part / (stem + end))
        else:
            with_config(these, path / part / (stem + end))
    return path


def in_shards(file: Path, index: str = "", count: int = 2) -> Path:
    """The file as several, with their index; as diffusers and transformers write it, for .safetensors and .bin."""
    tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    names, listed = list(tensors), {}
    for i in range(count):
        shard = file.with_name(f"{file.stem}-{i + 1:05}-of-{count:05}{file.suffix}")
        these = {name: tensors[name] for name in names[i::count]}
        listed |= dict.fromkeys(these, shard.name)
        save_file(these, shard) if file.suffix == ".safetensors" else torch.save(these, shard)
    file.unlink()
    path = file.with_name(index or f"{file.name}.index.json")
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": listed}))
    return path
