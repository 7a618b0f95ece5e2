"""What the figures are called, what they are, and which way is better: the columns of every table, in their order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    group: str  # what must be there to compute it: one of GROUPS
    title: str
    digits: int  # behind the point
    said: str  # what it is


GROUPS = ("judge", "pixels", "lpips", "clip", "dino")
COLUMNS: dict[str, Column] = {
    "s": Column("judge", "S", 3, "the requested factor is in the edit, as the judge reads it; higher is better"),
    "p": Column("judge", "P", 3, "share of all other factors that read the same off source and edit; higher"),
    "o": Column("judge", "O", 3, "√(S · P); higher"),
    "sp": Column("judge", "S·P", 3, "the product; higher"),
    "identity": Column("judge", "identity", 3, "share of skin and hair that read the same, of people; higher"),
    "truth_error": Column("pixels", "error", 2, "mean distance from the renderer's counterfactual, of 255; lower"),
    "iou": Column("pixels", "mIoU", 3, "of the pixels that edit and counterfactual changed; higher"),
    "lpips": Column("lpips", "LPIPS", 3, "v0.1 alex, source and edit, whole pictures; lower keeps more"),
    "clip": Column("clip", "CLIP", 2, "100 · cos(edit, target prompt); higher"),
    "clip_clipped": Column("clip", "CLIP ≥ 0", 2, "the same, 0 where it is negative, as it is often published; higher"),
    "clip_direction": Column("clip", "CLIP dir", 3, "cos(change of the picture, change of the prompt); higher"),
    "clip_pictures": Column("clip", "CLIP pics", 3, "cos(source, edit); higher keeps more"),
    "clip_edited": Column("clip", "CLIP edited", 2, "the clipped score of the edit, black beyond the mask; higher"),
    "psnr": Column("pixels", "PSNR", 2, "of the edit to the source in dB, whole pictures; higher keeps more"),
    "ssim": Column("pixels", "SSIM", 3, "of the edit to the source, whole pictures; higher keeps more"),
    "psnr_background": Column("pixels", "PSNR bg", 2, "per pixel of the background, in dB; higher"),
    "psnr_published": Column(
        "pixels", "PSNR bg*", 2, "as published: whole pictures, black beyond the background; higher"
    ),
    "mse_background": Column("pixels", "MSE bg", 5, "per pixel of the background; lower"),
    "mse_published": Column("pixels", "MSE bg*", 5, "as published: whole pictures, black beyond the background; lower"),
    "ssim_background": Column("pixels", "SSIM bg", 3, "mean of the map over the background; higher"),
    "ssim_published": Column(
        "pixels", "SSIM bg*", 3, "as published: whole pictures, black beyond the background; higher"
    ),
    "lpips_background": Column("lpips", "LPIPS bg", 3, "alex, mean of the maps over the background; lower"),
    "lpips_published": Column("lpips", "LPIPS bg*", 3, "as published: squeeze, black beyond the background; lower"),
    "structure": Column("dino", "structure", 4, "DINO's structure distance, colours of 0 ... 1; lower"),
    "structure_published": Column("dino", "structure*", 4, "as published: colours of 0 ... 255; lower"),
}
MOST_DB = 138.0  # of the same pictures, whose PSNR is infinite
