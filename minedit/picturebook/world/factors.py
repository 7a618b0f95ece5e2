"""What a scene is made of: everything a caption can name. Some compositions are held out of training."""

import random
from dataclasses import dataclass

from minedit.picturebook.world.looks import CLOTHES, FEATHERS, FUR, HELD, PEOPLE, POSES
from minedit.picturebook.world.places import PLACES, TIMES
from minedit.picturebook.world.still import SUPPORTS, THING_COLOURS, THINGS

SUBJECTS = tuple(POSES)
SIZES = {"small": 0.72, "medium": 1.0, "big": 1.2}  # relative; no caption names the medium size


@dataclass(frozen=True)
class Factors:
    """Everything a caption can name. For still life `pose`, `held` are None and `place` is table or plate."""

    subject: str
    place: str
    colour: str | None = None
    size: str = "medium"
    pose: str | None = None
    time: str = "day"
    held: str | None = None
    count: int = 1

    @property
    def still(self) -> bool:
        return self.subject in THINGS


def colours(subject: str) -> tuple[str, ...]:
    """The colours a subject can have (clothes of people, fur, feathers, skin of things); empty if it has just one."""
    if subject in PEOPLE:
        return tuple(CLOTHES)
    if subject == "bird":
        return tuple(FEATHERS)
    return tuple(FUR) if subject in POSES else tuple(THING_COLOURS.get(subject, ()))


def choices(f: Factors) -> dict[str, tuple]:
    """What each factor beside the subject can be, of this subject."""
    return {
        "colour": colours(f.subject) or (None,),
        "size": tuple(SIZES),
        "place": SUPPORTS if f.still else PLACES,
        "pose": (None,) if f.still else POSES[f.subject],
        "time": ("day",) if f.still else TIMES,
        "held": (None,) if f.still else (None, *HELD[f.subject]),
        "count": (1, 2, 3) if f.still else (1,),
    }


def check(f: Factors) -> None:
    """Raises ValueError, with the choices, for a pose, place, colour or other factor that the subject cannot have."""
    if f.subject not in (*SUBJECTS, *THINGS):
        raise ValueError(f"unknown subject {f.subject!r}; expected one of {', '.join((*SUBJECTS, *THINGS))}")
    for name, values in choices(f).items():
        if getattr(f, name) not in values:
            expected = ", ".join(map(str, values))
            raise ValueError(f"a {f.subject} has no {name} {getattr(f, name)!r}; expected one of {expected}")


# Compositions kept out of training: subject, pose, place; or thing, colour and count, support.
# The quality figures are measured on captions of these.
HELD_OUT: tuple[tuple[str, str, str], ...] = (
    ("boy", "sitting", "park"),
    ("boy", "jumping", "snow"),
    ("boy", "waving", "desert"),
    ("boy", "running", "street"),
    ("girl", "sitting", "beach"),
    ("girl", "running", "grass"),
    ("girl", "waving", "room"),
    ("girl", "lying", "park"),
    ("dog", "sitting", "grass"),
    ("dog", "running", "beach"),
    ("dog", "lying", "room"),
    ("dog", "jumping", "desert"),
    ("cat", "lying", "street"),
    ("cat", "sitting", "snow"),
    ("cat", "walking", "park"),
    ("cat", "jumping", "grass"),
    ("horse", "running", "desert"),
    ("horse", "standing", "beach"),
    ("horse", "jumping", "park"),
    ("bird", "flying", "snow"),
    ("bird", "spreading wings", "grass"),
    ("bird", "standing", "street"),
    ("apple", "green2", "plate"),
    ("apple", "red3", "table"),
    ("ball", "blue1", "plate"),
    ("ball", "yellow2", "table"),
    ("cake", "2", "table"),
    ("hamburger", "1", "plate"),
    ("peach", "3", "plate"),
    ("strawberry", "2", "plate"),
)


def held_out(f: Factors) -> bool:
    """Whether this composition is kept from training: subject, pose, place; or thing, colour and count, support."""
    return (f.subject, f"{f.colour or ''}{f.count}" if f.still else f.pose, f.place) in HELD_OUT


def random_factors(rng: random.Random) -> Factors:
    """A scene of the world, held-out ones among them: 78 % figures, 22 % still life."""
    size = rng.choice(("small", "medium", "medium", "big"))
    if rng.random() < 0.22:
        thing = rng.choice((*THINGS, "apple", "ball"))  # those with colours twice
        support, shades = rng.choice(SUPPORTS), colours(thing)
        colour = rng.choice(shades) if shades else None
        return Factors(thing, support, colour, size, count=rng.randint(1, 3))
    subject = rng.choice((*SUBJECTS, *PEOPLE))  # people twice
    things = HELD[subject]
    held = rng.choice(things) if things and rng.random() < (0.4 if len(things) > 1 else 0.15) else None
    place, colour, pose = rng.choice(PLACES), rng.choice(colours(subject)), rng.choice(POSES[subject])
    return Factors(subject, place, colour, size, pose, rng.choice(("day", "day", "day", "night", "sunset")), held)
