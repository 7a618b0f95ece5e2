"""Pictures: PIL <-> float tensors [B,3,H,W] in [-1,1], captioned grids, PNG files with their settings in them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageStat, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from minedit.config import MineditError, foreign_json, shown

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "minedit"  # keyword of the PNG text chunk
FONT = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"  # Latin, Greek, Cyrillic, Arabic, Hebrew ...
OTHER_FONTS = (  # of the system, for what it has not: Chinese, Japanese, Korean; names, which PIL looks up
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf"),
)
MARGIN = 6  # pixels, between the pictures of a grid and around its captions


def to_tensor(image: Image.Image) -> Tensor:
    """PIL picture -> [1,3,H,W] float32 in [-1,1]."""
    import numpy as np  # here and below: files are read and written without it and torch
    import torch

    array = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()


def to_pil(images: Tensor) -> list[Image.Image]:
    """[B,3,H,W], about [-1,1], clamped -> B PIL pictures. Raises MineditError for NaN or infinity."""
    import torch

    if not torch.isfinite(images).all():
        raise MineditError(f"picture in {images.dtype} holds NaN or infinity, expected numbers; try dtype float32")
    array = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(a) for a in array]


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size over pixels and channels, 0 ... 255."""
    means = ImageStat.Stat(ImageChops.difference(a, b)).mean
    return sum(means) / len(means)


def psnr(a: Image.Image, b: Image.Image) -> float:
    """How near two RGB pictures of one size are, in dB, over pixels and channels; 138 where they are the same."""
    squares = sum(ImageStat.Stat(ImageChops.difference(a, b)).sum2) / (3 * a.width * a.height)
    return 10 * math.log10(255**2 / max(squares, 1e-9))


def grid(
    images: Sequence[Image.Image | None], captions: Sequence[str] = (), columns: int | None = None, title: str = ""
) -> Image.Image:
    """Pictures in rows of `columns` (default: all side by side) on white, each with its caption below, wrapped.

    title: stands above all. None, of a picture: its cell stays empty.

    Cells are as large as the largest picture. Raises ValueError for no pictures or as many captions as do not fit.
    """
    if not images or (captions and len(captions) != len(images)):
        raise ValueError(f"{len(captions)} captions for {len(images)} pictures, expected as many, or none")
    columns = min(columns or len(images), len(images))
    rows = -(-len(images) // columns)
    width, height = (max(image.size[axis] for image in images if image) for axis in (0, 1))
    font = _font("".join((title, *captions)), max(12, width // 24))
    texts = [_wrapped(caption, font, width) for caption in captions or [""] * len(images)]
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    below = max(pen.multiline_textbbox((0, 0), text, font)[3] for text in texts) + MARGIN if captions else 0

    cell = (width + MARGIN, height + MARGIN + int(below))
    title = _wrapped(title, font, columns * cell[0] - MARGIN)
    above = int(pen.multiline_textbbox((0, 0), title, font)[3]) + MARGIN if title else 0
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN + above), "white")
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((MARGIN, MARGIN // 2), title, fill="black", font=font)
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        x, y = MARGIN + i % columns * cell[0], above + MARGIN + i // columns * cell[1]
        if image:
            sheet.paste(image, (x, y))
        pen.multiline_text((x, y + height + MARGIN // 2), text, fill="black", font=font)
    return sheet


def undrawn(text: str) -> str:
    """Its letters that no font here has, each once: captions show boxes for them."""
    return _chosen(text, 12)[1]


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The first font that has every letter of the text; where none has, the first of those that lack the fewest."""
    return _chosen(text, size)[0]


def _chosen(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """The font, and the letters that it lacks."""
    letters = [letter for letter in dict.fromkeys(text) if letter.isprintable()]
    found = []
    for name in (FONT, *OTHER_FONTS):
        with suppress(OSError):  # not installed
            font = ImageFont.truetype(name, size)
            box = bytes(font.getmask("\U0010ffff"))
            found.append((font, "".join(letter for letter in letters if bytes(font.getmask(letter)) == box)))
            if not found[-1][1]:
                break
    return min(found, key=lambda each: len(each[1]))


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text's words in lines at most `width` pixels long, a longer word alone on its line."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, then rename it: `path` is never half written.

    Makes missing folders, and removes what killed processes left of their attempts at this file. Raises MineditError
    where the file system refuses.
    """
    path = place(path)
    part = path.parent / f".{path.name}.{os.getpid()}.part"
    if "\0" in path.name:
        raise MineditError(f"cannot write {shown(path)} (a zero byte in its name); choose another place")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, re.escape(path.name))
        write(part)
        part.replace(path)
    except OSError as error:
        fault = f"cannot write {shown(path, 300)} ({error.strerror or error})"
        raise MineditError(f"{fault}; choose another place") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def place(path: object) -> Path:
    """The file that a user names, with its ~. Raises MineditError for what names none."""
    if not isinstance(path, str | os.PathLike):
        raise MineditError(f"cannot write {shown(repr(path), 60)}; expected the name of a file, or its Path")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # no such user
        raise MineditError(f"cannot write {shown(path, 300)} ({error}); choose another place") from error


def sweep(folder: Path, names: str) -> None:
    """Remove the temporary files of processes that are no more, of files whose names match the pattern `names`."""
    for part in folder.iterdir():
        found = re.fullmatch(rf"\.{names}\.([1-9]\d{{0,8}})\.part", part.name)
        if found and not _alive(int(found[1])):
            with suppress(OSError):
                part.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's; no number of one
        return True
    return True


def save(path: str | Path, image: Image.Image, settings: Mapping | None = None) -> None:
    """Write a PNG, with `settings` as JSON in its text chunk "minedit". Raises MineditError as `write_whole` does."""
    info = PngInfo()
    if settings is not None:
        info.add_text(METADATA, json.dumps(settings))
    write_whole(path, lambda part: image.save(part, format="PNG", pnginfo=info))


def settings(path: str | Path) -> dict:
    """The settings that `save` put into a PNG. Raises MineditError for files without them."""
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe has no end
            raise MineditError(f"{path} is not a file; expected a PNG that minedit wrote")
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(METADATA)
    except (UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise MineditError(f"{path} is not a picture; expected a PNG that minedit wrote") from error
    except OSError as error:
        raise MineditError(f"cannot read {path} ({error.strerror or error}); expected a PNG minedit wrote") from error
    if text is None:
        raise MineditError(f"{path} holds no settings; expected a PNG that minedit wrote, unchanged since")
    try:
        found = foreign_json(text)
        if not isinstance(found, dict):
            raise ValueError("they are no object")
    except ValueError as error:
        fault = f"the settings in {path} are damaged ({error})"
        raise MineditError(f"{fault}; expected a PNG that minedit wrote, unchanged since") from error
    return found
