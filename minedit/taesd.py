"""TAESD: image [B,3,H,W] in [-1,1] <-> scaled latent [B,4,H/8,W/8] of Stable Diffusion v1, roughly and fast.

A network of its own beside the VAE, with 1.2 million weights in each half, from a file of the user's. It speaks latents
as the UNet sees them, of unit variance: the VAE's times `Config.latent_scale`. Module names are those of diffusers'
AutoencoderTiny; the original files of github.com/madebyollin/taesd, one for each half, are read as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from minedit import image
from minedit.config import MineditError
from minedit.formats import read_file
from minedit.layouts import first

WIDTH = 64
EXPECTED = "expected a TAESD of Stable Diffusion v1: AutoencoderTiny's weights, or taesd_decoder or taesd_encoder"


class Block(nn.Module):
    """[B,C,h,w] -> [B,C,h,w]."""

    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + x).relu()


def _conv(c_in: int, c_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=bias)


def _encoder() -> nn.ModuleDict:
    layers = [_conv(3, WIDTH), Block()]
    for _ in range(3):
        layers += [_conv(WIDTH, WIDTH, stride=2, bias=False), Block(), Block(), Block()]
    return nn.ModuleDict({"layers": nn.Sequential(*layers, _conv(WIDTH, 4))})


def _decoder() -> nn.ModuleDict:
    layers = [_conv(4, WIDTH), nn.ReLU()]
    for _ in range(3):
        layers += [Block(), Block(), Block(), nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
    return nn.ModuleDict({"layers": nn.Sequential(*layers, Block(), _conv(WIDTH, 3))})


class TAESD(nn.Module):
    """halves: "encoder", "decoder" or both; without the one, its method raises MineditError."""

    def __init__(self, halves: Iterable[str] = ("encoder", "decoder")) -> None:
        super().__init__()
        self.encoder = _encoder() if "encoder" in halves else None
        self.decoder = _decoder() if "decoder" in halves else None

    def encode(self, picture: Tensor) -> Tensor:
        """Image [B,3,H,W] in [-1,1], H and W multiples of 8 -> scaled latent [B,4,H/8,W/8]."""
        if self.encoder is None:
            raise MineditError("this TAESD has no encoder; load taesd_encoder or the whole of it")
        return self.encoder["layers"]((picture + 1) / 2)

    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latent [B,4,h,w] -> image [B,3,8h,8w], about [-1,1], not clamped."""
        if self.decoder is None:
            raise MineditError("this TAESD has no decoder; load taesd_decoder or the whole of it")
        return self.decoder["layers"]((latent / 3).tanh() * 3) * 2 - 1


def load_taesd(path: str | os.PathLike, device: str | torch.device = "cpu") -> TAESD:
    """The TAESD in a file, in float32 whatever the file's dtype (float8 too), without gradients.

    Raises MineditError for a file that is none. That of Stable Diffusion XL has the same names and shapes and cannot be
    told apart; its pictures are wrong.
    """
    path = Path(path).expanduser()
    tensors, _ = read_file(path, EXPECTED)
    tensors = _our_names(tensors)
    module = TAESD({name.split(".")[0] for name in tensors})
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    missing = sorted(wanted.keys() - tensors.keys())
    unlike = sorted(name for name, tensor in tensors.items() if tensor.shape != wanted.get(name))
    if missing or unlike or not tensors:
        faults = [f"lacks {first(missing)}"] if missing else []
        faults += [f"has by other names or of other shapes {first(unlike)}"] if unlike else []
        raise MineditError(f"{path} is no TAESD: it {'; it '.join(faults) or 'is empty'}; {EXPECTED}")
    cast = {name: tensor.to(device, torch.float32, copy=True) for name, tensor in tensors.items()}
    module.load_state_dict(cast, strict=True, assign=True)
    return module.eval().requires_grad_(False)


@torch.inference_mode()
def save_preview(taesd: TAESD, latents: Tensor, path: Path) -> None:
    """Scaled latents [B,4,h,w] -> one PNG, side by side. Latents that are not finite write nothing: the run says so."""
    decoded = taesd.decode(latents)
    if decoded.isfinite().all():
        image.save(path, image.grid(image.to_pil(decoded)))


def _our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original halves count layers from 0; the decoder's are one further, behind the clamp of the latent."""
    if not all(re.match(r"\d+\.", name) for name in tensors):
        return tensors
    half, offset = ("encoder", 0) if "0.weight" in tensors else ("decoder", 1)
    numbered = ((*name.split(".", 1), tensor) for name, tensor in tensors.items())
    return {f"{half}.layers.{int(number) - offset}.{rest}": tensor for number, rest, tensor in numbered}
