"""A roofline picture from the lab's rows: flops a byte across, flops a second upwards, both logarithmic.

The ceiling is min(bandwidth · flops / byte, peak), measured when the rows were. A point is a function (its colour) on a
case (its number, explained beside the plot). bytes are those of lab/bench.py: what the case must move, no cache.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Generator

from minedit.config import MineditError
from minedit.image import FONT
from minedit.lab.forms import RULES, Shape
from minedit.lab.rows import COLUMNS

WIDTH, KEY, TOP, LOW, LEFT = 1200, 310, 74, 62, 84  # pixels: of all, of the explanations, of the margins
LINE = 19  # of the explanations
COLOURS = ("#0b6fc2", "#d1495b", "#2a9d5c", "#8a4fbd", "#c97b12", "#4a4a4a", "#00838f", "#ad1457")
GREY, INK = "#d9d9d9", "#222222"


@dataclass(frozen=True)
class Point:
    attention: str
    case: str  # what it was tried on
    intensity: float  # flops a byte
    speed: float  # flops a second


@dataclass(frozen=True)
class Roof:
    bandwidth: float  # bytes a second
    peak: float  # flops a second

    def at(self, intensity: float) -> float:
        return min(intensity * self.bandwidth, self.peak)


def points(rows: Iterable[dict[str, str]]) -> list[Point]:
    """Of each function and case the last row that has a time."""
    found = {}
    for row in rows:
        if row["ms"]:
            found[row["attention"], _case(row)] = row
    return [Point(name, case, *_place(row)) for (name, case), row in found.items()]


def _case(row: dict[str, str]) -> str:
    sizes = "x".join(row[name] for name in ("batch", "heads", "pixels", "tokens", "width"))
    return " ".join(filter(None, (row["kind"], sizes, row["note"], row["rule"]))) + COLUMNS * (row["columns"] == "True")


def _place(row: dict[str, str]) -> tuple[float, float]:
    """(flops / byte, flops / second): flops are those of bench.traffic, bytes what gb_s was computed from."""
    B, H, N, T, D = (int(row[name]) for name in ("batch", "heads", "pixels", "tokens", "width"))
    flops = 4 * H * N * T * D * (B + _edits(row["rule"]))
    seconds = float(row["ms"]) / 1e3
    return flops / (float(row["gb_s"]) * 1e9 * seconds), flops / seconds


def _edits(rule: str) -> int:
    made = RULES[rule](Shape("self", 4, 1, 8, 8, 2), Generator().manual_seed(0))
    return len(made.edits) if made else 0


def drawn(rows: list[dict[str, str]], title: str) -> Image.Image:
    """Rows of one device and dtype. Raises MineditError where none has a time."""
    found = points(rows)
    if not found:
        raise MineditError("no row has a time; expected rows of `kernels bench`")
    roof = Roof(
        *(max(float(row[name]) for row in rows if row["ms"]) * 1e9 for name in ("ceiling_gb_s", "ceiling_gflop_s"))
    )
    cases, functions = (list(dict.fromkeys(getattr(p, name) for p in found)) for name in ("case", "attention"))
    cases.sort(key=lambda case: max(p.intensity for p in found if p.case == case))
    height = max(760, TOP + LOW + LINE * (len(functions) + len(cases) + 4))
    picture = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(picture)
    area = _Area(draw, found, roof, (LEFT, TOP, WIDTH - KEY - 24, height - LOW))
    draw.text((LEFT, 22), title, INK, _font(20))
    area.grid()
    area.ceiling(roof)
    numbers = {case: str(i + 1) for i, case in enumerate(cases)}
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(functions)}
    area.points(found, numbers, colours)
    _explained(draw, colours, numbers, TOP)
    return picture


class _Area:
    """The plot: where a number lies in it, and what is taken already."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, found: list[Point], roof: Roof, box: tuple[int, int, int, int]
    ) -> None:
        self.draw, self.box, self.taken = draw, box, []
        ridge = roof.peak / roof.bandwidth
        across = [ridge / 6, *(p.intensity for p in found)]
        upwards = [roof.peak, *(p.speed for p in found), roof.at(min(across))]
        self.x, self.y = _decades(across), _decades(upwards)

    def at(self, intensity: float, speed: float) -> tuple[float, float]:
        left, top, right, low = self.box
        x, y = ((math.log10(v) - a) / (b - a) for v, (a, b) in ((intensity, self.x), (speed, self.y)))
        return left + x * (right - left), low - y * (low - top)

    def grid(self) -> None:
        left, top, right, low = self.box
        for number in _ticks(self.x):
            x, _ = self.at(number, 10 ** self.y[0])
            self.draw.line((x, top, x, low), GREY)
            self.draw.text((x, low + 8), f"{number:g}", INK, _font(15), anchor="mt")
        for number in _ticks(self.y):
            _, y = self.at(10 ** self.x[0], number)
            self.draw.line((left, y, right, y), GREY)
            self.draw.text((left - 8, y), _speed(number), INK, _font(15), anchor="rm")
        self.draw.rectangle(self.box, outline=INK)
        self.draw.text(((left + right) / 2, low + 32), "flops / byte", INK, _font(16), anchor="mt")
        self.draw.text((left, top - 8), "flops / second", INK, _font(16), anchor="lb")

    def ceiling(self, roof: Roof) -> None:
        ridge = roof.peak / roof.bandwidth
        ends = [10 ** self.x[0], ridge, 10 ** self.x[1]]
        line = [self.at(x, max(roof.at(x), 10 ** self.y[0])) for x in ends]
        if roof.at(ends[0]) < 10 ** self.y[0]:
            line[0] = self.at(10 ** self.y[0] / roof.bandwidth, 10 ** self.y[0])
        self.draw.line(line, INK, 3)
        across, peak = line[1]
        self._text((across + 6, peak - 6), f"peak {_speed(roof.peak)}flop/s", "ls")
        x, y = self.at(ridge / 3, roof.at(ridge / 3))
        self._text((x + 10, y + 4), f"{roof.bandwidth / 1e9:.4g} GB/s", "lt")

    def _text(self, at: tuple[float, float], text: str, anchor: str) -> None:
        box = self.draw.textbbox(at, text, _font(15), anchor)
        left, _, right, _ = self.box
        at = (at[0] + max(0, left + 4 - box[0]) - max(0, box[2] - right + 4), at[1])
        self.taken.append(self.draw.textbbox(at, text, _font(15), anchor))
        self.draw.text(at, text, INK, _font(15), anchor=anchor)

    def points(self, found: list[Point], numbers: dict[str, str], colours: dict[str, str]) -> None:
        """All points, then each one's number as near to it as there is room."""
        places = {p: self.at(p.intensity, p.speed) for p in found}
        self.taken += [(x - 5, y - 5, x + 5, y + 5) for x, y in places.values()]
        labels = [(p, x, y, *self._beside(x, y, numbers[p.case])) for p, (x, y) in places.items()]
        for _, x, y, a, b in labels:
            self.draw.line((x, y, a, b), "#bbbbbb")
        for p, (x, y) in places.items():
            self.draw.ellipse((x - 5, y - 5, x + 5, y + 5), colours[p.attention], "white")
        for p, _, _, a, b in labels:
            self.draw.text((a, b), numbers[p.case], colours[p.attention], _font(14), anchor="mm")

    def _beside(self, x: float, y: float, text: str) -> tuple[float, float]:
        for far in range(13, 130, 7):
            for step in range(16):
                angle = math.pi * (0.25 + step * 3 / 8)
                at = x + far * math.cos(angle), y - far * math.sin(angle)
                box = self.draw.textbbox(at, text, _font(14), "mm")
                if _inside(box, self.box) and not any(_overlap(box, other) for other in self.taken):
                    self.taken.append(box)
                    return at
        return x, y - 13


def _explained(draw: ImageDraw.ImageDraw, colours: dict[str, str], numbers: dict[str, str], y: int) -> None:
    left = WIDTH - KEY
    for name, colour in colours.items():
        draw.ellipse((left, y + 3, left + 11, y + 14), colour)
        draw.text((left + 20, y), _cut(draw, name, 15, KEY - 26), INK, _font(15))
        y += LINE + 2
    y += LINE // 2
    for case, number in numbers.items():
        draw.text((left + 22, y), number, INK, _font(14), anchor="ra")
        draw.text((left + 30, y), _cut(draw, case, 14, KEY - 36), INK, _font(14))
        y += LINE


def _cut(draw: ImageDraw.ImageDraw, text: str, size: int, room: int) -> str:
    if draw.textlength(text, _font(size)) <= room:
        return text
    while draw.textlength(text + "…", _font(size)) > room:
        text = text[:-1]
    return text + "…"


def _decades(numbers: list[float]) -> tuple[float, float]:
    """Exponents around them, with a little room."""
    return math.log10(min(numbers)) - 0.25, math.log10(max(numbers)) + 0.35


def _ticks(exponents: tuple[float, float]) -> list[float]:
    """1, 2, 5, 10, 20 ... between them; only tenfold ones where those would be many."""
    low, high = exponents
    every = [
        m * 10.0**p
        for p in range(math.floor(low), math.ceil(high) + 1)
        for m in ((1, 2, 5) if high - low < 5 else (1,))
    ]
    return [number for number in every if low <= math.log10(number) <= high]


def _speed(flops: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if flops >= size:
            return f"{flops / size:.4g} {unit}"
    return f"{flops:.3g} "


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size)


def _inside(box: tuple, area: tuple) -> bool:
    return box[0] > area[0] and box[1] > area[1] and box[2] < area[2] and box[3] < area[3]


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
