"""Several edits of one source in one batch: the source is drawn once, each target follows its own Way.

The latents' rows are the source, then the B - 1 targets; the UNet's are as many unconditional, then conditional ones. A
Way knows four rows: those of target i stand at 0, i, B and B + i here.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minedit.attention.rules import Rule
from minedit.sampling.loop import Step
from minedit.sampling.way import Told, Way


def joins(way: Way) -> bool:
    """Whether a Way may share a batch: it draws source and target from the seed's noise, as the UNet predicts."""
    return not way.prompts and not way.first and all(x is None for x in (way.start, way.source, way.predict))


def together(ways: Sequence[Way]) -> Way:
    """The Ways, which must join, as one whose `told` says nothing: ask each. One alone is itself."""
    if len(ways) == 1:
        return ways[0]
    size = len(ways) + 1
    places = [(0, at, size, size + at) for at in range(1, size)]

    def rules(step: int) -> dict[str, Rule]:
        asked = [(way.rules(step) if way.rules else {}, rows) for way, rows in zip(ways, places, strict=True)]
        names = dict.fromkeys(name for found, _ in asked for name in found)
        return {name: _merged([(found[name], rows) for found, rows in asked if name in found], size) for name in names}

    def watch(step: int) -> dict[str, bool]:
        wanted: dict[str, bool] = {}
        for way in ways:
            for name, columns in (way.watch(step) if way.watch else {}).items():
                wanted[name] = wanted.get(name, False) or columns
        return wanted

    def after(step: Step) -> Tensor | None:
        rows = list(step.latents.split(1))
        for at, (way, places_of) in enumerate(zip(ways, places, strict=True), 1):
            seen = {name: found.of(places_of) for name, found in step.seen.items()}
            pair = [0, at]
            view = replace(step, latents=step.latents[pair], eps=step.eps[pair], x0=step.x0[pair], seen=seen)
            changed = way.after(view) if way.after else None
            if changed is not None:
                rows[at] = changed[1:]
        return torch.cat(rows)

    return Way(rules=rules, watch=watch, after=after, told=lambda: Told(()))


def _merged(rules: Sequence[tuple[Rule, tuple[int, ...]]], size: int) -> Rule:
    """The Rules of one layer, each of four rows at its places, as one of 2 * size rows."""
    moved = [(rule.moved(dict(enumerate(rows)), 2 * size), rows) for rule, rows in rules]
    routes = {}
    for name in ("q_rows", "k_rows", "v_rows"):
        route = list(range(2 * size))
        for rule, rows in moved:
            for row in rows if getattr(rule, name) else ():
                route[row] = getattr(rule, name)[row]
        routes[name] = tuple(route) if any(getattr(rule, name) for rule, _ in moved) else None
    parts = {name: tuple(each for rule, _ in moved for each in getattr(rule, name)) for name in ("edits", "masks")}
    return Rule(**routes, **parts)
