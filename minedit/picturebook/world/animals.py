"""Dogs, cats, horses and birds.

Lengths, angles and the names of directions are those of `looks.Figure`.
"""

from dataclasses import dataclass

from minedit.picturebook.world.draw import Canvas, Colour, Point, frame, mix, shade
from minedit.picturebook.world.looks import Figure

PAW = 0.03  # height of the middle of a paw on the ground
PALE: Colour = (255, 250, 240)
DARK_EYES: Colour = (30, 26, 30)


@dataclass(frozen=True)
class Build:
    """The measures of an animal."""

    length: float  # of the body
    thick: float  # height of the body
    leg: float
    neck: tuple[float, float]  # angle, length
    skull: float  # radius


BUILDS = {
    "dog": Build(0.46, 0.23, 0.26, (142, 0.22), 0.145),
    "cat": Build(0.42, 0.21, 0.22, (140, 0.19), 0.150),
    "horse": Build(0.52, 0.25, 0.40, (142, 0.36), 0.105),
}


@dataclass(frozen=True)
class Gait:
    """A pose on four legs. A leg is the angles of its upper and its lower bone."""

    front: tuple[tuple[float, float], tuple[float, float]]  # near, far
    hind: tuple[tuple[float, float], tuple[float, float]]
    pitch: float = 0.0  # of the body: chest up
    reach: float = 1.0  # height of the body's lower edge, in leg lengths
    lift: float = 0.0  # of the whole animal


GAITS = {
    "standing": Gait(((3, 2), (-5, -4)), ((4, 2), (-6, -4))),
    "walking": Gait(((30, 14), (-24, -30)), ((26, 10), (-26, -34)), reach=0.94),
    "running": Gait(((68, 50), (52, 70)), ((-62, -48), (-44, -70)), pitch=4, reach=0.62, lift=0.03),
    "jumping": Gait(((60, -40), (44, -60)), ((-50, -30), (-64, -44)), pitch=28, lift=0.16),
}


def draw_animal(canvas: Canvas, figure: Figure) -> None:
    """Draw a dog, a cat or a horse; a hat is not part of the subject's mask."""
    build, h = BUILDS[figure.subject], figure.height
    angle, neck = build.neck
    canvas.in_subject = True
    if figure.pose == "sitting":
        chest = _sit(canvas, figure, build)
    elif figure.pose == "lying":
        chest = _lie(canvas, figure, build)
        angle, neck = angle - 4, neck * 0.85
    else:
        chest = _stand(canvas, figure, build, GAITS[figure.pose])
    base = figure.go(chest, 160, build.thick * 0.15)
    head = figure.go(base, angle, neck)
    canvas.limb([base, head], build.thick * h * 0.72, figure.tint, build.skull * h * 1.25)
    {"dog": _dog_head, "cat": _cat_head, "horse": _horse_head}[figure.subject](canvas, figure, head, build.skull * h)
    canvas.in_subject = False
    if figure.held == "hat":
        _hat(canvas, figure, head, build.skull * h)


def _paw(figure: Figure, joint: Point, dx: float) -> Point:
    """On the ground, `dx` in front of `joint`."""
    return joint[0] + dx * figure.height, figure.feet[1] - PAW * figure.height


def _sit(canvas: Canvas, figure: Figure, build: Build) -> Point:
    """Draw the body upright on its haunches; returns the chest, as the other poses do."""
    h, tint, dark = figure.height, figure.tint, shade(figure.tint, 0.78)
    rump = figure.at(-0.10, -0.13)
    chest = figure.go(rump, 150, 0.34)
    _tail(canvas, figure, figure.beside(rump, -0.1, 0.05), dark)
    canvas.ellipse(rump, 0.16 * h, 0.14 * h, tint)
    canvas.limb([rump, chest], build.thick * h * 1.15, tint, build.thick * h * 0.85)
    for dx, tone in ((0.07, dark), (-0.01, tint)):
        canvas.limb([chest, _paw(figure, chest, dx)], 0.075 * h, tone)
    canvas.limb([_paw(figure, rump, 0), _paw(figure, rump, 0.15)], 0.07 * h, dark)
    return chest


def _lie(canvas: Canvas, figure: Figure, build: Build) -> Point:
    h, thick, dark = figure.height, build.thick, shade(figure.tint, 0.78)
    rump, chest = (figure.at(side * build.length / 2, -thick * 0.52) for side in (-1, 1))
    _tail(canvas, figure, figure.beside(rump, -thick * 0.4, 0), dark)
    canvas.limb([rump, chest], thick * h, figure.tint)
    for joint, start, end in ((chest, -0.04, 0.2), (rump, -0.02, 0.16)):
        canvas.limb([_paw(figure, joint, start), _paw(figure, joint, end)], 0.075 * h, dark)
    return chest


def _stand(canvas: Canvas, figure: Figure, build: Build, gait: Gait) -> Point:
    h, thick, leg, dark = figure.height, build.thick, build.leg, shade(figure.tint, 0.78)
    middle = figure.at(0, -(leg * gait.reach + thick / 2 + gait.lift))
    chest, rump = (figure.go(middle, side + gait.pitch, build.length / 2) for side in (90, 270))
    _tail(canvas, figure, figure.go(rump, 250, thick * 0.4), dark)
    for far, tone in ((1, dark), (0, figure.tint)):
        for hip, (upper, lower), inwards in ((chest, gait.front[far], -0.02), (rump, gait.hind[far], 0.02)):
            top = figure.beside(hip, inwards, thick * 0.25)
            knee = figure.go(top, upper, leg * 0.5)
            canvas.limb([top, knee, figure.go(knee, lower, leg * 0.42)], 0.085 * h, tone, 0.06 * h)
    canvas.limb([rump, chest], thick * h, figure.tint)
    return chest


def _tail(canvas: Canvas, figure: Figure, root: Point, tone: Colour) -> None:
    if figure.subject == "dog":
        points, width, end = ((-0.08, -0.06), (-0.12, -0.17)), 0.07, 0.05
    elif figure.subject == "cat":
        points, width, end = ((-0.10, -0.08), (-0.12, -0.22), (-0.06, -0.32)), 0.06, 0.045
        if figure.pose in ("lying", "sitting"):
            points = ((-0.14, 0.04), (-0.22, -0.02), (-0.24, -0.10))
    else:
        tip = (-0.22, 0.06) if figure.pose == "running" else (-0.13, 0.20)
        points, width, end, tone = ((-0.08, 0.02), tip), 0.08, 0.05, shade(tone, 0.7)
    h = figure.height
    canvas.limb([root, *(figure.beside(root, *point) for point in points)], width * h, tone, end * h)


def _eyes(tint: Colour, light: Colour = (236, 214, 90)) -> Colour:
    """Dark eyes, but light ones in dark fur."""
    return DARK_EYES if sum(tint) > 260 else light


def _horse_head(canvas: Canvas, figure: Figure, head: Point, s: float) -> None:
    at, tint = frame(head, s), figure.tint
    canvas.limb([at(-0.6, -0.9), at(-1.7, 1.2), at(-2.2, 2.6)], s * 0.8, shade(tint, 0.55), s * 0.6)  # the mane
    canvas.polygon([at(-0.5, -0.6), at(-0.1, -1.9), at(0.4, -0.7)], tint)
    canvas.limb([head, at(1.5, 1.0)], s * 1.9, tint, s * 1.25)
    canvas.ellipse(at(1.65, 1.1), s * 0.62, s * 0.55, mix(tint, PALE, 0.45))
    canvas.ellipse(at(0.35, -0.15), s * 0.2, s * 0.24, DARK_EYES)


def _dog_head(canvas: Canvas, figure: Figure, head: Point, s: float) -> None:
    at, tint = frame(head, s), figure.tint
    canvas.ellipse(head, s, s * 0.95, tint)
    canvas.ellipse(at(0.8, 0.3), s * 0.62, s * 0.45, mix(tint, PALE, 0.45))
    canvas.ellipse(at(1.28, 0.14), s * 0.2, s * 0.17, (40, 32, 34))
    canvas.ellipse(at(-0.62, 0.15), s * 0.34, s * 0.78, shade(tint, 0.7), angle=12)  # the ear
    canvas.ellipse(at(0.25, -0.15), s * 0.17, s * 0.2, _eyes(tint))


def _cat_head(canvas: Canvas, figure: Figure, head: Point, s: float) -> None:
    at, tint = frame(head, s), figure.tint
    for ear in (-0.75, 0.45):
        canvas.polygon([at(ear - 0.2, -0.4), at(ear + 0.15, -1.6), at(ear + 0.5, -0.6)], tint)
    canvas.ellipse(head, s, s * 0.95, tint)
    canvas.ellipse(at(0.35, 0.35), s * 0.5, s * 0.36, mix(tint, PALE, 0.45))
    canvas.polygon([at(0.24, 0.16), at(0.5, 0.16), at(0.37, 0.34)], (226, 128, 132))
    for eye in (-0.1, 0.68):
        canvas.ellipse(at(eye, -0.15), s * 0.17, s * 0.2, _eyes(tint))


def _hat(canvas: Canvas, figure: Figure, head: Point, s: float) -> None:
    at, colour = frame(head, s), figure.look.thing
    canvas.limb([at(-0.1, -0.9), at(-0.1, -1.5)], s * 1.1, colour, s * 0.9)
    canvas.limb([at(-1.0, -0.85), at(1.0, -0.85)], s * 0.32, shade(colour, 0.8))


WINGS = {  # far, near; from the middle of the body
    "flying": (
        ((-0.02, -0.05), (0.34, -0.56), (0.12, -0.58), (-0.22, -0.05)),
        ((0.10, 0.0), (-0.30, -0.62), (-0.52, -0.50), (-0.20, 0.06)),
    ),
    "spreading wings": (
        ((-0.02, -0.05), (0.34, -0.56), (0.12, -0.58), (-0.22, -0.05)),
        ((0.06, 0.0), (-0.26, -0.50), (-0.62, -0.44), (-0.66, -0.22), (-0.22, 0.08)),
    ),
}
TAIL_FEATHERS = ((-0.18, -0.06), (-0.55, 0.02), (-0.50, 0.14), (-0.15, 0.10))
BEAK: Colour = (244, 160, 48)


def draw_bird(canvas: Canvas, figure: Figure) -> None:
    """Draw a bird; it holds nothing."""
    h, tint, dark = figure.height, figure.tint, shade(figure.tint, 0.72)
    middle = figure.at(0, -0.70 if figure.pose == "flying" else -0.42)
    at = frame(middle, h)
    canvas.in_subject = True
    if figure.pose != "flying":
        for dx in (-0.06, 0.08):
            hip, ground = at(dx, 0.18), (middle[0] + dx * h, figure.feet[1])
            ankle, toe = (frame(ground, h)(*point) for point in ((0, -0.01), (0.05, -0.005)))
            canvas.limb([hip, ankle, toe], 0.03 * h, BEAK)
    canvas.polygon([at(*point) for point in TAIL_FEATHERS], dark)
    far, near = WINGS.get(figure.pose, (None, None))
    if far:
        canvas.polygon([at(*point) for point in far], dark)
    canvas.ellipse(middle, 0.30 * h, 0.215 * h, tint, angle=-14)
    canvas.ellipse(at(0.09, 0.06), 0.19 * h, 0.13 * h, mix(tint, (255, 250, 236), 0.55), angle=-14)
    head = at(0.25, -0.19)
    face = frame(head, h)
    canvas.polygon([face(0.10, -0.05), face(0.29, 0.03), face(0.10, 0.08)], BEAK)
    canvas.ellipse(head, 0.15 * h, 0.145 * h, tint)
    canvas.ellipse(face(0.05, -0.02), 0.03 * h, 0.034 * h, _eyes(tint, light=(240, 230, 200)))
    if near:
        canvas.polygon([at(*point) for point in near], shade(tint, 0.88))
    else:  # folded
        canvas.ellipse(at(-0.06, 0.01), 0.20 * h, 0.115 * h, dark, angle=-24)
    canvas.in_subject = False
