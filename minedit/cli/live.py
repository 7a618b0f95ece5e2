"""`minedit live`: the page of `minedit xray`, where settings that are dragged draw the edit again.

It is served to this machine's own browsers alone, until Ctrl-C. Takes the options of `minedit xray`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from minedit.cli import options, origin, xray
from minedit.cli.parser import parser_of
from minedit.config import MineditError
from minedit.methods.named import word_values
from minedit.sampling.numbers import SEED, TRAIN_STEPS, Numbers
from minedit.settings import Setting, Settings, own_first, settings

if TYPE_CHECKING:
    from PIL.Image import Image

LABELS = {  # of sliders that are not called as their settings are
    "tau": "τ, one for all words",
    "lambda_s": "λ_S, the most of a pixel",
    "lambda_tau": "λ_τ, times every τ",
    "lambda_sv": "λ_S[V], slope of S",
}
WEIGHT, HEAVIEST = "weight", 4.0  # of a word, by its number
GUIDED = settings(Numbers)["guidance"]
GUIDANCE, TOP = 20.0, 2.0  # ends of sliders whose settings have none: a guidance, any other
FINE, COARSE = 0.01, 0.1  # steps of a slider, up to TOP and beyond
EVERY, STEPS = 4, 20  # what a run of a few seconds shows, unless more is asked for


def main(argv: list[str]) -> None:
    own, rest = _parser().parse_known_args(argv)
    args = origin.parse(["edit", *(["--steps", str(STEPS)] if "--steps" not in rest else []), *rest])
    if own.out is not None:
        raise MineditError("--out names files, and live writes none; leave it out, or run: minedit xray")
    each = xray.one(args)
    from minedit.cli import output, steering  # Pillow, once the arguments are right
    from minedit.cli.edit import prepared
    from minedit.report.live import HOST, served  # and torch
    from minedit.report.page import Page
    from minedit.report.page import xray as page
    from minedit.report.studio import Studio
    from minedit.sampling.loop import Progress
    from minedit.verbs.preview import preview

    sd = output.load(args)
    steer, _ = steering.load(args, sd)
    each.check(sd)
    run, given, _ = prepared(args, each, sd, steer)
    target = sd.tokenizer.encode(each.target)
    factors = word_values("reweight", "factor", sd.tokenizer, target, getattr(each.settings, "reweight", ()), 1.0)
    words = [(word.text, factor) for word, factor in zip(target.words, factors, strict=True)]

    def draw(asked: Mapping[str, object], progress: Progress, show: Callable[[Image], object]) -> Page:
        now = {"seed": each.seeds[0], **{name: asked[name] for name in ("seed", "guidance") if name in asked}}
        now |= {"settings": again(each.settings, asked), "progress": progress, "on_step": preview(sd, show=show)}
        return page(sd, each.source, each.target, each.method, every=own.every, **{**given, **now})

    told = {"settings": dragged(each.settings, run, each.seeds[0], words)}
    with Studio(draw) as studio, served(studio, told, own.port) as server:
        studio.ask({})
        print(
            f"  open http://{HOST}:{server.server_address[1]} in a browser of this machine; Ctrl-C ends it", flush=True
        )
        server.serve_forever()


def dragged(chosen: Settings, run: Numbers, seed: int, words: Sequence[tuple[str, float]]) -> dict[str, dict]:
    """What the page can set, as JSON values: the seed, the guidance, numbers among the method's settings, of a span the
    end, and words with their weights. What is switched off by a setting that the page cannot set is left out."""
    known = settings(type(chosen))
    found = {"seed": _shown("seed", SEED, seed, run), "guidance": _shown("guidance", GUIDED, run.guidance, run)}
    for name in (field.name for field in own_first(type(chosen))):
        if known[name].kind in options.NUMBERS:
            found[name] = _shown(name, known[name], getattr(chosen, name), run)
    for others, names in chosen.off().items():
        for name in () if found.keys() & set(others) else names:
            found.pop(name, None)
    if "reweight" in known:
        weight = Setting(known["reweight"].help, float, 0.0, HEAVIEST)
        for at, (word, factor) in enumerate(words):
            found[f"{WEIGHT}{at}"] = _shown(f"\u00d7 {word}", weight, factor, run)
    return found


def _shown(name: str, each: Setting, value: float | tuple[float, float] | None, run: Numbers) -> dict[str, object]:
    """high: end of a slider, None where there is none; free: what None stands for."""
    low, value = value if isinstance(value, tuple) else (max(each.low, 0), value)
    high = run.steps if each.high == TRAIN_STEPS else each.high
    if high > 2**14:  # a limit that nobody meets
        high = None if each.kind is int else GUIDANCE if name.endswith("guidance") else TOP
    ends = {"low": min(low, low if value is None else value), "high": high and max(high, value or 0)}
    step = 1 if each.kind is int else FINE if high <= TOP else COARSE
    label = LABELS.get(name, name.replace("_", " "))
    return {"label": label, "help": each.help, "value": value, "free": each.none, "step": step, **ends}


def again(chosen: Settings, asked: Mapping[str, object]) -> Settings:
    """The method's settings, with what the page asks for in their place. Raises MineditError."""
    now = {name: value for name, value in asked.items() if name in settings(type(chosen))}
    for name in now:
        if isinstance(before := getattr(chosen, name), tuple):
            now[name] = before[0], now[name]
    weights = {int(name.removeprefix(WEIGHT)): value for name, value in asked.items() if name.startswith(WEIGHT)}
    if weights:
        now["reweight"] = {at: value for at, value in weights.items() if value != 1}
    return replace(chosen, **now)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("live", __doc__)
    text = "port of 127.0.0.1; 0 for any that is free"
    parser.add_argument("--port", metavar="N", type=options.number(int, 0, 65535), default=8123, help=text)
    text = "show every N-th step of the run, and the last"
    parser.add_argument("--every", metavar="N", type=options.number(int, 1, 1000), default=EVERY, help=text)
    parser.add_argument("--out", help=argparse.SUPPRESS)  # of minedit edit: refused
    return parser
