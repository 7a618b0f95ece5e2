"""Edits of the closed world: two captions that differ in one factor, and what either picture shows.

Every pair is of a composition that no training saw, before the edit or after it. Wording is drawn clause by clause, so
the captions differ where the factor is said and nowhere else. `scene(pair.after, seed)` is the exact counterfactual of
`scene(pair.before, seed)`.
"""

import json
import random
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace

from minedit.picturebook.world.captions import HOLDING, STYLE, WHEN, WHERE, article, noun
from minedit.picturebook.world.draw import stream
from minedit.picturebook.world.factors import SUBJECTS, Factors, check, choices, colours, held_out, random_factors
from minedit.picturebook.world.looks import HELD, PEOPLE, POSES
from minedit.picturebook.world.still import THINGS

HARD = ("object", "colour", "place", "add", "remove", "time")
SOFT = ("pose", "action", "count", "size", "adjective")
KINDS = HARD + SOFT
NUMBERS = {2: "two", 3: "three"}
TESTED, TUNED = 75, 19  # pairs of each kind in either split: 825 and 209
SPLITS = {"test": TESTED, "tune": TUNED}


@dataclass(frozen=True)
class Pair:
    """An edit whose truth is known."""

    id: str  # "test-pose-12"
    kind: str  # one of KINDS
    source: str  # captions
    target: str
    seed: int  # of the noise, and of all that no factor says in a rendering
    before: Factors
    after: Factors
    factor: str  # what is asked for: the one that the target says and the source does not, or says otherwise

    @property
    def changed(self) -> frozenset[str]:
        """The factors that are not the same after the edit."""
        old, new = asdict(self.before), asdict(self.after)
        return frozenset(name for name in old if old[name] != new[name]) | {self.factor}


def pairs(split: str) -> list[Pair]:
    """The pairs of "test" or "tune", always the same ones, kind by kind; no two have the same captions."""
    found: dict[tuple[str, str], Pair] = {}
    for kind in KINDS:
        for number in range(SPLITS[split]):
            pair = _pair(split, kind, number, found.keys())
            found[pair.source, pair.target] = pair
    return list(found.values())


def _pair(split: str, kind: str, number: int, taken: Collection[tuple[str, str]]) -> Pair:
    name = f"{split}-{kind}-{number}"
    for attempt in range(10_000):
        rng = stream(attempt, name)
        before = random_factors(rng)
        found = _changed(kind, before, rng)
        if found is None or not (held_out(before) or held_out(found[0])):
            continue
        after, factor = found
        check(after)
        named = frozenset(each for each in ("pose", "colour", "size") if rng.random() < 0.5)
        named |= {"place", "held", "time"} | ({factor} if kind in ("pose", "size", "colour") else set())
        wording = rng.getrandbits(32)
        said = named - {factor} if kind in ("action", "adjective") else named
        source, target = caption(before, said, wording), caption(after, said | {factor}, wording)
        if source != target and (source, target) not in taken:
            return Pair(name, kind, source, target, rng.getrandbits(24), before, after, factor)
    raise AssertionError(f"no pair of kind {kind}")


def _changed(kind: str, f: Factors, rng: random.Random) -> tuple[Factors, str] | None:
    """The factors after an edit of this kind, and which of them is asked for; None where nothing can be edited so."""

    def other(name: str, values: tuple | None = None) -> tuple[Factors, str] | None:
        found = [value for value in values or choices(f)[name] if value != getattr(f, name)]
        return (replace(f, **{name: rng.choice(found)}), name) if found else None

    if kind == "object":
        return _another(f, rng)
    if kind in ("place", "colour", "count"):
        return other(kind)
    if kind == "time":
        return other("time") if f.time == "day" else None
    if kind == "add":
        return other("held") if f.held is None else None
    if kind == "remove":
        return (replace(f, held=None), "held") if f.held else None
    if kind in ("pose", "action"):
        return other("pose")
    if kind == "size":
        return None if f.size == "medium" else other("size", ("small", "big"))
    if f.size == "medium" and (rng.random() < 0.5 or not f.colour or f.subject in PEOPLE):
        return other("size", ("small", "big"))
    return other("colour") if f.subject not in PEOPLE else None


def _another(f: Factors, rng: random.Random) -> tuple[Factors, str] | None:
    """The same scene of another subject, which can have the pose, the thing held and, where it has any, the colour."""
    found = []
    for subject in THINGS if f.still else SUBJECTS:
        shades = colours(subject)
        after = replace(f, subject=subject, colour=f.colour if shades else None)
        fits = not shades or f.colour in shades
        fits &= f.still or (f.pose in POSES[subject] and (f.held is None or f.held in HELD[subject]))
        if subject != f.subject and fits and (subject in PEOPLE) == (f.subject in PEOPLE):
            found.append(after)
    return (rng.choice(found), "subject") if found else None


def caption(f: Factors, named: frozenset[str], wording: int) -> str:
    """The named factors in words; each clause draws its wording by itself."""

    def chosen(clause: str, options: tuple[str, ...]) -> str:
        return stream(wording, clause).choice(options)

    size = [f.size] * ("size" in named and f.size != "medium")
    colour = [f.colour] if "colour" in named and f.colour and f.subject not in PEOPLE else []
    style = chosen("style", ("", "", "", *STYLE))
    where = [chosen(f"at {f.place}", WHERE[f.place])]
    when = [chosen(f"at {f.time}", WHEN[f.time])] if "time" in named and f.time != "day" else []
    if f.still:
        phrase = " ".join([*size, *colour, noun(f)])
        return style + " ".join([article(phrase) if f.count == 1 else f"{NUMBERS[f.count]} {phrase}", *where])
    pose = [f.pose] if "pose" in named else []
    if pose == ["spreading wings"] or chosen("order", ("before", "behind")) == "behind":
        adjectives, action = [*size, *colour], pose
    else:
        adjectives, action = [*pose, *size, *colour], []
    worn = []
    if "colour" in named and f.subject in PEOPLE:
        cloth = f"{f.colour} {'shirt' if f.subject == 'boy' else 'dress'}"
        worn.append(f"{chosen('worn', ('in', 'wearing', 'with'))} {article(cloth)}")
    held = [chosen(f"held {f.held}", HOLDING[f.held])] if "held" in named and f.held else []
    return style + " ".join([article(" ".join([*adjectives, f.subject])), *action, *worn, *held, *where, *when])


def written(pair: Pair) -> str:
    """A pair as a line of JSON, which `minedit edit --pairs` reads, too."""
    plain = {name: value for name, value in asdict(pair.before).items() if value != getattr(Factors("", ""), name)}
    changes = {name: value for name, value in asdict(pair.after).items() if value != getattr(pair.before, name)}
    told = {name: getattr(pair, name) for name in ("id", "kind", "source", "target", "seed", "factor")}
    return json.dumps({**told, "before": plain, "changes": changes})


def read(lines: Iterable[str]) -> list[Pair]:
    """What `written` wrote."""
    found = []
    for line in lines:
        row = json.loads(line)
        before, changes = Factors(**row.pop("before")), row.pop("changes")
        found.append(Pair(**row, before=before, after=replace(before, **changes)))
    return found
