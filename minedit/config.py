"""Sizes of the models, as frozen dataclasses. Out: `SD14`, `IP2P`, `PICTUREBOOK`, `MineditError`, and foreign JSON.

The numbers of SD14 and IP2P are those of the Latent Diffusion configuration file `v1-inference.yaml` and of
InstructPix2Pix; PICTUREBOOK is the model embedded in this package. What others wrote is read by `foreign_json` and
repeated by `shown`, at every door.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields, is_dataclass
from json.decoder import scanstring
from typing import NoReturn

__version__ = "0.4.0"
DEEPEST, LARGEST = 16, 2**20  # levels and numbers of a config read from a file, at most
DIGITS = 100  # of a number in foreign JSON, at most
LIMIT = 2 * 2**20  # bytes that a file may spend on saying what is in it: seven times what the largest of SD-v1 does


class MineditError(Exception):
    """A user's mistake, in one line: what was found, what was expected, what to do."""


def shown(value: object, most: int = 120) -> str:
    """Foreign text, fit for a line on a terminal: printable, and of at most `most` characters."""
    text = str(value)
    text = text[: most - 3] + "..." if len(text) > most else text
    return text if text.isprintable() else ascii(text)[:most]


def foreign_json(text: str | bytes, deepest: int = DEEPEST) -> object:
    """The value that JSON of somebody else describes; only text may be long in it.

    Raises ValueError, whose text fits into a line behind the name of the file, for what is no JSON, has more than
    `deepest` levels, LIMIT characters beside its text or DIGITS digits in a row, names something twice, or holds NaN,
    infinity or half a letter.
    """
    text = text.decode() if isinstance(text, bytes) else text
    depth = at = beside = 0
    while at < len(text):
        quote = text.find('"', at)
        piece = text[at : quote if quote >= 0 else len(text)]
        beside += len(piece) + 2 * (quote >= 0)
        if beside > LIMIT:
            raise ValueError(f"it has {beside} bytes beside its text, expected {LIMIT} at most")
        for bracket in re.finditer(r"[\[\]{}]", piece):
            depth += 1 if bracket[0] in "[{" else -1
            if depth > deepest:
                raise ValueError(f"it has more than {deepest} levels")
        if re.search(rf"\d{{{DIGITS + 1}}}", piece):
            raise ValueError(f"it has a number of more than {DIGITS} digits")
        if quote < 0:
            break
        words, at = scanstring(text, quote + 1, True)
        if re.search("[\ud800-\udfff]", words):
            raise ValueError(f"it has half a letter in {shown(words)}")
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_infinite, parse_float=_finite)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it has a name twice")
    return found


def _infinite(name: str) -> NoReturn:
    raise ValueError(f"it has {shown(name)} for a number")


def _finite(digits: str) -> float:
    return value if math.isfinite(value := float(digits)) else _infinite(digits)


@dataclass(frozen=True)
class UNetConfig:
    in_channels: int = 4  # 8 for InstructPix2Pix: noisy latent and encoded photo, concatenated
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # of each level, fine to coarse
    blocks: int = 2  # ResBlocks of a level on the way down; one more on the way up
    attention: tuple[bool, ...] = (True, True, True, False)  # levels with SpatialTransformers; the middle has one
    heads: int = 8  # of every layer: SD-v1 fixes the number of heads and lets their width grow, 40 to 160
    context_dim: int = 768
    norm_groups: int = 32
    middle: bool = True  # whether there are layers between the ways down and up
    guidance_dim: int = 0  # 256 in a latent consistency model, which is told the guidance scale; 0 in others


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
        """The Config that `to_json` wrote. Raises MineditError for other JSON, other names, types or sizes.

        And for numbers that do not go together: every model described so can be built and draws.
        """
        try:
            if not isinstance(text, str | bytes):
                raise ValueError(f"it is {shown(repr(text), 60)}")
            data = foreign_json(text)
            if isinstance(data, dict) and isinstance(data.get("unet"), dict):
                data["unet"] = {"middle": True, "guidance_dim": 0, **data["unet"]}  # files before 0.3 do not say so
        except ValueError as error:
            raise MineditError(f"config is not JSON ({error}); expected what Config.to_json writes") from error
        config = _like(SD14, data, "config")
        for holds, rule in config.rules():
            if not holds:
                raise MineditError(f"the config describes no model: {rule}; download it again, or mend the config")
        return config

    def rules(self) -> list[tuple[bool, str]]:
        """What must hold between the numbers: (whether it does, in words)."""
        unet, vae, text = self.unet, self.vae, self.text
        levels = len(unet.channels)
        # not strict: whether they are as many is a rule itself
        attended = [w for w, has in zip(unet.channels, unet.attention, strict=False) if has] + [unet.channels[-1]]
        counts = (unet.out_channels, vae.z_channels, vae.image_channels)
        multiple = vae.factor * 2 ** (levels - 1)
        grouped = [(width, part.norm_groups) for part in (unet, vae) for width in part.channels]
        return [
            (unet.in_channels in (4, 8), f"the UNet reads {unet.in_channels} channels, expected 4 or 8"),
            (counts == (4, 4, 3), f"UNet, VAE and pictures have {counts} channels, expected (4, 4, 3)"),
            (len(unet.attention) == levels, f"the UNet has {levels} levels, attention for {len(unet.attention)}"),
            *(
                (not w % groups, f"norm_groups is {groups}, which does not divide {w} channels")
                for w, groups in grouped
            ),
            *((not w % unet.heads, f"heads is {unet.heads}, which does not divide {w} channels") for w in attended),
            (unet.guidance_dim % 2 == 0 <= unet.guidance_dim <= 4096, f"guidance_dim is {unet.guidance_dim}"),
            (not unet.channels[0] % 2, f"the UNet's first width is {unet.channels[0]}, expected an even number"),
            (not text.width % text.heads, f"heads is {text.heads}, which does not divide the text's {text.width}"),
            (unet.context_dim == text.width, f"context_dim is {unet.context_dim}, the text's width {text.width}"),
            (text.bos != text.eos, f"bos and eos are both {text.bos}"),
            (max(text.bos, text.eos) < text.vocab_size, f"bos or eos is none of {text.vocab_size} tokens"),
            (text.context_length > 2, f"context_length is {text.context_length}, expected 3 or more"),
            (not self.image_size % multiple, f"image_size is {self.image_size}, expected a multiple of {multiple}"),
            (self.image_size <= 2**14, f"image_size is {self.image_size}, expected {2**14} at most"),
            (self.latent_scale > 0, f"latent_scale is {self.latent_scale}, expected more than 0"),
        ]


def _like(example: object, value: object, name: str) -> object:
    """`value`, as JSON has it, as the type of `example`; MineditError where it has another."""
    if is_dataclass(example):
        names = {field.name for field in fields(example)}
        if not isinstance(value, dict) or set(value) != names:
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            what = f"{type(example).__name__} has {shown(found, 200)}"
            raise MineditError(f"{what}, expected {sorted(names)}: written by another version?")
        return type(example)(**{key: _like(getattr(example, key), value[key], key) for key in names})
    if isinstance(example, tuple) and isinstance(value, list) and 0 < len(value) <= DEEPEST:
        return tuple(_like(example[0], item, name) for item in value)
    if type(value) is type(example) and (_sound(value) or value == example):
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
