"""What was measured, as a labelled picture: maps over pictures, tables of numbers whose cells say how much by light."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from minedit.image import FONT, MARGIN, grid

# dark to bright, in steps that are even to the eye, so that it reads without colour too
HEAT = np.array([(8, 8, 32), (60, 15, 110), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191)], float)
SHARE = 0.65  # of the colour in an overlay
LABEL = 15  # height of letters, in pixels
WIDE, LOW = 900, 320  # of a table, in pixels


def colours(x: np.ndarray) -> np.ndarray:
    """0 ... 1 -> RGB, 0 ... 255, along a last axis of three."""
    at = np.clip(x, 0, 1) * (len(HEAT) - 1)
    low = np.minimum(at.astype(int), len(HEAT) - 2)
    return HEAT[low] + (at - low)[..., None] * (HEAT[low + 1] - HEAT[low])


def heated(image: Image.Image, found: Tensor) -> Image.Image:
    """A map [h, w] over a picture, from its least, dark, to its most, bright."""
    values = found.float().cpu().numpy()
    values = (values - values.min()) / max(float(values.max() - values.min()), 1e-12)
    wide = np.asarray(Image.fromarray(values.astype(np.float32), "F").resize(image.size, Image.Resampling.BICUBIC))
    mixed = SHARE * colours(wide) + (1 - SHARE) * np.asarray(image.convert("RGB"), float)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def table(rows: Sequence[str], columns: Sequence[str], cells: dict[tuple[str, str], float], title: str) -> Image.Image:
    """Numbers by row and column, the brighter the more; a cell without a number stays white."""
    from PIL import ImageFont

    font = ImageFont.truetype(str(FONT), LABEL)
    width = {text: int(font.getlength(text)) for text in (*rows, *columns, title, "00.0")}
    side, left = max(*(width[c] for c in columns), width["00.0"]) + 2 * MARGIN, max(width[r] for r in rows) + 2 * MARGIN
    tall = LABEL + 2 * MARGIN
    size = (max(left + side * len(columns), width[title]) + 2 * MARGIN, tall * (len(rows) + 2) + MARGIN)
    sheet = Image.new("RGB", size, "white")
    pen, most = ImageDraw.Draw(sheet), max(cells.values(), default=0) or 1
    pen.text((MARGIN, MARGIN), title, "black", font)
    for c, column in enumerate(columns):
        pen.text((left + side * (c + 0.5), tall * 1.5), column, "black", font, anchor="mm")
    for r, row in enumerate(rows):
        middle = tall * (r + 2.5)
        pen.text((left - MARGIN, middle), row, "black", font, anchor="rm")
        for c, column in enumerate(columns):
            if (value := cells.get((row, column))) is None:
                continue
            share = value / most
            box = (left + side * c, tall * (r + 2), left + side * (c + 1) - 2, tall * (r + 3) - 2)
            pen.rectangle(box, tuple(colours(np.array(share)).round().astype(int).tolist()))
            ink = "black" if share > 0.6 else "white"
            pen.text(((box[0] + box[2]) / 2, middle), f"{round(value, 1) + 0.0:.1f}", ink, font, anchor="mm")
    return sheet


def beside(left: Image.Image, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """A table, and captioned pictures in two columns at its right; below it where it is wide or low."""
    right = left.width < WIDE and left.height > LOW
    cells = grid(pictures, captions, 2 if right else 4)
    size = (left.width + cells.width, max(left.height, cells.height))
    size = size if right else (max(left.width, cells.width), left.height + cells.height)
    sheet = Image.new("RGB", size, "white")
    sheet.paste(left, (0, 0))
    sheet.paste(cells, (left.width, 0) if right else (0, left.height))
    return sheet
