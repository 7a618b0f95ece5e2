"""Instructions: a scene, the scene with one factor changed, and words that ask for the change.

Drawn with the same seed, the two are an exact pair: `scene.py` takes from the seed all that factors do not name, so
hair, shades, positions and props stay. Only a kind that cannot have the old colour gets another, which is then said.
"""

import random
import re
from dataclasses import dataclass, fields, replace

from minedit.picturebook.world.captions import COUNTS, WHERE, article, noun
from minedit.picturebook.world.dataset import factors_of
from minedit.picturebook.world.draw import stream
from minedit.picturebook.world.factors import SIZES, SUBJECTS, Factors, check, choices, colours, held_out
from minedit.picturebook.world.looks import PEOPLE
from minedit.picturebook.world.still import THINGS

VERBS = {
    "standing": ("stand", "stand up"),
    "sitting": ("sit", "sit down"),
    "walking": ("walk",),
    "running": ("run",),
    "jumping": ("jump",),
    "waving": ("wave",),
    "lying": ("lie down",),
    "flying": ("fly",),
    "spreading wings": ("spread its wings",),
}
TEMPLATES: dict[str, tuple[str, ...]] = {
    "pose": ("make {who} {verb}", "make {who} {verb}", "let {who} {verb}", "have {who} {verb}", "{who} is {pose}"),
    "clothes": (
        "make the {cloth} {colour}",
        "turn the {cloth} {colour}",
        "change the {cloth} to {colour}",
        "give {who} {a_cloth}",
        "put {who} in {a_cloth}",
    ),
    "colour": ("make {who} {colour}", "turn {who} {colour}", "change {who} to {colour}"),
    "place": ("put {who} {where}", "move {who} to the {place}", "take {who} to the {place}"),
    "time": ("make it {time}", "make it {time}", "turn {old_time} into {time}", "change it to {time}"),
    "give": ("give {who} {thing}", "make {who} {hold} {thing}", "add {thing}"),
    "hat": ("put {thing} on {who}",),
    "remove": ("remove the {old_thing}", "take away the {old_thing}", "take the {old_thing} away"),
    "swap": ("replace the {old_thing} with {thing}", "turn the {old_thing} into {thing}"),
    "count": ("make it {amount}", "show {amount}"),
    "more": ("add {difference}",),
    "fewer": ("remove {difference}", "take away {difference}"),
    "size": ("make {who} {size}",),
    "bigger": ("make {who} bigger",),
    "smaller": ("make {who} smaller",),
    "subject": ("turn {who} into {kind}", "replace {who} with {kind}", "change {who} into {kind}", "make {who} {kind}"),
}
# The chance of a factor to be the one that changes, before those that cannot are left out.
WEIGHTS = {"pose": 3.0, "subject": 2.0, "colour": 2.0, "held": 2.0, "place": 2.0, "count": 3.0, "time": 1.5, "size": 1}


@dataclass(frozen=True)
class Instruction:
    """What is asked of a picture of `before` to become one of `after`; `factor` names what changes."""

    text: str
    before: Factors
    after: Factors
    factor: str


def instruction(seed: int, index: int, unseen: bool = False) -> Instruction:
    """Number `index` of a seed; before and after are training compositions, or the first is a held-out one."""
    rng, before = stream(seed, f"instruction:{index}"), factors_of(seed, index, unseen)
    after = changed(before, rng, unseen)
    return Instruction(instruct(before, after, rng), before, after, factor(before, after))


def changed(f: Factors, rng: random.Random, unseen: bool = False) -> Factors:
    """`f` with one factor changed, chosen by WEIGHTS; a composition held out of training only if `unseen`."""
    while True:
        name = rng.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))[0]
        others = [value for value in _values(f, name) if value != getattr(f, name)]
        if not others:
            continue
        after = replace(f, **{name: rng.choice(others)})
        if name == "subject" and after.colour not in (colours(after.subject) or (None,)):
            after = replace(after, colour=rng.choice(colours(after.subject) or (None,)))
        if _possible(after) and (unseen or not held_out(after)):
            return after


def factor(before: Factors, after: Factors) -> str:
    """The factor in which the two differ; "subject" also where its colour had to change too."""
    differ = [field.name for field in fields(Factors) if getattr(before, field.name) != getattr(after, field.name)]
    if not differ or (len(differ) > 1 and differ != ["subject", "colour"]):
        raise ValueError(f"{before} and {after} differ in {differ or 'nothing'}; expected one factor")
    return differ[0]


def instruct(before: Factors, after: Factors, rng: random.Random) -> str:
    """Words that ask for `after`, in one of several ways."""
    words = {"who": f"the {noun(before)}", "where": rng.choice(WHERE[after.place]), "place": after.place}
    words |= {"time": after.time, "old_time": before.time, "size": after.size}
    words |= {"colour": after.colour, "pose": after.pose}
    words |= {"verb": rng.choice(VERBS[after.pose])} if after.pose else {}
    words |= {"cloth": _cloth(after), "a_cloth": article(f"{after.colour} {_cloth(after)}")}
    words |= {"thing": article(after.held) if after.held else "", "old_thing": before.held}
    words |= {"hold": "wear" if after.held == "hat" else "hold", "kind": _kind(before, after)}
    words |= {"amount": f"{rng.choice(COUNTS[after.count])} {noun(after)}".replace("a apple", "an apple")}
    words |= {"difference": _difference(before, after, rng)}
    return rng.choice(_templates(before, after)).format(**words)


def _values(f: Factors, name: str) -> tuple:
    if name == "subject":
        return THINGS if f.still else SUBJECTS
    if name == "size" and f.count > 1:  # several things are as large as there is room
        return ()
    return choices(f)[name]


def _possible(f: Factors) -> bool:
    try:
        check(f)
    except ValueError:
        return False
    return True


def _templates(before: Factors, after: Factors) -> tuple[str, ...]:
    name = factor(before, after)
    if name == "colour" and before.subject in PEOPLE:
        name = "clothes"
    elif name == "held" and not before.held:
        return TEMPLATES["give"] + TEMPLATES["hat"] * (after.held == "hat")
    elif name == "held":
        name = "swap" if after.held else "remove"
    elif name == "count":
        return TEMPLATES["count"] + TEMPLATES["more" if after.count > before.count else "fewer"]
    elif name == "size":
        sizes = list(SIZES)
        steps = sizes.index(after.size) - sizes.index(before.size)
        relative = TEMPLATES["bigger" if steps > 0 else "smaller"] if abs(steps) == 1 else ()
        return (TEMPLATES["size"] if after.size != "medium" else ()) + relative
    return TEMPLATES[name]


def _cloth(f: Factors) -> str:
    return "shirt" if f.subject == "boy" else "dress"


def _kind(before: Factors, after: Factors) -> str:
    """What the subject becomes; its colour is said where it cannot stay."""
    named = after.colour if after.colour and after.colour != before.colour else ""
    phrase = noun(after) if after.subject in PEOPLE else f"{named} {noun(after)}".strip()
    phrase = phrase if after.count > 1 else article(phrase)
    return f"{phrase} in {article(f'{named} {_cloth(after)}')}" if named and after.subject in PEOPLE else phrase


def _difference(before: Factors, after: Factors, rng: random.Random) -> str:
    """How many things come or go."""
    by = abs(after.count - before.count) or 1
    one = replace(after, count=by)
    return article(noun(one)) if by == 1 and rng.random() < 0.5 else f"{COUNTS[by][-1 if by > 1 else 1]} {noun(one)}"


def _words() -> tuple[str, ...]:
    phrases = [re.sub(r"{\w+}", "", text) for texts in TEMPLATES.values() for text in texts]
    phrases += [verb for verbs in VERBS.values() for verb in verbs] + ["hold", "wear"]
    return tuple(sorted(set(re.findall(r"[a-z]+", " ".join(phrases)))))


WORDS = _words()  # those that instructions add to captions', which have some of them too
