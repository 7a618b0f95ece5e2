"""Classifier-free guidance: several noise predictions to one. Pure functions on tensors of equal shape."""

from torch import Tensor


def two_way(uncond: Tensor, cond: Tensor, guidance: float) -> Tensor:
    """Text guidance (Ho, Salimans 2022; AdapEdit eq. 3): uncond + w (cond - uncond).

    guidance: w; 1 is the conditional model alone, 7.5 is usual.
    """
    return uncond + guidance * (cond - uncond)


def three_way(uncond: Tensor, image: Tensor, full: Tensor, guidance: float, image_guidance: float) -> Tensor:
    """Text and image guidance (InstructPix2Pix, eq. 3).

    Args:
        uncond: prediction with neither image nor text; image: with the image only; full: with both.
        guidance: s_T, 7.5 is usual; image_guidance: s_I, 1.5 is usual.
    """
    return uncond + image_guidance * (image - uncond) + guidance * (full - image)
