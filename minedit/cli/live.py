"""`minedit live`: the page of `minedit xray`, where settings that are dragged draw the edit again.

It is served to this machine's own browsers alone, until Ctrl-C. Takes the options of `minedit xray`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from minedit.cli import options, origin
from minedit.cli.parser import parser_of
from minedit.config import MineditError
from minedit.sampling.numbers import SEED
from minedit.settings import Settings, settings

if TYPE_CHECKING:
    from PIL.Image import Image

DRAGGED = {  # settings, and what their sliders are called
    "tau": "τ, one for all words",
    "lambda_s": "λ_S, the most of a pixel",
    "lambda_tau": "λ_τ, times every τ",
    "lambda_sv": "λ_S[V], slope of S",
    "cross_steps": "cross-attention",
}
WEIGHT, HEAVIEST = "weight", 4.0  # of a word, by its number
TOP = 2.0  # of a slider whose setting has no end
EVERY, STEPS = 4, 20  # what a run of a few seconds shows, unless more is asked for


def main(argv: list[str]) -> None:
    own, rest = _parser().parse_known_args(argv)
    args = origin.parse(["edit", *(["--steps", str(STEPS)] if "--steps" not in rest else []), *rest])
    from minedit.cli import output, steering  # Pillow, once the arguments are right
    from minedit.cli.edit import prepared
    from minedit.cli.pairs import asked

    if args.pairs is not None or args.preview is not None:
        raise MineditError("--pairs and --preview are for minedit edit; leave them out")
    steering.check(args)
    (each,) = asked(args)
    from minedit.report.live import HOST, served  # and torch
    from minedit.report.page import Page, xray
    from minedit.report.studio import Studio
    from minedit.sampling.loop import Progress
    from minedit.verbs.preview import preview

    sd = output.load(args)
    steer, _ = steering.load(args, sd)
    each.check(sd)
    _, given, _ = prepared(args, each, sd, steer)
    words = [word.text for word in sd.tokenizer.encode(each.target).words]

    def draw(asked: Mapping[str, object], progress: Progress, show: Callable[[Image], object]) -> Page:
        now = {"settings": again(each.settings, asked), "seed": asked.get("seed", each.seeds[0])}
        now |= {"progress": progress, "on_step": preview(sd, show=show)}
        return xray(sd, each.source, each.target, each.method, every=own.every, **{**given, **now})

    told = {"settings": dragged(each.settings, each.seeds[0], words)}
    with Studio(draw) as studio, served(studio, told, own.port) as server:
        studio.ask({})
        print(
            f"  open http://{HOST}:{server.server_address[1]} in a browser of this machine; Ctrl-C ends it", flush=True
        )
        server.serve_forever()


def dragged(chosen: Settings, seed: int, words: Sequence[str]) -> dict[str, dict]:
    """What the page can set, as JSON values: of the settings those that are dragged, and the words' weights."""
    found = {"seed": {"kind": "int", "label": "seed", "low": 0, "value": seed, "help": SEED.help, "free": ""}}
    known = settings(type(chosen))
    for name, label in DRAGGED.items():
        if (each := known.get(name)) and each.kind is float:
            ends = {"low": max(each.low, 0.0), "high": min(each.high, TOP)}
            about = {"label": label, "help": each.help, "value": getattr(chosen, name), "free": each.none}
            found[name] = {"kind": "float", **ends, **about}
    if "reweight" in known:
        about = {"kind": "float", "low": 0.0, "high": HEAVIEST, "help": known["reweight"].help, "free": ""}
        for at, word in enumerate(words):
            found[f"{WEIGHT}{at}"] = {**about, "label": f"\u00d7 {word}", "value": 1.0}
    return found


def again(chosen: Settings, asked: Mapping[str, object]) -> Settings:
    """The method's settings, with what the page asks for in their place. Raises MineditError."""
    now = {name: value for name, value in asked.items() if name in DRAGGED}
    weights = {int(name.removeprefix(WEIGHT)): value for name, value in asked.items() if name.startswith(WEIGHT)}
    if weights := {at: value for at, value in weights.items() if value != 1}:
        now["reweight"] = weights
    return replace(chosen, **now)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("live", __doc__)
    text = "port of 127.0.0.1; 0 for any that is free"
    parser.add_argument("--port", metavar="N", type=options.number(int, 0, 65535), default=8123, help=text)
    text = "show every N-th step of the run, and the last"
    parser.add_argument("--every", metavar="N", type=options.number(int, 1, 1000), default=EVERY, help=text)
    return parser
