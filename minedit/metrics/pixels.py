"""Mean squared error, PSNR and SSIM (Wang et al., 2004) of pictures [B,3,H,W] in [0,1] -> a figure of each, [B].

All three can be of a part of the pictures, `inside` [B,1,H,W] or [1,1,H,W] of 0 and 1: the mean over its pixels alone.
PIE-Bench publishes another figure of the background, that of the whole pictures with what is edited made black in both
(`blackened`): as if it were the same there. That PSNR is higher by 10·log10(pixels / pixels of the background) dB.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE, SIGMA = 11, 1.5  # of SSIM's window, pixels
C1, C2 = 0.01**2, 0.03**2  # its constants, of a range of 1


def blackened(pictures: Tensor, background: Tensor) -> Tensor:
    """Pictures whose pixels outside `background` are 0."""
    return pictures * background


def averaged(values: Tensor, inside: Tensor | None = None) -> Tensor:
    """The mean of maps [B,C,H,W] over channels and pixels, those `inside` if it is given; NaN where there are none."""
    if inside is None:
        return values.mean((1, 2, 3))
    weight = inside.to(values.dtype).expand(len(values), 1, -1, -1)
    return (values * weight).sum((1, 2, 3)) / (weight.sum((1, 2, 3)) * values.shape[1])


def mse(a: Tensor, b: Tensor, inside: Tensor | None = None) -> Tensor:
    """0 ... 1."""
    return averaged((a - b) ** 2, inside)


def psnr(a: Tensor, b: Tensor, inside: Tensor | None = None) -> Tensor:
    """In dB; infinite for pictures that are the same."""
    return -10 * mse(a, b, inside).log10()


def ssim(a: Tensor, b: Tensor, inside: Tensor | None = None) -> Tensor:
    """-1 ... 1."""
    return averaged(ssim_map(a, b), inside)


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM at each pixel [B,3,H,W], in a gaussian window; pictures go on beyond their edges as in a mirror.

    In float64: of what is flat, float32 leaves the variance to chance, 1e-4 of the figure.
    """
    a, b = a.double(), b.double()
    at = torch.arange(SIDE, dtype=a.dtype, device=a.device) - SIDE // 2
    bell = torch.exp(-((at / SIGMA) ** 2) / 2)
    bell = (bell / bell.sum()).expand(a.shape[1], 1, 1, -1)  # [3, 1, 1, 11]

    def window(x: Tensor) -> Tensor:
        x = F.pad(x, [SIDE // 2] * 4, mode="reflect")
        return F.conv2d(F.conv2d(x, bell, groups=len(bell)), bell.mT, groups=len(bell))

    mean_a, mean_b = window(a), window(b)
    spread = (window(a * a) - mean_a**2).clamp(min=0) + (window(b * b) - mean_b**2).clamp(min=0)
    both = window(a * b) - mean_a * mean_b
    return (2 * mean_a * mean_b + C1) * (2 * both + C2) / ((mean_a**2 + mean_b**2 + C1) * (spread + C2))
