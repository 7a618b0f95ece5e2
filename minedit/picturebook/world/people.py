"""Boys and girls: a skeleton of joint angles, dressed; then the face, and the thing in the hand or on the head.

Lengths, angles and the names of directions are those of `looks.Figure`.
"""

import math
from dataclasses import dataclass

from minedit.picturebook.world.draw import WHITE, Canvas, Colour, Point, frame, mix, polar, shade
from minedit.picturebook.world.looks import Figure

Bones = tuple[float, float]  # angles of the upper and the lower bone of a limb
THIGH = SHIN = 0.17
ARM = 0.13  # upper arm, and forearm
SHOES: Colour = (92, 62, 50)


@dataclass(frozen=True)
class Stance:
    """The joint angles of a pose."""

    lean: float  # of the torso, forwards
    legs: tuple[Bones, Bones]  # near, far
    arms: tuple[Bones, Bones]
    hips: float | None = None  # height of the hips; None: as high as the leg that reaches lower


STANCES = {
    "standing": Stance(0, ((5, 3), (-6, -4)), ((16, 22), (-16, -20))),
    "waving": Stance(0, ((6, 4), (-7, -5)), ((96, 136), (-18, -22))),
    "walking": Stance(4, ((30, 14), (-20, -44)), ((-34, -10), (34, 62))),
    "running": Stance(16, ((72, 2), (-34, -104)), ((-60, 20), (62, 140))),
    "jumping": Stance(0, ((52, -42), (-52, 42)), ((118, 146), (-118, -146)), 0.46),
    "sitting": Stance(-8, ((84, 80), (66, 100)), ((34, 70), (-36, -20)), 0.075),
    "lying": Stance(0, ((4, 2), (14, -30)), ((20, 30), (150, 170))),
}
REACH: dict[str, Bones] = {"cup": (80, 120), "balloon": (70, 150), "umbrella": (70, 150)}  # of the arm that holds it
BUSY = ("running", "jumping", "lying")  # poses whose arms stay as they are


def draw_person(canvas: Canvas, figure: Figure) -> None:
    """Draw a boy or a girl; the thing it holds is not part of the subject's mask."""
    stance, own, h = STANCES[figure.pose], figure.look, figure.height
    near_arm, far_arm = stance.arms
    if figure.held in REACH and figure.pose not in BUSY:
        near_arm = REACH[figure.held]
        if figure.pose == "waving":  # with the other arm
            far_arm = tuple(-angle for angle in stance.arms[0])
    hip, torso = _hip(figure, stance), 180 - stance.lean + own.tilt * 0.4
    neck, shoulder = figure.go(hip, torso, 0.30), figure.go(hip, torso, 0.265)
    head = figure.go(neck, 180 - stance.lean * 0.6 + own.tilt, 0.15)
    sleeve = shade(figure.tint, 0.82)

    canvas.in_subject = True
    if figure.subject == "girl":  # long hair behind everything
        fall = {"lying": 25, "running": -30}.get(figure.pose, 0)
        canvas.limb([head, figure.go(head, fall, 0.26)], 0.27 * h, own.hair, 0.19 * h)
    _leg(canvas, figure, hip, stance.legs[1], 0.85)
    _arm(canvas, figure, shoulder, far_arm, sleeve, shade(own.skin, 0.92))
    _leg(canvas, figure, hip, stance.legs[0], 1.0)
    canvas.limb([figure.go(hip, 180, 0.03), neck], 0.19 * h, figure.tint, 0.155 * h)
    if figure.subject == "girl":
        _skirt(canvas, figure, hip, stance.lean)
    hand = _arm(canvas, figure, shoulder, near_arm, sleeve, own.skin)
    _head(canvas, figure, head)
    canvas.in_subject = False
    if figure.held == "hat":
        _hat(canvas, figure, head)
    elif figure.held:
        {"cup": _cup, "balloon": _balloon, "umbrella": _umbrella}[figure.held](canvas, figure, hand)


def _hip(figure: Figure, stance: Stance) -> Point:
    if figure.pose == "lying":
        return figure.at(0.02, -0.09)
    drop = stance.hips
    if drop is None:
        drop = max(THIGH * math.cos(math.radians(a)) + SHIN * math.cos(math.radians(b)) for a, b in stance.legs)
    return figure.at(0, -(drop + 0.02))


def _leg(canvas: Canvas, figure: Figure, hip: Point, bones: Bones, light: float) -> None:
    h, own = figure.height, figure.look
    knee = figure.go(hip, bones[0], THIGH)
    foot = figure.go(knee, bones[1], SHIN)
    toe = figure.beside(foot, *((0, -0.03) if figure.pose == "lying" else (0.045, 0.005)))
    cloth = shade(own.trousers if figure.subject == "boy" else own.skin, light)
    canvas.limb([hip, knee, foot], 0.088 * h, cloth, 0.07 * h)
    canvas.limb([foot, toe], 0.065 * h, SHOES)


def _arm(canvas: Canvas, figure: Figure, shoulder: Point, bones: Bones, sleeve: Colour, skin: Colour) -> Point:
    """Draw an arm and return its hand."""
    h = figure.height
    elbow = figure.go(shoulder, bones[0], ARM)
    hand = figure.go(elbow, bones[1], ARM)
    canvas.limb([elbow, hand], 0.06 * h, skin)
    canvas.limb([shoulder, elbow], 0.075 * h, sleeve)
    canvas.ellipse(hand, 0.038 * h, 0.038 * h, skin)
    return hand


def _skirt(canvas: Canvas, figure: Figure, hip: Point, lean: float) -> None:
    spread = 70 if figure.pose == "sitting" else 0
    waist, hem = figure.go(hip, 180 - lean, 0.10), figure.go(hip, spread - lean, 0.13)
    corners = ((waist, 0.08), (hem, 0.155), (hem, -0.155), (waist, -0.08))
    canvas.polygon([figure.go(middle, 90 + spread, width) for middle, width in corners], figure.tint)


def _head(canvas: Canvas, figure: Figure, head: Point) -> None:
    h, own = figure.height, figure.look

    def at(dx: float, dy: float) -> Point:  # dx towards the face, dy towards the crown
        return figure.go(figure.go(head, 90, dx), 180, dy)

    canvas.ellipse(at(-0.015, 0.025), 0.160 * h, 0.160 * h, own.hair)
    canvas.ellipse(at(0.022, -0.018), 0.132 * h, 0.132 * h, own.skin)
    fringe = ((-0.14, 0.03), (-0.06, 0.16), (0.06, 0.15), (0.145, 0.045), (0.06, 0.075), (-0.05, 0.06))
    canvas.polygon([at(*point) for point in fringe], own.hair)
    for eye in (-0.01, 0.085):
        canvas.ellipse(at(eye, -0.005), 0.019 * h, 0.022 * h, (40, 34, 40))
        canvas.ellipse(at(eye - 0.012, -0.06), 0.026 * h, 0.018 * h, mix(own.skin, (236, 110, 100), 0.45))
    canvas.limb([at(0.005, -0.075), at(0.037, -0.09), at(0.072, -0.075)], 0.016 * h, (150, 62, 58))


def _hat(canvas: Canvas, figure: Figure, head: Point) -> None:
    h, colour = figure.height, figure.look.thing
    canvas.limb([figure.go(head, 180, 0.105), figure.go(head, 180, 0.20)], 0.20 * h, colour, 0.16 * h)
    brim = figure.go(head, 180, 0.10)
    canvas.limb([figure.go(brim, 90, -0.17), figure.go(brim, 90, 0.19)], 0.045 * h, shade(colour, 0.8))


def _cup(canvas: Canvas, figure: Figure, hand: Point) -> None:
    h, at = figure.height, frame(hand, figure.height)
    canvas.rectangle(*at(-0.05, -0.07), *at(0.05, 0.05), figure.look.thing, 0.02 * h)
    canvas.rectangle(*at(-0.05, -0.07), *at(0.05, -0.045), (250, 246, 238))


def _balloon(canvas: Canvas, figure: Figure, hand: Point) -> None:
    h, colour = figure.height, figure.look.thing
    x, y = figure.beside(hand, 0.03, -0.42)
    top = (x, max(y, 0.14 * h))  # stays in the picture
    canvas.limb([hand, top], 0.014 * h, (240, 240, 236))
    canvas.ellipse(top, 0.13 * h, 0.155 * h, colour)
    canvas.ellipse(frame(top, h)(-0.04, -0.06), 0.03 * h, 0.04 * h, mix(colour, WHITE, 0.6))


def _umbrella(canvas: Canvas, figure: Figure, hand: Point) -> None:
    h, colour = figure.height, figure.look.thing
    top = frame(hand, h)(0, -0.36)
    at = frame(top, h)
    canvas.limb([hand, top], 0.022 * h, (92, 70, 58))
    x, rim = at(0, 0.06)
    dome = [polar((x, rim), angle, 0.29 * h) for angle in range(90, 271, 12)]
    canvas.polygon([(px, rim + (py - rim) * 0.7) for px, py in dome], colour)
    canvas.limb([at(0, -0.14), at(0, -0.18)], 0.025 * h, shade(colour, 0.7))
