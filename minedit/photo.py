"""A photograph as it comes from a camera or the web → an upright RGB picture in a size that a model can take."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        with _unwarned(), Image.open(path) as image:
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
    """A PIL picture of any mode -> RGB, turned as its EXIF data says, what is transparent on white.

    Raises MineditError for one without pixels, or whose pixels cannot be read.
    """
    if not all(image.size):
        raise MineditError(f"the picture has {image.width} x {image.height} pixels, expected one or more each way")
    try:
        with _unwarned():
            image.load()
            return _rgb(_turned(image))
    except (OSError, ValueError, SyntaxError) as error:
        fault = f"a picture of mode {image.mode} cannot be read ({shown(error, 200)})"
        raise MineditError(f"{fault}; expected an RGB picture or the like") from error


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without PIL's warnings of pictures that are large, or hold odd data beside their pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _turned(image: Image.Image) -> Image.Image:
    with suppress(SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):  # EXIF data that says nothing
        return ImageOps.exif_transpose(image)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _grey(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Of 16 bits a pixel, or 32, or floats, which PIL would cut off at 255."""
    import numpy as np  # files are read without it

    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    high = values.max()
    most = 255 if high <= 255 and ";" not in image.mode else 65535
    if image.mode == "F":
        most = 1 if high <= 1 else 255
    grey = np.round(values.clip(0, most) * (255 / most))
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def sides(size: tuple[int, int], trained: int, multiple: int, height: int | None, width: int | None) -> tuple[int, int]:
    """(height, width) for a photo of `size` (width, height): those asked for, else of its shape and the trained area.

    A side that is asked for alone gives the other one by the shape. What is chosen is a multiple of `multiple`; a photo
    too long for that is to lose its ends (`fitted`).
    """
    shape = size[0] / size[1]

    def near(side: float) -> int:
        return max(multiple, round(side / multiple) * multiple)

    if height and width:
        return height, width
    if height or width:
        return (height, near(height * shape)) if height else (near(width / shape), width)
    root = min(max(math.sqrt(shape), multiple / trained), trained / multiple)
    return near(trained / root), near(trained * root)


def fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """The picture in this size: resized, and what does not fit its shape cut off evenly."""
    return image if image.size == (width, height) else ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
