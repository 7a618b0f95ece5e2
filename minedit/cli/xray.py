"""`minedit xray`: one page of HTML that shows an edit from inside: every step, word and block. It loads nothing.

Takes all options of `minedit edit`, one pair of prompts and one seed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from minedit.cli import options, origin
from minedit.cli.parser import Parser, parser_of
from minedit.config import MineditError, shown

if TYPE_CHECKING:
    from minedit.cli.pairs import Asked

REFUSED = {"pairs": "makes several edits", "preview": "makes a preview", "again": "is for several runs"}


def main(argv: list[str]) -> None:
    own, rest = _parser().parse_known_args(argv)
    args = origin.parse(["edit", *rest])
    each = one(args)
    from minedit.cli import output, steering  # Pillow, once the arguments are right
    from minedit.cli.edit import prepared
    from minedit.report.page import xray  # and torch

    began = time.perf_counter()
    with output.folder(own.out.parent):
        sd = output.load(args)
        steer, _ = steering.load(args, sd)
        each.check(sd)
        numbers, given, _ = prepared(args, each, sd, steer)
        print(f"\n{shown(repr(each.source), 400)} -> {shown(repr(each.target), 400)}")
        print(f"  {each.method}, seed {each.seeds[0]}, {numbers.steps} steps, every {own.every} shown")
        output.forewarn(sd, each.source, each.target, inverted=bool(each.inverse))
        with output.progress() as progress:
            pair, more = (each.source, each.target, each.method), {"settings": each.settings, **given}
            page = xray(sd, *pair, every=own.every, seed=each.seeds[0], progress=progress, **more)
        page.save(own.out)
    for note in page.result.notes:
        print(f"  note: {shown(note, 1000)}")
    for missing in page.data["missing"]:
        print(f"  the page has not {shown(missing, 400)}")
    print(f"  {time.perf_counter() - began:.1f} s; wrote {own.out}, {page.bytes / 1e6:.1f} MB; open it in a browser")


def one(args: argparse.Namespace) -> Asked:
    """The edit that a page shows. Raises MineditError for what asks for more."""
    from minedit.cli import steering  # Pillow, once the arguments are right
    from minedit.cli.pairs import asked

    for name, what in REFUSED.items():
        if getattr(args, name) not in (None, False):
            raise MineditError(f"--{name} {what}, and a page shows one edit; leave it out")
    steering.check(args)
    (each,) = asked(args)
    if len(each.seeds) > 1:
        raise MineditError(f"there are {len(each.seeds)} seeds, and a page shows one edit; expected one: --seed N")
    return each


def _parser() -> Parser:
    text = __doc__ + "\nminedit edit --help lists them."
    parser = parser_of("xray", text)
    text = "the page's file"
    parser.add_argument("--out", metavar="PAGE", type=options.path, default=Path("xray.html"), help=text)
    text = "show every N-th step of the run, and the last, to keep the page small"
    parser.add_argument("--every", metavar="N", type=options.number(int, 1, 1000), default=1, help=text)
    return parser
