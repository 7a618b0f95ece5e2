"""Factors and a seed -> a picture and the mask of its subject.

A seed decides everything that `Factors` do not name. `scene(factors, seed)` is deterministic, and every part of the
picture draws its chance from a stream of its own, so `scene(replace(factors, pose="sitting"), seed)` is the ground
truth of an edit of `scene(factors, seed)`: only the pose differs.
"""

from dataclasses import dataclass

from PIL import Image

from minedit.picturebook.world.animals import BUILDS, draw_animal, draw_bird
from minedit.picturebook.world.draw import WHITE, Canvas, jitter, shade, stream
from minedit.picturebook.world.factors import SIZES, Factors, check
from minedit.picturebook.world.looks import PEOPLE, TINTS, Figure, look
from minedit.picturebook.world.people import draw_person
from minedit.picturebook.world.places import background
from minedit.picturebook.world.still import Things, still_life

HEIGHT = {"boy": 0.76, "girl": 0.76, "dog": 0.62, "cat": 0.60, "horse": 0.64, "bird": 0.56}  # medium, in picture sides
RADIUS = 0.165  # of a medium thing, in picture sides


@dataclass(frozen=True)
class Scene:
    """A drawn scene: picture RGB, the subject's mask (L, 0…255 coverage), what it shows, and the seed of the rest."""

    image: Image.Image
    mask: Image.Image
    factors: Factors
    seed: int


def scene(factors: Factors, seed: int, size: int = 128) -> Scene:
    """Draw `factors`; `seed` decides position, exact scale, shade, hair, horizon and props; `size` pixels a side.

    Raises ValueError, with the choices, for a pose, place, colour or thing the subject cannot have.
    """
    check(factors)
    canvas, rng = Canvas(size), stream(seed, "subject")
    scale, x = rng.uniform(0.94, 1.06) * SIZES[factors.size], size * rng.uniform(0.42, 0.58)
    if factors.still:
        things = Things(factors.subject, factors.count, factors.colour, factors.place)
        still_life(canvas, things, size * RADIUS * scale, seed)
    else:
        ground = background(canvas, factors.place, factors.time, seed)
        tint = jitter(TINTS[factors.colour], stream(seed, "tint"), 8)
        height = size * HEIGHT[factors.subject] * scale
        if factors.subject in BUILDS or (factors.pose == "lying" and factors.subject in PEOPLE):
            x = size / 2 + 0.5 * (x - size / 2) - 0.08 * height  # wide, and the head reaches further than the tail
        ground = max(ground, min(0.95 * size, height + 0.03 * size))  # who would not fit stands nearer to the viewer
        figure = Figure(factors.subject, factors.pose, tint, factors.held, (x, ground), height, look(seed))
        _shadow(canvas, figure)
        draw = draw_person if figure.subject in PEOPLE else draw_bird if figure.subject == "bird" else draw_animal
        draw(canvas, figure)
    image, mask = canvas.finish()
    return Scene(image, mask, factors, seed)


def _shadow(canvas: Canvas, figure: Figure) -> None:
    """Darken the ground below the subject; a flying bird is too high."""
    if figure.pose == "flying":
        return
    wide = 0.5 if figure.pose in ("lying", "running") or figure.subject in BUILDS else 0.28
    wide *= 0.7 if figure.pose == "jumping" else 1
    ground, light = canvas.colour_at(*figure.feet), canvas.light
    canvas.light = WHITE  # the ground is lit already
    canvas.ellipse(figure.feet, figure.height * wide, figure.height * 0.05, shade(ground, 0.78))
    canvas.light = light
