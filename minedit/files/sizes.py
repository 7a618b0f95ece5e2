"""The sizes of a UNet of Stable Diffusion v1's kind, counted from the names and shapes in its file; what misfits one.

Distilled models (BK-SDM, arXiv:2305.15798; segmind's small-sd) have one ResBlock a level, no middle, or a level fewer;
latent consistency models (LCM, arXiv:2310.04378) have an embedding of the guidance scale besides.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from minedit.config import Config
from minedit.files.layouts import Tensors, first

GUIDANCE = "time_embed.cond_proj.weight"


def counted(config: Config, unet: Tensors) -> Config:
    """`config` with the UNet that the names describe; `config` itself where they describe none, or that of `config`."""
    heads, ends = _numbers(unet, "in_layers.2"), sorted(_numbers(unet, "op"))
    blocks = (ends or [max(heads, default=0) + 1])[0] - 1
    firsts = [1 + level * (blocks + 1) for level in range(len(ends) + 1)]
    if blocks < 1 or sorted(heads) != [first + at for first in firsts for at in range(blocks)]:
        return config
    widths = [(*unet[heads[first]].shape, 0)[0] for first in firsts]
    if not all(width in range(32, 4097, 32) for width in widths):
        return config
    found = replace(
        config.unet,
        channels=tuple(widths),
        blocks=blocks,
        attention=tuple(f"input_blocks.{first}.1.proj_in.weight" in unet for first in firsts),
        middle=any(name.startswith("middle_block.") for name in unet),
        guidance_dim=(*unet[GUIDANCE].shape, 0)[1] if GUIDANCE in unet else 0,
    )
    if found == config.unet:
        return config
    name = "a latent consistency model of " * bool(found.guidance_dim) + config.name
    if replace(found, guidance_dim=0) != config.unet:
        name += f", {blocks} block{'s' * (blocks > 1)} a level, {len(firsts)} levels" + ", no middle" * (
            not found.middle
        )
    return replace(config, name=name, unet=found)


def _numbers(unet: Tensors, layer: str) -> dict[int, str]:
    """The numbers of the input_blocks that begin with this layer, and its names."""
    found = (re.fullmatch(rf"input_blocks\.([1-9]\d?)\.0\.{re.escape(layer)}\.weight", name) for name in unet)
    return {int(match[1]): match[0] for match in found if match}


def misfits(found: Tensors, wanted: Mapping[str, Sequence[int]]) -> str:
    """How tensors differ from those of a network, names → shapes, in words; empty where they are its very own."""
    unlike = [
        f"{name} {list(found[name].shape)} {str(found[name].dtype).removeprefix('torch.')} for {list(shape)}"
        for name, shape in wanted.items()
        if name in found and (tuple(found[name].shape) != tuple(shape) or not found[name].dtype.is_floating_point)
    ]
    lists = {"lacks": wanted.keys() - found.keys(), "has besides": found.keys() - wanted.keys()}
    lists["differs in the shape of"] = unlike
    return "; ".join(f"{fault} {first(sorted(names))}" for fault, names in lists.items() if names)
