"""Clean latents → small pictures by one matrix, which is fitted to the autoencoder itself: no file, next to no cost.

Of a latent and the eight around it, not of the latent alone: that is 2 dB nearer to the embedded model's pictures, and
4 dB to a photograph's by TAESD, which speaks Stable Diffusion v1's latents.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from minedit.config import MineditError
from minedit.stack.vae import VAE

SEEN = 3  # side of the square of latents that a colour is of
PICTURES, SIDE = 4, 8  # that it is fitted to, of each kind; latents of a side
CELLS = 2, 8  # of a side, each of one colour: areas, and details
TINT = 0.3  # how far channels stray from a cell's brightness: latents hold that best, and pictures vary in it most


def least_squares(x0: Tensor, colours: Tensor, side: int = 1) -> tuple[Tensor, float]:
    """(matrix [3, 4·side² + 1], R²): the latents of a square and 1 -> the RGB in its middle, in float64.

    x0: [B, 4, h, w]; colours: [B, 3, h, w], 0 ... 1; side: odd, of the square.
    """
    around = F.unfold(_padded(x0, side), side).view(len(x0), -1, *x0.shape[2:])  # [B, 4·side², h, w]
    rows = around.double().permute(0, 2, 3, 1).flatten(0, 2)  # [pixels, 4·side²]
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
    colours = colours.double().permute(0, 2, 3, 1).flatten(0, 2)  # [pixels, 3]
    found = torch.linalg.lstsq(rows, colours, driver="gelsd").solution  # [4·side² + 1, 3]
    left = (rows @ found - colours).square().sum()
    r2 = 1 - left / (colours - colours.mean(0)).square().sum().clamp(min=1e-12)
    return found.T.float().contiguous(), r2.item()


def painted(factor: int) -> Tensor:
    """The pictures that a matrix is fitted to: cells of colours, the same at every call. [B, 3, H, W] in [-1, 1]."""
    generator = torch.Generator("cpu").manual_seed(0)
    found = []
    for cells in CELLS:
        grey = torch.rand(PICTURES, 1, cells, cells, generator=generator) * 2 - 1
        colours = (grey + TINT * torch.randn(PICTURES, 3, cells, cells, generator=generator)).clamp(-1, 1)
        found.append(F.interpolate(colours, size=SIDE * factor, mode="nearest"))
    return torch.cat(found)


@torch.no_grad()
def fitted(vae: VAE, factor: int, scale: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """matrix [3, 37] on the CPU: latents of unit variance -> the mean RGB of the square that the VAE decodes each into.

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
    return least_squares((z.float() * scale).cpu(), colours.cpu(), SEEN)[0]


def _there_and_back(vae: VAE, pictures: Tensor) -> tuple[Tensor, Tensor]:
    z = vae.encode(pictures).chunk(2, dim=1)[0]
    return z, vae.decode(z)


@torch.no_grad()
def coloured(matrix: Tensor, x0: Tensor) -> Tensor:
    """Clean latents [B, 4, h, w] of unit variance -> pictures [B, 3, h, w] in [-1, 1], a pixel for each latent."""
    filters = matrix[:, :-1].view(3, 4, SEEN, SEEN)
    rgb = F.conv2d(_padded(x0.detach().cpu().float(), SEEN), filters, matrix[:, -1])
    return rgb.clamp(0, 1) * 2 - 1


def _padded(x0: Tensor, side: int) -> Tensor:
    return F.pad(x0, (side // 2,) * 4, mode="replicate")
