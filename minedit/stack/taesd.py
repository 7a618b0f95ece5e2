"""TAESD: image [B,3,H,W] in [-1,1] <-> scaled latent [B,4,H/8,W/8] of Stable Diffusion v1, roughly and fast.

A network of its own beside the VAE, with 1.2 million weights in each half, from a file of the user's (files/taesd.py).
It speaks latents as the UNet sees them, of unit variance: the VAE's times `Config.latent_scale`. Module names are those
of diffusers' AutoencoderTiny.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from minedit import image
from minedit.config import MineditError

WIDTH = 64


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


@torch.inference_mode()
def save_preview(taesd: TAESD, latents: Tensor, path: Path) -> None:
    """Scaled latents [B,4,h,w] -> one PNG, side by side. Latents that are not finite write nothing: the run says so."""
    decoded = taesd.decode(latents)
    if decoded.isfinite().all():
        image.save(path, image.grid(image.to_pil(decoded)))
