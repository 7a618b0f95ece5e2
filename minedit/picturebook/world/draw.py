"""A small drawing surface: supersampled, antialiased shapes in picture units, and a mask of the subject.

Coordinates are pixels of the final picture, x to the right, y downwards; everything is drawn `SUPER` times larger and
averaged down at the end. Colours are 8-bit RGB.
"""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

SUPER = 4
Colour = tuple[int, int, int]
Point = tuple[float, float]
WHITE: Colour = (255, 255, 255)


def stream(seed: int, name: str) -> random.Random:
    """A random stream of its own for every part of a picture: changing one part never shifts another."""
    return random.Random(f"{seed}:{name}")


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Linear blend; `share` = 0 gives a, 1 gives b."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def shade(colour: Colour, factor: float) -> Colour:
    """Multiply the brightness; factor < 1 darkens."""
    return tuple(max(0, min(255, round(c * factor))) for c in colour)


def jitter(colour: Colour, rng: random.Random, amount: int = 10) -> Colour:
    """Shift all channels together by at most `amount` levels, and each by at most 0.4 `amount` more."""
    common = rng.uniform(-amount, amount)
    return tuple(max(0, min(255, round(c + common + rng.uniform(-amount, amount) * 0.4))) for c in colour)


def polar(origin: Point, angle: float, length: float) -> Point:
    """The point `length` away; angle in degrees from straight down, positive towards +x."""
    return origin[0] + length * math.sin(math.radians(angle)), origin[1] + length * math.cos(math.radians(angle))


def frame(origin: Point, unit: float) -> Callable[[float, float], Point]:
    """at(dx, dy) -> point in pixels: steps of `unit` pixels from `origin`, y downwards."""
    return lambda dx, dy: (origin[0] + dx * unit, origin[1] + dy * unit)


class Canvas:
    """An RGB picture of `size` × `size` pixels plus the mask of whatever is drawn while `in_subject` is set.

    `light` multiplies every colour drawn, channel by channel: 255 leaves it, 0 blackens it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.image = Image.new("RGB", (size * SUPER, size * SUPER))
        self.mask = Image.new("L", self.image.size)
        self.in_subject = False
        self.light: Colour = WHITE
        self._draw, self._mark = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)

    def colour_at(self, x: float, y: float) -> Colour:
        """What is drawn there so far, or at the nearest place inside."""
        column, row = (min(max(int(v * SUPER), 0), self.image.width - 1) for v in (x, y))
        return self.image.getpixel((column, row))

    def gradient(self, top: Colour, bottom: Colour, y0: float, y1: float) -> None:
        """Fill the full width between y0 and y1 with a vertical gradient, not affected by the light."""
        rows = max(1, round((y1 - y0) * SUPER))
        ramp = np.linspace(0, 1, rows)[:, None, None] * (np.array(bottom) - np.array(top)) + np.array(top)
        band = np.broadcast_to(ramp.round().astype(np.uint8), (rows, self.image.width, 3))
        self.image.paste(Image.fromarray(np.ascontiguousarray(band)), (0, round(y0 * SUPER)))

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._both("polygon", [(x * SUPER, y * SUPER) for x, y in points], colour)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, radius: float = 0) -> None:
        """From the upper left to the lower right corner; corners are rounded with `radius`."""
        box = [x0 * SUPER, y0 * SUPER, x1 * SUPER, y1 * SUPER]
        self._both("rounded_rectangle", box, colour, radius=radius * SUPER)

    def band(self, y0: float, y1: float, colour: Colour) -> None:
        """A rectangle over the full width."""
        self.rectangle(0, y0, self.size, y1, colour)

    def ellipse(self, centre: Point, rx: float, ry: float, colour: Colour, angle: float = 0.0) -> None:
        """An ellipse with half axes rx, ry, turned by `angle` degrees (clockwise on screen)."""
        (x, y), turn = centre, math.radians(angle)
        if not angle:
            box = [(x - rx) * SUPER, (y - ry) * SUPER, (x + rx) * SUPER, (y + ry) * SUPER]
            self._both("ellipse", box, colour)
            return
        c, s = math.cos(turn), math.sin(turn)
        ring = [(rx * math.cos(a), ry * math.sin(a)) for a in (math.tau * i / 48 for i in range(48))]
        self.polygon([(x + u * c - v * s, y + u * s + v * c) for u, v in ring], colour)

    def limb(self, points: Sequence[Point], width: float, colour: Colour, end_width: float | None = None) -> None:
        """A chain of capsules through the points, tapering from `width` to `end_width`."""
        widths = np.linspace(width, end_width or width, len(points))
        for (x0, y0), (x1, y1), w0, w1 in zip(points[:-1], points[1:], widths[:-1], widths[1:], strict=True):
            length = math.hypot(x1 - x0, y1 - y0) or 1e-6
            nx, ny = (y1 - y0) / length / 2, (x0 - x1) / length / 2
            quad = [(x0 + nx * w0, y0 + ny * w0), (x1 + nx * w1, y1 + ny * w1)]
            self.polygon([*quad, (x1 - nx * w1, y1 - ny * w1), (x0 - nx * w0, y0 - ny * w0)], colour)
        for point, w in zip(points, widths, strict=True):
            self.ellipse(point, w / 2, w / 2, colour)

    def finish(self) -> tuple[Image.Image, Image.Image]:
        """(picture RGB, subject mask L with 0…255 coverage), both averaged down to `size` × `size`."""
        return self.image.reduce(SUPER), self.mask.reduce(SUPER)

    def _both(self, method: str, points: Sequence, colour: Colour, **options: float) -> None:
        """Draw a shape on the picture and mark it in the mask, or wipe what it covers there."""
        lit = tuple(c * level // 255 for c, level in zip(colour, self.light, strict=True))
        getattr(self._draw, method)(points, fill=lit, **options)
        getattr(self._mark, method)(points, fill=255 if self.in_subject else 0, **options)
