"""Captions of the picture-book world: varied wording, each naming a random subset of a scene's factors."""

import random
import re
from dataclasses import dataclass

from minedit.picturebook.world.factors import Factors
from minedit.picturebook.world.looks import HELD, PEOPLE, POSES, TINTS
from minedit.picturebook.world.places import PLACES
from minedit.picturebook.world.still import SUPPORTS, THINGS

COUNTS = {1: ("a", "one", "a single"), 2: ("two",), 3: ("three",)}
PLURAL = {"peach": "peaches", "strawberry": "strawberries"}
WHERE = {
    "park": ("in the park", "in a park"),
    "beach": ("on the beach", "at the beach"),
    "snow": ("in the snow",),
    "desert": ("in the desert", "in a desert"),
    "street": ("on the street", "in the street", "on a street"),
    "room": ("in a room", "in the room"),
    "grass": ("on the grass", "on grass"),
    "table": ("on the table", "on a table"),
    "plate": ("on a plate", "on the plate"),
}
WHEN = {"day": ("during the day", "by day"), "night": ("at night", "in the night"), "sunset": ("at sunset",)}
HOLDING = {
    "hat": ("with a hat", "wearing a hat", "in a hat"),
    "cup": ("with a cup", "holding a cup"),
    "balloon": ("with a balloon", "holding a balloon"),
    "umbrella": ("with an umbrella", "holding an umbrella"),
}
STYLE = ("a photo of ", "a picture of ", "a drawing of ")
# The chance that a caption names what there is to name.
NAMING = {"place": 0.92, "pose": 0.85, "colour": 0.65, "size": 0.75, "count": 1.0, "held": 0.85}
NAMING_TIME = {"day": 0.12, "night": 0.7, "sunset": 0.7}


@dataclass(frozen=True)
class Caption:
    """The words, the factors they name, and the words that stand for subject and place (None if not named)."""

    text: str
    named: frozenset[str]
    subject_word: str
    place_word: str | None


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def noun(f: Factors) -> str:
    """What the subject is called, in the plural where there are several."""
    return PLURAL.get(f.subject, f.subject + "s") if f.count > 1 else f.subject


def caption(f: Factors, rng: random.Random, name: frozenset[str] | None = None) -> Caption:
    """A caption of the factors.

    `name` fixes which fields of Factors are named, where there is something to name: "subject" always is, and so is
    "count" of still life, which an article or a plural tells. None: they are drawn, by NAMING.
    """
    if name is None:
        name = frozenset(key for key, chance in NAMING.items() if rng.random() < chance)
        name |= {"time"} if rng.random() < NAMING_TIME[f.time] else frozenset()
    real = {"place": True, "pose": f.pose, "colour": f.colour, "size": f.size != "medium", "held": f.held}
    real |= {"time": not f.still, "count": f.still}
    name = frozenset(key for key in name if real[key])
    style = rng.choice(STYLE) if rng.random() < 0.25 else ""
    where = rng.choice(WHERE[f.place]) if "place" in name else ""
    text = _still(f, rng, name, where) if f.still else _figure(f, rng, name, where, bool(style))
    named = name | {"subject"} | ({"count"} if f.still else frozenset())
    return Caption(style + text, named, noun(f).split()[-1], f.place if where else None)


def _still(f: Factors, rng: random.Random, name: frozenset[str], where: str) -> str:
    adjectives = [f.size] * ("size" in name) + [f.colour or ""] * ("colour" in name)
    phrase, count = " ".join([*adjectives, noun(f)]), rng.choice(COUNTS[f.count])
    text = article(phrase) if count == "a" else f"{count} {phrase}"
    return f"{text} {where}".strip()


def _figure(f: Factors, rng: random.Random, name: frozenset[str], where: str, styled: bool) -> str:
    """The clauses in one of several orders. A styled caption is a phrase, never a sentence: no verb, no comma."""
    adjectives, behind = [f.size] * ("size" in name), []  # words before and after the noun
    if "colour" in name and f.subject in PEOPLE:
        cloth = "shirt" if f.subject == "boy" else "dress"
        behind.append(f"{rng.choice(('in', 'wearing', 'with'))} {article(f'{f.colour} {cloth}')}")
    elif "colour" in name:
        adjectives.append(f.colour or "")
    if "held" in name:
        behind.append(rng.choice(HOLDING[f.held or ""]))
    rng.shuffle(behind)

    pose, verb = f.pose if "pose" in name else "", ""
    if pose == "spreading wings":
        pose = rng.choice(("spreading its wings", "spreading wings"))
    elif pose and rng.random() < 0.4:
        adjectives, pose = [pose, *adjectives] if rng.random() < 0.6 else [*adjectives, pose], ""
    if pose and not styled and not behind and rng.random() < 0.4:
        verb = "is "

    when = [rng.choice(WHEN[f.time])] if "time" in name else []
    who = article(" ".join([*adjectives, f.subject]))
    action, frame = [verb + pose] if pose else [], [where] if where else []
    order = rng.random()
    if order < 0.70:
        rest = [*behind, *action, *frame] if rng.random() < 0.5 else [*action, *frame, *behind]
        return " ".join([who, *rest, *when])
    if order < 0.85 and not styled and (frame or when):  # the setting first
        lead, late = (frame, when) if frame else (when, [])
        return f"{lead[0]}, {' '.join([who, *behind, *action, *late])}"
    return " ".join([who, *action, *behind, *when, *frame])


def _words() -> tuple[str, ...]:
    phrases = [phrase for table in (COUNTS, WHERE, WHEN, HOLDING) for options in table.values() for phrase in options]
    phrases += [word for table in (POSES, HELD) for options in table.values() for word in options]
    phrases += [*POSES, *PLACES, *TINTS, *THINGS, *SUPPORTS, *STYLE, *PLURAL.values()]
    phrases += [thing + "s" for thing in THINGS if thing not in PLURAL]
    phrases += ["small big shirt dress is an its"]
    return tuple(sorted(set(re.findall(r"[a-z]+", " ".join(phrases)))) + [","])


WORDS = _words()  # every word a caption can hold, and the comma
