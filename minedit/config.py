"""Sizes of the models, as frozen dataclasses. In: nothing. Out: `SD14`, `IP2P`, `PICTUREBOOK` and `MineditError`.

The numbers of SD14 and IP2P are those of the Latent Diffusion configuration file `v1-inference.yaml` and of
InstructPix2Pix; PICTUREBOOK is the model embedded in this package.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, is_dataclass

DEEPEST, LARGEST = 16, 2**20  # levels and numbers of a config read from a file, at most


class MineditError(Exception):
    """A user's mistake, in one line: what was found, what was expected, what to do."""


@dataclass(frozen=True)
class UNetConfig:
    in_channels: int = 4  # 8 for InstructPix2Pix: noisy latent and encoded photo, concatenated
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # of each level, fine to coarse
    blocks: int = 2  # ResBlocks of a level on the way down; one more on the way up
    attention: tuple[bool, ...] = (
        True,
        True,
        True,
        False,
    )  # levels with SpatialTransformers; the middle has one
    heads: int = 8  # of every layer: SD-v1 fixes the number of heads and lets their width grow, 40 to 160
    context_dim: int = 768
    norm_groups: int = 32


@dataclass(frozen=True)
class VAEConfig:
    channels: tuple[int, ...] = (128, 256, 512, 512)  # of each level, fine to coarse; each but the last halves the side
    blocks: int = 2  # ResnetBlocks of a level in the encoder; one more in the decoder
    z_channels: int = 4
    norm_groups: int = 32
    image_channels: int = 3

    @property
    def factor(self) -> int:
        """Image side / latent side."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class TextConfig:
    vocab_size: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    context_length: int = 77
    bos: int = 49406
    eos: int = 49407  # also the padding, as in SD-v1


@dataclass(frozen=True)
class Config:
    """A whole model. `map_size` and `self_size` are sides of attention maps, in latent pixels."""

    name: str
    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig
    image_size: int = 512  # pixels
    map_size: int = 32  # side of the cross-attention maps that word statistics are taken from
    latent_scale: float = 0.18215  # latents × this have unit variance, which the UNet was trained on
    self_size: int = 16  # largest side of a map whose self-attention is injected; finer maps hold texture, not layout

    @property
    def latent_size(self) -> int:
        return self.image_size // self.vae.factor

    def to_json(self) -> str:
        """One line of JSON; `from_json` reads it back to an equal Config."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The Config that `to_json` wrote. Raises MineditError for other JSON, other names, types or sizes."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MineditError(f"config is not JSON ({error}); expected what Config.to_json writes") from error
        return _like(SD14, data, "config")


def _like(example: object, value: object, name: str) -> object:
    """`value`, as JSON has it, as the type of `example`; MineditError where it has another."""
    if is_dataclass(example):
        names = {field.name for field in fields(example)}
        if not isinstance(value, dict) or set(value) != names:
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            what = f"{type(example).__name__} has {str(found)[:200]}"
            raise MineditError(f"{what}, expected {sorted(names)}: written by another version?")
        return type(example)(**{key: _like(getattr(example, key), value[key], key) for key in names})
    if isinstance(example, tuple) and isinstance(value, list) and 0 < len(value) <= DEEPEST:
        return tuple(_like(example[0], item, name) for item in value)
    if type(value) is type(example) and _sound(value):
        return value
    raise MineditError(
        f"{name} is {repr(value)[:40]}, expected something like {example!r}: written by another version?"
    )


def _sound(value: object) -> bool:
    match value:
        case bool():
            return True
        case int():
            return 1 <= value <= LARGEST
        case float():
            return math.isfinite(value)
        case str():
            return value.isprintable()
    return False


SD14 = Config("sd-v1.4", UNetConfig(), VAEConfig(), TextConfig())
IP2P = Config("instruct-pix2pix", UNetConfig(in_channels=8), VAEConfig(), TextConfig())
PICTUREBOOK = Config(
    "picturebook",
    UNetConfig(
        channels=(64, 128, 192), blocks=1, attention=(True, True, True), heads=4, context_dim=192, norm_groups=16
    ),
    VAEConfig(channels=(16, 32, 64, 128), blocks=1, norm_groups=8),
    TextConfig(vocab_size=749, width=192, layers=3, heads=4, mlp=768, context_length=32, bos=747, eos=748),
    image_size=128,
    map_size=16,
    self_size=8,
)
