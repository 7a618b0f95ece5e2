"""Still life: one, two or three things of a kind on a table or on a plate.

r is the radius of a thing in pixels; `base`, the height where it touches what it stands on, and `middle` are pixels.
"""

from dataclasses import dataclass

from minedit.picturebook.world.draw import WHITE, Canvas, Colour, Point, frame, jitter, mix, shade, stream

THINGS = ("apple", "peach", "ball", "cake", "chocolate cake", "hamburger", "strawberry")
SUPPORTS = ("table", "plate")
THING_COLOURS: dict[str, dict[str, Colour]] = {
    "apple": {"red": (208, 44, 44), "green": (128, 184, 60), "yellow": (244, 208, 70)},
    "ball": {
        "red": (222, 60, 56),
        "blue": (56, 108, 214),
        "green": (58, 168, 92),
        "yellow": (250, 210, 64),
        "purple": (142, 78, 176),
    },
}
WALLS: tuple[Colour, ...] = ((214, 224, 216), (236, 218, 194), (206, 214, 232))
WOODS: tuple[Colour, ...] = ((178, 124, 78), (150, 100, 66), (206, 164, 116))
# The tone that varies from picture to picture, of things that have no colour to name; the others do not vary.
TONES: dict[str, Colour] = {"peach": (250, 176, 124), "cake": (244, 150, 170), "strawberry": (222, 44, 58)}
LEAF: Colour = (84, 156, 66)
LETTUCE: Colour = (112, 178, 72)


@dataclass(frozen=True)
class Things:
    """What stands there: `colour` is None where the thing has just one, `count` is 1 to 3."""

    thing: str
    count: int
    colour: str | None
    support: str


def still_life(canvas: Canvas, things: Things, radius: float, seed: int) -> None:
    """Draw the table (and plate) and the things in a row; `radius` is that of one in pixels, less if it is crowded."""
    n, count, rng = canvas.size, things.count, stream(seed, "still")
    wall, wood = jitter(rng.choice(WALLS), rng), jitter(rng.choice(WOODS), rng)
    edge = n * rng.uniform(0.42, 0.52)
    canvas.band(0, n, wall)
    canvas.band(edge, n, wood)
    canvas.band(edge, edge + n * 0.02, mix(wood, (255, 240, 220), 0.4))
    x, base = n * (0.5 + rng.uniform(-0.06, 0.06)), n * rng.uniform(0.74, 0.80)
    if things.support == "plate":
        china = jitter((246, 246, 248), rng, 5)
        canvas.ellipse((x, base + n * 0.035), n * 0.43, n * 0.125, shade(wood, 0.8))
        canvas.ellipse((x, base + n * 0.015), n * 0.43, n * 0.125, china)
        canvas.ellipse((x, base + n * 0.012), n * 0.31, n * 0.08, shade(china, 0.91))
    mean = THING_COLOURS[things.thing][things.colour] if things.colour else TONES.get(things.thing, WHITE)
    tone = jitter(mean, stream(seed, f"thing:{things.thing}"), 8)
    shadow = shade(wood, 0.72) if things.support == "table" else (196, 196, 202)

    places = stream(seed, "places")
    bumps = [(places.uniform(-0.1, 0.1), places.uniform(-0.04, 0.06)) for _ in range(3)]
    pitch = min(radius * 2.25, n * 0.29) if count < 3 else min(radius * 2.2, n * 0.265)
    r = min(radius, pitch / 2.05) if count > 1 else radius
    for i, (dx, dy) in enumerate(bumps[:count]):
        middle, foot = x + (i - (count - 1) / 2) * pitch + dx * r, base + dy * n * 0.5
        canvas.ellipse((middle + r * 0.1, foot), r * 1.02, r * 0.22, shadow)
        canvas.in_subject = True
        _DRAW[things.thing](canvas, (middle, foot), r, tone)
        canvas.in_subject = False


def _apple(canvas: Canvas, base: Point, r: float, tone: Colour, peach: bool = False) -> None:
    middle = (base[0], base[1] - r * 0.92)
    at = frame(middle, r)
    for side in (-0.28, 0.28):
        canvas.ellipse(at(side, 0), r * 0.72, r * 0.92, tone)
    if peach:  # a red cheek and a seam
        canvas.ellipse(at(0.42, 0.1), r * 0.5, r * 0.72, mix(tone, (232, 92, 80), 0.55))
        canvas.limb([at(0, -0.8), at(0.06, 0), at(0, 0.7)], r * 0.07, shade(tone, 0.8))
    canvas.ellipse(at(-0.42, -0.35), r * 0.17, r * 0.24, mix(tone, WHITE, 0.6))
    canvas.limb([at(0, -0.75), at(0.08, -1.18)], r * 0.12, (96, 66, 44))
    canvas.ellipse(at(0.38, -1.05), r * 0.32, r * 0.15, LEAF, angle=-24)


def _peach(canvas: Canvas, base: Point, r: float, tone: Colour) -> None:
    _apple(canvas, base, r, tone, peach=True)


def _ball(canvas: Canvas, base: Point, r: float, tone: Colour) -> None:
    middle = (base[0], base[1] - r * 0.92)
    canvas.ellipse(middle, r, r, tone)
    canvas.ellipse(middle, r, r * 0.30, (250, 248, 242), angle=-18)
    canvas.ellipse(middle, r * 0.93, r * 0.16, tone, angle=-18)
    canvas.ellipse(frame(middle, r)(-0.38, -0.5), r * 0.2, r * 0.16, mix(tone, WHITE, 0.7))


def _pale_cake(canvas: Canvas, base: Point, r: float, tone: Colour) -> None:
    _cake(canvas, base, r, sponge=(246, 214, 150), cream=tone, icing=(252, 244, 236))


def _chocolate_cake(canvas: Canvas, base: Point, r: float, tone: Colour) -> None:
    _cake(canvas, base, r, sponge=(92, 56, 40), cream=(226, 190, 150), icing=(62, 36, 28))


def _cake(canvas: Canvas, base: Point, r: float, sponge: Colour, cream: Colour, icing: Colour) -> None:
    at = frame(base, r)
    canvas.ellipse(at(0, -0.1), r, r * 0.24, shade(sponge, 0.9))
    canvas.rectangle(*at(-1, -1.15), *at(1, -0.1), sponge)
    canvas.rectangle(*at(-1, -0.70), *at(1, -0.54), cream)
    canvas.ellipse(at(0, -1.15), r, r * 0.28, icing)
    for dx, drop in ((-0.75, -0.86), (-0.25, -0.94), (0.25, -0.86), (0.75, -0.94)):
        canvas.limb([at(dx, -1.05), at(dx, drop)], r * 0.3, icing)
    canvas.ellipse(at(0, -1.42), r * 0.22, r * 0.22, (206, 40, 58))  # a cherry


def _hamburger(canvas: Canvas, base: Point, r: float, tone: Colour) -> None:
    at = frame(base, r)
    canvas.rectangle(*at(-1, -0.42), *at(1, 0), (214, 148, 76), r * 0.2)
    canvas.rectangle(*at(-1.05, -0.72), *at(1.05, -0.4), (112, 66, 42), r * 0.14)  # the patty
    canvas.rectangle(*at(-1.04, -0.84), *at(1.04, -0.7), (250, 204, 72))  # cheese
    canvas.limb([at(-0.95, -0.92), at(0.95, -0.92)], r * 0.2, LETTUCE)
    canvas.ellipse(at(0, -1.0), r, r * 0.72, (226, 160, 84))
    canvas.rectangle(*at(-1, -1.02), *at(1, -0.96), (200, 136, 66))
    canvas.limb([at(-0.9, -0.92), at(0.9, -0.92)], r * 0.18, LETTUCE)
    for seed in ((-0.5, -1.36), (-0.05, -1.52), (0.42, -1.4)):
        canvas.ellipse(at(*seed), r * 0.08, r * 0.05, (252, 236, 200))


def _strawberry(canvas: Canvas, base: Point, r: float, tone: Colour) -> None:
    low, at = frame(base, r), frame((base[0], base[1] - r * 0.92), r)
    canvas.ellipse(at(0, -0.2), r * 0.82, r * 0.6, tone)
    canvas.polygon([at(-0.80, -0.1), at(0.80, -0.1), low(0.14, -0.04), low(-0.14, -0.04)], tone)
    for seed in ((-0.4, 0.0), (0.05, -0.1), (0.42, 0.05), (-0.15, 0.35), (0.2, 0.4)):
        canvas.ellipse(at(*seed), r * 0.06, r * 0.08, (252, 220, 140))
    for angle in (-50, 0, 50):
        x, y = at(0, -0.72)
        canvas.ellipse((x + angle / 90 * r * 0.7, y), r * 0.34, r * 0.14, (74, 150, 64), angle=angle * 0.7)


_DRAW = {
    "apple": _apple,
    "peach": _peach,
    "ball": _ball,
    "cake": _pale_cake,
    "chocolate cake": _chocolate_cake,
    "hamburger": _hamburger,
    "strawberry": _strawberry,
}
