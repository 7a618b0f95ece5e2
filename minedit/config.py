"""Sizes of the models, as frozen dataclasses. In: nothing. Out: `SD14`, `IP2P`, `PICTUREBOOK` and `MineditError`.

The numbers of SD14 and IP2P are those of the Latent Diffusion configuration file `v1-inference.yaml` and of
InstructPix2Pix; PICTUREBOOK is the model embedded in this package.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields


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
        """The Config that `to_json` wrote. Raises MineditError for other JSON, unknown or missing names."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise MineditError(f"config is not JSON ({error}); expected what Config.to_json writes") from error
        parts = {"unet": UNetConfig, "vae": VAEConfig, "text": TextConfig}
        top = _checked(cls, data)
        return cls(**{**top, **{name: part(**_checked(part, top[name])) for name, part in parts.items()}})


def _checked(kind: type, data: object) -> dict:
    """`data` as keyword arguments of dataclass `kind`, its lists as tuples; MineditError where the names differ."""
    names = {field.name for field in fields(kind)}
    if not isinstance(data, dict) or set(data) != names:
        found = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise MineditError(f"{kind.__name__} has {found}, expected {sorted(names)}: written by another version?")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


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
