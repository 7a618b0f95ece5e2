"""Latents → a picture: by one matrix that is fitted to the VAE itself, or by the VAE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from minedit.image import to_tensor
from minedit.sampling.coded import pictures
from minedit.stack.model import Model
from minedit.stack.preview import least_squares

AT_ONCE = 8  # latents


def decoded(sd: Model, x0: Tensor) -> list[Image]:
    """Clean latents [B, 4, h, w] of unit variance, as the UNet has them -> pictures."""
    parts = (x0 / sd.config.latent_scale).split(AT_ONCE)
    return [image for part in parts for image in pictures(sd, part)[0]]


def linear(x0: Tensor, images: list[Image]) -> tuple[Tensor, float]:
    """(matrix [3, 5], R²): latents of a pixel and 1 -> its RGB, 0 ... 1, by least squares over what the VAE decoded.

    x0: [B, 4, h, w]. A pixel's RGB is the mean over the square of the picture that it stands for.
    """
    small = torch.cat([F.adaptive_avg_pool2d((to_tensor(image) + 1) / 2, x0.shape[2:]) for image in images])
    return least_squares(x0, small)
