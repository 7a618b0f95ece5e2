"""What a picture shows: the factors that captions name, and skin and hair, which none names.

Two things do not show as they are asked for. Two or three big things are drawn no larger than as many medium ones, for
they would not fit: their pictures are the same, pixel by pixel. And what jumps may have its hat above the upper edge.
`shown` says medium and None there; everything else is in the picture (`docs/training.md`, "The judge").
"""

from dataclasses import asdict, replace
from functools import cache

import numpy as np

from minedit.picturebook.world.factors import SIZES, SUBJECTS, Factors
from minedit.picturebook.world.looks import HAIR, HELD, PEOPLE, POSES, SKIN, TINTS, look
from minedit.picturebook.world.places import PLACES, TIMES
from minedit.picturebook.world.scene import scene
from minedit.picturebook.world.still import SUPPORTS, THINGS

SKINS = ("pale", "fair", "tan", "dark")  # names for looks.SKIN, in its order
HAIRS = ("brown", "chestnut", "blond", "black", "red")  # for looks.HAIR
LABELS: dict[str, tuple] = {
    "subject": (*SUBJECTS, *THINGS),
    "place": (*PLACES, *SUPPORTS),
    "colour": tuple(TINTS),
    "pose": tuple(dict.fromkeys(pose for poses in POSES.values() for pose in poses)),
    "count": (1, 2, 3),
    "size": tuple(SIZES),
    "time": TIMES,
    "held": (None, *dict.fromkeys(thing for things in HELD.values() for thing in things)),
    "skin": SKINS,
    "hair": HAIRS,
}
LOOKS = ("skin", "hair")  # of people; no caption names them
SEEN = 20  # pixels that differ at least between a picture with a thing and without it, if the thing is to be seen
LEVELS = 12  # of 255, by which a pixel differs at least


def shown(f: Factors, seed: int) -> dict[str, object]:
    """The value of every factor that the subject has, as `scene(f, seed)` shows it: one of LABELS[name]."""
    found = asdict(f)
    if f.still:
        found["size"] = "medium" if f.count > 1 and f.size == "big" else f.size
    elif f.held and f.pose == "jumping" and _out(f, seed):
        found["held"] = None
    if f.subject in PEOPLE:
        own = look(seed)
        found |= {"skin": SKINS[SKIN.index(own.skin)], "hair": HAIRS[HAIR.index(own.hair)]}
    without = ("pose", "time", "held") if f.still else ("count",)
    return {name: value for name, value in found.items() if name not in without and value in LABELS[name]}


@cache
def _out(f: Factors, seed: int) -> bool:
    """Whether the thing held is out of the picture."""
    with_it, without = (np.asarray(scene(each, seed).image, int) for each in (f, replace(f, held=None)))
    return (np.abs(with_it - without).max(axis=-1) >= LEVELS).sum() < SEEN
