"""Figures of methods -> charts, drawn by PIL: bars with intervals, a panel for each figure; two figures as a plane.

Nothing is told by colour alone: a bar stands beside its method's name and its number, a point has its method's shape
and its label. A figure that a method does not have leaves its place empty.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from minedit.image import FONT
from minedit.metrics.columns import COLUMNS

Mean = tuple[float, float, float, int]  # of how many, 0: none; between the ends of its interval
LETTERS, ROW, GAP, PAD = 15, 30, 24, 12  # pixels: height of letters, of a bar's row, between panels, at the edges
PANEL, NUMBERS = 230, 60  # width of a panel's axis, and of the numbers beside it
SIDE = (640, 480)  # of a plane, between its axes
INK, LINE, PALE, BAR = (0, 0, 0), (110, 110, 110), (222, 222, 222), (120, 165, 205)
MARK = (200, 70, 30)
SHAPES = ("circle", "square", "triangle", "diamond", "down", "plus", "cross", "bar", "dash", "star", "right")


@dataclass(frozen=True)
class Axis:
    """Numbers from `low` to `high` on pixels from `start`, `length` of them; downwards where that is negative."""

    low: float
    high: float
    start: float
    length: float

    def at(self, value: float) -> float:
        return self.start + self.length * (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Round numbers between the ends, about so many, and how they are written."""
        step = _round((self.high - self.low) / count)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first = math.ceil(self.low / step - 1e-6)
        found = (step * (first + at) for at in range(3 * count))
        return [(value, f"{value + 0.0:.{digits}f}") for value in found if value <= self.high + step * 1e-6]


def bars(names: Sequence[str], methods: Sequence[tuple[str, Mapping[str, Mean]]], title: str) -> Image.Image:
    """names: of COLUMNS, a panel each. methods: a row each, by its name and figures."""
    font = ImageFont.truetype(str(FONT), LETTERS)
    left = 2 * PAD + max(int(font.getlength(method)) for method, _ in methods)
    wide = PANEL + NUMBERS + GAP
    above = PAD + 2 * (LETTERS + PAD)
    size = (max(left + wide * len(names), int(font.getlength(title)) + 2 * PAD), above + ROW * (len(methods) + 1) + PAD)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((PAD, PAD), title, INK, font)
    for r, (method, _) in enumerate(methods):
        pen.text((left - PAD, above + ROW * (r + 0.5)), method, INK, font, anchor="rm")
    for p, name in enumerate(names):
        there = [found[name] for _, found in methods if name in found and found[name][3]]
        ends = [0.0, *(end for each in there for end in each[:3])]
        axis = Axis(*_rounded(min(ends), max(ends)), left + wide * p, PANEL)
        pen.text((axis.at(axis.low), above - LETTERS - PAD / 2), COLUMNS[name].title, INK, font, anchor="lm")
        bottom = above + ROW * len(methods)
        for value, text in axis.ticks():
            pen.line([(axis.at(value), above), (axis.at(value), bottom + 4)], PALE)
            pen.text((axis.at(value), bottom + ROW / 2), text, LINE, font, anchor="mm")
        for r, (_, found) in enumerate(methods):
            if not found.get(name, (0, 0, 0, 0))[3]:
                continue
            mean, low, high, _ = found[name]
            top, middle = above + ROW * r + 6, above + ROW * r + ROW // 2
            begin, end = sorted((axis.at(0), axis.at(mean)))
            pen.rectangle([begin, top, end, top + ROW - 12], BAR)
            _whisker(pen, axis.at(low), axis.at(high), middle)
            text = f"{mean:.{COLUMNS[name].digits}f}"
            pen.text((axis.at(axis.high) + 8, middle), text, INK, font, anchor="lm")
        pen.line([(axis.at(0), above), (axis.at(0), bottom)], INK)
    return sheet


def plane(x: str, y: str, methods: Sequence[tuple[str, Mapping[str, Mean]]], title: str) -> Image.Image | None:
    """Two of COLUMNS against each other; settings of one method, name:setting=value, are joined in the order given.

    None where no method has both.
    """
    there = [(spec, found[x], found[y]) for spec, found in methods if min(found.get(n, (0,))[-1] for n in (x, y))]
    if not there:
        return None
    font = ImageFont.truetype(str(FONT), LETTERS)
    left, above = PAD + 60, 2 * PAD + LETTERS + 8
    right = max(int(font.getlength(_label(spec, there))) for spec, *_ in there) // 2
    several = [name for name in dict.fromkeys(map(_name, (s for s, *_ in there))) if _many(name, there)]
    below = 3 * LETTERS + 3 * PAD + (LETTERS + PAD) * len(several)
    sheet = Image.new("RGB", (left + SIDE[0] + right + PAD, above + SIDE[1] + below), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((PAD, PAD), title, INK, font)
    across = Axis(*_span([each for _, each, _ in there]), left, SIDE[0])
    up = Axis(*_span([each for *_, each in there]), above + SIDE[1], -SIDE[1])
    for value, text in across.ticks():
        pen.line([(across.at(value), above), (across.at(value), above + SIDE[1])], PALE)
        pen.text((across.at(value), above + SIDE[1] + PAD), text, LINE, font, anchor="mm")
    for value, text in up.ticks():
        pen.line([(left, up.at(value)), (left + SIDE[0], up.at(value))], PALE)
        pen.text((left - 8, up.at(value)), text, LINE, font, anchor="rm")
    pen.rectangle([left, above, left + SIDE[0], above + SIDE[1]], outline=LINE)
    pen.text((left + SIDE[0] / 2, above + SIDE[1] + 2 * PAD + LETTERS / 2), f"{COLUMNS[x].title} →", INK, font, "mm")
    pen.text((left + 6, above + 6), f"↑ {COLUMNS[y].title}", INK, font)
    named = dict.fromkeys(_name(spec) for spec, *_ in there)
    shapes = {name: SHAPES[at % len(SHAPES)] for at, name in enumerate(named)}
    spots = [(across.at(a[0]), up.at(b[0])) for _, a, b in there]
    for (_, a, b), (h, v) in zip(there, spots, strict=True):
        pen.line([(across.at(a[1]), v), (across.at(a[2]), v)], LINE)
        pen.line([(h, up.at(b[1])), (h, up.at(b[2]))], LINE)
    for name in several:
        pen.line([spot for spot, each in zip(spots, there, strict=True) if _name(each[0]) == name], MARK, 1)
    for (spec, *_), spot in zip(there, spots, strict=True):
        _shape(pen, shapes[_name(spec)], *spot)
    taken = [(h - 8, v - 8, h + 8, v + 8) for h, v in spots]
    taken.append((left, above, left + font.getlength(f"↑ {COLUMNS[y].title}") + 12, above + LETTERS + 12))
    for (spec, *_), spot in zip(there, spots, strict=True):
        _beside(pen, font, _label(spec, there), spot, taken, sheet.size)
    for at, name in enumerate(several):
        v = above + SIDE[1] + 3 * PAD + 2 * LETTERS + (LETTERS + PAD) * at
        _shape(pen, shapes[name], left + 8, v)
        pen.text((left + 24, v), f"{name}, by its settings", INK, font, anchor="lm")
    return sheet


def _name(spec: str) -> str:
    return spec.partition(":")[0]


def _many(name: str, there: Sequence[tuple]) -> bool:
    return sum(_name(spec) == name for spec, *_ in there) > 1


def _label(spec: str, there: Sequence[tuple]) -> str:
    """The settings, where a method has several; else all."""
    name, _, rest = spec.partition(":")
    return (rest or "as it is") if _many(name, there) else spec


def _whisker(pen: ImageDraw.ImageDraw, low: float, high: float, middle: float) -> None:
    pen.line([(low, middle), (high, middle)], INK)
    for end in (low, high):
        pen.line([(end, middle - 4), (end, middle + 4)], INK)


def _shape(pen: ImageDraw.ImageDraw, name: str, x: float, y: float, r: float = 6) -> None:
    if name in ("plus", "cross", "star"):
        ends = [] if name == "cross" else [((x - r, y), (x + r, y)), ((x, y - r), (x, y + r))]
        ends += [] if name == "plus" else [((x - r, y - r), (x + r, y + r)), ((x - r, y + r), (x + r, y - r))]
        for pair in ends:
            pen.line(pair, MARK, 3)
        return
    if name == "circle":
        pen.ellipse([x - r, y - r, x + r, y + r], MARK, INK)
        return
    w, h = {"bar": (r / 2, r), "dash": (r, r / 2)}.get(name, (r, r))
    square = [(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)]
    corners = {
        "triangle": [(x, y - r), (x + r, y + r), (x - r, y + r)],
        "down": [(x, y + r), (x + r, y - r), (x - r, y - r)],
        "right": [(x + r, y), (x - r, y - r), (x - r, y + r)],
        "diamond": [(x, y - r - 1), (x + r + 1, y), (x, y + r + 1), (x - r - 1, y)],
    }
    pen.polygon(corners.get(name, square), MARK, INK)


def _beside(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, text: str, spot: tuple, taken: list, size: tuple[int, int]
) -> None:
    """A label at the first place around its point that is free, with a line to it where that is far; added to taken."""
    w, h = font.getlength(text) + 4, LETTERS + 4
    places = []
    for far in (12, 26, 42, 60, 80, 102, 126):
        for dx, dy in ((1, 0), (1, -1), (1, 1), (-1, 0), (-1, -1), (-1, 1), (0, -1), (0, 1)):
            x, y = spot[0] + dx * far - w * (1 - dx) / 2, spot[1] + dy * far - h / 2
            places.append((far, (x, y, x + w, y + h)))
    inside = [each for each in places if each[1][0] >= 0 and each[1][1] >= 0 and each[1][2] <= size[0]]
    far, box = min(inside or places, key=lambda each: (sum(_over(each[1], other) for other in taken), each[0]))
    taken.append(box)
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    if far > 12:
        edge = (min(max(spot[0], box[0]), box[2]), min(max(spot[1], box[1]), box[3]))
        pen.line([spot, edge], LINE)
    pen.rectangle([box[0], box[1] + 2, box[2], box[3] - 2], "white")
    pen.text(middle, text, INK, font, anchor="mm")


def _over(a: tuple, b: tuple) -> float:
    """The area that two boxes share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _span(found: Sequence[Mean]) -> tuple[float, float]:
    """Ends of an axis for these, with some room."""
    low, high = min(each[1] for each in found), max(each[2] for each in found)
    room = max((high - low) * 0.08, abs(high) * 0.01, 1e-6)
    return low - room, high + room


def _rounded(low: float, high: float) -> tuple[float, float]:
    """0 among them, and round numbers."""
    step = _round(max(high - low, 1e-9) / 4)
    return math.floor(low / step + 1e-9) * step, max(math.ceil(high / step - 1e-9), 1) * step


def _round(step: float) -> float:
    """1, 2 or 5 times a power of ten, no less than `step`."""
    ten = 10.0 ** math.floor(math.log10(step))
    return next(ten * each for each in (1, 2, 5, 10) if ten * each >= step * (1 - 1e-9))
