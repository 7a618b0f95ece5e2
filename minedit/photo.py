"""A photograph as it comes from a camera or the web → an upright RGB picture in a size that a model can take."""

from __future__ import annotations

import math
from hashlib import sha256
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from minedit.config import MineditError, shown


def read(path: str | Path) -> Image.Image:
    """The picture in a file, or the first of an animation. Raises MineditError for what is none, or damaged."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe has no end
            raise MineditError(f"{shown(path, 300)} is not a file; expected a picture, such as a PNG or JPEG")
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except UnidentifiedImageError as error:
        raise MineditError(f"{shown(path, 300)} is not a picture; expected a PNG, JPEG or the like") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or shown(error, 200)
        raise MineditError(f"cannot read {shown(path, 300)} ({reason}); expected a PNG, JPEG or the like") from error


def digest(content: bytes) -> str:
    """A short hash of pixels, to know a picture by."""
    return sha256(content).hexdigest()[:12]


def upright(image: Image.Image) -> Image.Image:
    """A PIL picture of any mode -> RGB, turned as its EXIF data says, what is transparent on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel, or floats: PIL would cut them off at 255
        low, high = image.getextrema()
        most = 65535 if image.mode.startswith("I") and (high > 255 or "16" in image.mode) else 255
        most = 1 if image.mode == "F" and high <= 1 else most
        image = image.convert("F").point(lambda value: value * (255 / most)).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def sides(size: tuple[int, int], trained: int, multiple: int, height: int | None, width: int | None) -> tuple[int, int]:
    """(height, width) for a photo of `size` (width, height): those asked for, else of its shape and the trained area.

    A side that is asked for alone gives the other one by the shape. What is chosen is a multiple of `multiple`.
    """
    shape = size[0] / size[1]

    def near(side: float) -> int:
        return max(multiple, round(side / multiple) * multiple)

    if height and width:
        return height, width
    if height or width:
        return (height, near(height * shape)) if height else (near(width / shape), width)
    return near(trained / math.sqrt(shape)), near(trained * math.sqrt(shape))


def fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """The picture in this size: resized, and what does not fit its shape cut off evenly."""
    return image if image.size == (width, height) else ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
