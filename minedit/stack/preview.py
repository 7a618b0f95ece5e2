"""Clean latents → small pictures by one matrix, which is fitted to the autoencoder itself: no file, next to no cost."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from minedit.config import MineditError
from minedit.stack.vae import VAE

PICTURES, CELLS, CELL = 8, 2, 4  # that it is fitted to; cells of a side, each of one colour; latents of a cell's side
TINT = 0.3  # how far channels stray from a cell's brightness: latents hold that best, and pictures vary in it most


def least_squares(x0: Tensor, colours: Tensor) -> tuple[Tensor, float]:
    """(matrix [3, 5], R²): a latent and 1 -> its RGB, in float64. x0: [B, 4, h, w]; colours: [B, 3, h, w], 0 ... 1."""
    rows = x0.double().permute(0, 2, 3, 1).flatten(0, 2)  # [pixels, 4]
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
    colours = colours.double().permute(0, 2, 3, 1).flatten(0, 2)  # [pixels, 3]
    found = torch.linalg.lstsq(rows, colours, driver="gelsd").solution  # [5, 3]
    left = (rows @ found - colours).square().sum()
    r2 = 1 - left / (colours - colours.mean(0)).square().sum().clamp(min=1e-12)
    return found.T.float().contiguous(), r2.item()


def painted(factor: int) -> Tensor:
    """The pictures that a matrix is fitted to: cells of colours, the same at every call. [B, 3, H, W] in [-1, 1]."""
    generator = torch.Generator("cpu").manual_seed(0)
    grey = torch.rand(PICTURES, 1, CELLS, CELLS, generator=generator) * 2 - 1
    cells = (grey + TINT * torch.randn(PICTURES, 3, CELLS, CELLS, generator=generator)).clamp(-1, 1)
    return F.interpolate(cells, scale_factor=CELL * factor, mode="nearest")


@torch.no_grad()
def fitted(vae: VAE, factor: int, scale: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """matrix [3, 5] on the CPU: latents of unit variance -> the mean RGB of the square that the VAE decodes each into.

    scale: `Config.latent_scale`. A VAE that overflows in half precision is asked in float32. Raises MineditError for
    NaN or infinity.
    """
    pictures = painted(factor).to(device, dtype)
    z, decoded = _there_and_back(vae, pictures)
    if dtype != torch.float32 and not decoded.isfinite().all():
        z, decoded = _there_and_back(copy.deepcopy(vae).float(), pictures.float())
    if not (z.isfinite().all() and decoded.isfinite().all()):
        raise MineditError("NaN or infinity from the VAE, expected finite numbers; its weights are damaged")
    colours = F.avg_pool2d((decoded.float().clamp(-1, 1) + 1) / 2, factor)
    return least_squares((z.float() * scale).cpu(), colours.cpu())[0]


def _there_and_back(vae: VAE, pictures: Tensor) -> tuple[Tensor, Tensor]:
    z = vae.encode(pictures).chunk(2, dim=1)[0]
    return z, vae.decode(z)


@torch.no_grad()
def coloured(matrix: Tensor, x0: Tensor) -> Tensor:
    """Clean latents [B, 4, h, w] of unit variance -> pictures [B, 3, h, w] in [-1, 1], a pixel for each latent."""
    rgb = F.conv2d(x0.detach().cpu().float(), matrix[:, :4, None, None], matrix[:, 4])
    return rgb.clamp(0, 1) * 2 - 1
