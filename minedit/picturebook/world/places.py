"""Backgrounds of the picture book: seven places, each by day, at sunset and at night.

n is the side of the picture in pixels; positions are pixels or, multiplied by n, shares of the side.
"""

import random

from minedit.picturebook.world.draw import WHITE, Canvas, Colour, Point, frame, jitter, mix, shade, stream

PLACES = ("park", "beach", "snow", "desert", "street", "room", "grass")
TIMES = ("day", "night", "sunset")

SKY: dict[str, tuple[Colour, Colour]] = {
    "day": ((112, 182, 240), (206, 234, 252)),
    "sunset": ((118, 84, 150), (255, 168, 96)),
    "night": ((16, 22, 58), (52, 62, 112)),
}
LIGHT: dict[str, Colour] = {"day": WHITE, "sunset": (255, 214, 186), "night": (112, 122, 172)}
SUBJECT_LIGHT: dict[str, Colour] = {"day": WHITE, "sunset": (255, 236, 222), "night": (206, 210, 232)}
ROOM_LIGHT: dict[str, Colour] = {"day": WHITE, "sunset": (242, 230, 213), "night": (189, 179, 166)}
WALLS: tuple[Colour, ...] = ((232, 214, 186), (206, 220, 214), (228, 204, 204))
RUGS: tuple[Colour, ...] = ((146, 84, 96), (92, 118, 148), (110, 134, 104))
HOUSES: tuple[Colour, ...] = ((196, 130, 110), (214, 186, 142), (150, 158, 176), (182, 150, 160))
PETALS: tuple[Colour, ...] = ((250, 250, 250), (252, 214, 80), (240, 140, 180))
FRAME: Colour = (250, 246, 238)  # of the window, and the skirting board
MOON: Colour = (244, 240, 208)


def background(canvas: Canvas, place: str, time: str, seed: int) -> float:
    """Draw the place; returns the y of the ground line, in pixels, on which a subject's feet stand.

    Leaves the canvas lit as a subject is at that time of the day.
    """
    rng = stream(seed, "layout")
    horizon = canvas.size * rng.uniform(0.56, 0.66)
    feet = canvas.size * rng.uniform(0.84, 0.90)
    if place == "room":
        _room(canvas, time, horizon + canvas.size * 0.06, stream(seed, "place:room"))
    else:
        _sky(canvas, time, horizon, stream(seed, "sky"))
        canvas.light = LIGHT[time]
        _OUTDOORS[place](canvas, horizon, stream(seed, f"place:{place}"))
    canvas.light = SUBJECT_LIGHT[time]
    return feet


def _sky(canvas: Canvas, time: str, horizon: float, rng: random.Random) -> None:
    n = canvas.size
    top, bottom = SKY[time]
    canvas.gradient(jitter(top, rng, 6), jitter(bottom, rng, 6), 0, horizon + 2)
    canvas.light = WHITE
    x, y, size = rng.uniform(0.12, 0.88) * n, rng.uniform(0.10, 0.22) * n, rng.uniform(0.055, 0.075) * n
    clouds = [(rng.uniform(0, 1), rng.uniform(0.08, 0.30), rng.uniform(0.07, 0.11)) for _ in range(rng.randint(1, 3))]
    stars = [(rng.uniform(0.02, 0.98), rng.uniform(0.02, 0.40), rng.uniform(0.006, 0.010)) for _ in range(9)]
    if time == "night":
        for sx, sy, r in stars:
            canvas.ellipse((sx * n, sy * n), r * n, r * n, (236, 236, 210))
        canvas.ellipse((x, y), size, size, MOON)
        canvas.ellipse((x + size * 0.45, y - size * 0.2), size * 0.85, size * 0.85, mix(top, bottom, y / horizon))
        return
    if time == "sunset":
        canvas.ellipse((x, horizon - n * 0.04), size * 1.6, size * 1.6, (255, 222, 120))
    else:
        canvas.ellipse((x, y), size, size, (255, 226, 92))
    white = WHITE if time == "day" else (255, 206, 176)
    for cx, cy, r in clouds:
        for dx, dy, k in ((-1.1, 0.15, 0.7), (0, 0, 1), (1.1, 0.2, 0.75)):
            canvas.ellipse(((cx + dx * r * 0.8) * n, (cy + dy * r) * n), r * n * k, r * n * k * 0.55, white)


def _hill(canvas: Canvas, horizon: float, height: float, centre: float, width: float, colour: Colour) -> None:
    canvas.ellipse((centre * canvas.size, horizon), width * canvas.size, height * canvas.size, colour)


def _tree(canvas: Canvas, x: float, base: float, height: float, leaf: Colour) -> None:
    canvas.rectangle(x - height * 0.06, base - height * 0.45, x + height * 0.06, base, (116, 80, 52))
    for dx, dy, r in ((-0.18, -0.52, 0.22), (0.18, -0.52, 0.22), (0.0, -0.72, 0.27)):
        canvas.ellipse((x + dx * height, base + dy * height), r * height, r * height, leaf)


def _sides(rng: random.Random, count: int) -> list[float]:
    """`count` positions (share of the width) that leave the middle, where the subject stands, mostly free."""
    spots = [rng.uniform(0.04, 0.26), rng.uniform(0.74, 0.96), rng.uniform(0.05, 0.95)]
    rng.shuffle(spots)
    return spots[:count]


def _park(canvas: Canvas, horizon: float, rng: random.Random) -> None:
    n, green = canvas.size, jitter((104, 172, 92), rng)
    _hill(canvas, horizon, 0.10, rng.uniform(0.1, 0.9), 0.6, shade(green, 0.86))
    canvas.band(horizon, n, green)
    path, x = jitter((222, 202, 160), rng), rng.uniform(0.3, 0.7) * n
    canvas.polygon([(x - n * 0.03, horizon), (x + n * 0.03, horizon), (x + n * 0.32, n), (x - n * 0.22, n)], path)
    leaf = jitter((58, 132, 70), rng)
    for spot in _sides(rng, rng.randint(2, 3)):
        _tree(canvas, spot * n, horizon + n * rng.uniform(0.0, 0.06), n * rng.uniform(0.36, 0.48), leaf)


def _grass(canvas: Canvas, horizon: float, rng: random.Random) -> None:
    n, green = canvas.size, jitter((142, 204, 84), rng)
    for _ in range(2):
        _hill(canvas, horizon, rng.uniform(0.07, 0.14), rng.uniform(0, 1), 0.55, mix(green, (120, 190, 120), 0.5))
    canvas.band(horizon, n, green)
    petal = rng.choice(PETALS)
    for _ in range(rng.randint(5, 8)):
        x, y = rng.uniform(0.03, 0.97) * n, rng.uniform(horizon + n * 0.05, n * 0.97)
        canvas.ellipse((x, y), n * 0.014, n * 0.014, petal)


def _beach(canvas: Canvas, horizon: float, rng: random.Random) -> None:
    n, sea = canvas.size, jitter((58, 142, 196), rng)
    shore = horizon + n * rng.uniform(0.10, 0.15)
    canvas.band(horizon, shore + 4, sea)
    canvas.band(shore - n * 0.012, shore + n * 0.02, (236, 246, 248))
    canvas.band(shore + n * 0.008, n, jitter((240, 216, 160), rng))
    if rng.random() < 0.6:
        _boat(canvas, rng.uniform(0.1, 0.9) * n, horizon + n * 0.03)
    x = rng.choice([rng.uniform(0.06, 0.2), rng.uniform(0.8, 0.94)]) * n
    lean = rng.uniform(-0.05, 0.05) * n
    _palm(canvas, (x, shore + n * 0.06), (x + lean, horizon - n * rng.uniform(0.16, 0.26)))


def _boat(canvas: Canvas, x: float, y: float) -> None:
    at = frame((x, y), canvas.size)
    canvas.polygon([at(0, -0.10), at(0.06, -0.01), at(0, -0.01)], (250, 248, 240))
    canvas.polygon([at(-0.04, 0), at(0.07, 0), at(0.05, 0.02), at(-0.02, 0.02)], (170, 70, 60))


def _palm(canvas: Canvas, root: Point, top: Point) -> None:
    n = canvas.size
    canvas.limb([root, top], n * 0.035, (150, 108, 70), n * 0.025)
    for dx, dy in ((-0.15, 0.03), (0.15, 0.03), (-0.10, -0.07), (0.10, -0.07)):
        bend = (top[0] + dx * n * 0.6, top[1] + dy * n - n * 0.02)
        tip = (top[0] + dx * n, top[1] + dy * n + n * 0.03)
        canvas.limb([top, bend, tip], n * 0.035, (70, 150, 84), n * 0.012)


def _snow(canvas: Canvas, horizon: float, rng: random.Random) -> None:
    n, white = canvas.size, jitter((238, 244, 250), rng, 5)
    for _ in range(2):
        x, h, w = rng.uniform(0, 1) * n, rng.uniform(0.16, 0.28) * n, rng.uniform(0.28, 0.4) * n
        canvas.polygon([(x - w, horizon + 2), (x, horizon - h), (x + w, horizon + 2)], (160, 178, 204))
        canvas.polygon([(x - w * 0.3, horizon - h * 0.7), (x, horizon - h), (x + w * 0.3, horizon - h * 0.7)], white)
    canvas.band(horizon, n, white)
    for spot in _sides(rng, rng.randint(1, 3)):
        _fir(canvas, spot * n, horizon + n * rng.uniform(0.01, 0.06), n * rng.uniform(0.28, 0.4), white)


def _fir(canvas: Canvas, x: float, base: float, h: float, snow: Colour) -> None:
    canvas.rectangle(x - h * 0.05, base - h * 0.15, x + h * 0.05, base, (110, 78, 56))
    for level in range(3):
        y, w = base - h * (0.12 + 0.26 * level), h * (0.28 - 0.06 * level)
        canvas.polygon([(x - w, y), (x, y - h * 0.38), (x + w, y)], (62, 118, 100))
        canvas.polygon([(x - w * 0.4, y - h * 0.23), (x, y - h * 0.38), (x + w * 0.4, y - h * 0.23)], snow)


def _desert(canvas: Canvas, horizon: float, rng: random.Random) -> None:
    n, sand = canvas.size, jitter((226, 172, 104), rng)
    for _ in range(2):
        _hill(canvas, horizon + n * 0.02, rng.uniform(0.06, 0.13), rng.uniform(0, 1), 0.45, shade(sand, 0.9))
    canvas.band(horizon, n, sand)
    green = jitter((82, 140, 82), rng)
    for spot in _sides(rng, rng.randint(1, 3)):
        _cactus(canvas, spot * n, horizon + n * rng.uniform(0.02, 0.08), n * rng.uniform(0.22, 0.32), green)


def _cactus(canvas: Canvas, x: float, base: float, h: float, colour: Colour) -> None:
    canvas.limb([(x, base), (x, base - h)], h * 0.2, colour)
    for side, start in ((-1, 0.4), (1, 0.55)):
        bend = (x + side * h * 0.28, base - h * start)
        canvas.limb([(x, base - h * start), bend, (bend[0], bend[1] - h * 0.28)], h * 0.14, colour)


def _street(canvas: Canvas, horizon: float, rng: random.Random) -> None:
    n, x = canvas.size, -0.05 * canvas.size
    while x < n:
        w, h = rng.uniform(0.22, 0.32) * n, rng.uniform(0.30, 0.52) * n
        wall = jitter(rng.choice(HOUSES), rng)
        canvas.rectangle(x, horizon - h, x + w, horizon + 2, wall)
        for row in range(2):
            for column in range(2):
                wx, wy = x + w * (0.18 + 0.42 * column), horizon - h + n * (0.05 + 0.14 * row)
                canvas.rectangle(wx, wy, wx + w * 0.22, wy + n * 0.08, (250, 234, 170))
        x += w
    canvas.band(horizon, n, jitter((124, 126, 134), rng))
    canvas.band(horizon, horizon + n * 0.07, jitter((192, 190, 186), rng))
    y, offset = horizon + n * 0.24, rng.uniform(0, 0.3)
    for i in range(-1, 4):
        canvas.rectangle((offset + i * 0.3) * n, y, (offset + i * 0.3 + 0.16) * n, y + n * 0.025, (240, 238, 226))


def _room(canvas: Canvas, time: str, floor: float, rng: random.Random) -> None:
    n = canvas.size
    canvas.light = ROOM_LIGHT[time]
    canvas.band(0, floor, jitter(rng.choice(WALLS), rng))
    canvas.band(floor, n, jitter((176, 128, 88), rng))
    canvas.band(floor - n * 0.025, floor + n * 0.005, FRAME)
    canvas.ellipse((n * rng.uniform(0.4, 0.6), n * 0.9), n * 0.42, n * 0.09, jitter(rng.choice(RUGS), rng))
    left = rng.random() < 0.5
    _window(canvas, time, n * (0.08 if left else 0.62), n * rng.uniform(0.08, 0.14))
    at = frame((n * (0.66 if left else 0.14), n * rng.uniform(0.12, 0.2)), n)  # a painting on the other side
    canvas.rectangle(*at(0, 0), *at(0.2, 0.16), (130, 92, 60))
    canvas.rectangle(*at(0.02, 0.02), *at(0.18, 0.14), jitter(rng.choice([(140, 180, 170), (220, 170, 120)]), rng))


def _window(canvas: Canvas, time: str, x: float, y: float) -> None:
    """(x, y) is its upper left corner; the light of the room does not reach it."""
    n, side, room = canvas.size, canvas.size * 0.30, canvas.light
    canvas.light = WHITE
    canvas.rectangle(x - n * 0.02, y - n * 0.02, x + side + n * 0.02, y + side + n * 0.02, FRAME)
    canvas.rectangle(x, y, x + side, y + side, mix(*SKY[time], 0.5))
    if time == "night":
        canvas.ellipse((x + side * 0.7, y + side * 0.28), n * 0.03, n * 0.03, MOON)
    canvas.rectangle(x + side / 2 - n * 0.01, y, x + side / 2 + n * 0.01, y + side, FRAME)
    canvas.light = room


_OUTDOORS = {"park": _park, "beach": _beach, "snow": _snow, "desert": _desert, "street": _street, "grass": _grass}
