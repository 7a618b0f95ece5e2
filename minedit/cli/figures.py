"""`minedit ablate`, `sweep`, `gallery`: many edits in one labelled picture, as the AdapEdit paper's Figures 6, 7 and 2.

Comes out: the picture; a CSV of its edits, with how far each changed the source; a JSON with all settings and each
word's τ. All edits of a source and seed are drawn in batches of BATCH, beside one source.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from minedit.cli import options
from minedit.cli.parser import Parser, parser_of
from minedit.config import MineditError, shown
from minedit.inversion.choose import INVERSIONS, inversion_settings, name_of
from minedit.methods.choose import DEFAULT, METHODS, method_settings
from minedit.settings import settings

if TYPE_CHECKING:
    from minedit.stack.model import Model
    from minedit.verbs.results import EditResult

BATCH = 8  # edits beside one source
WHOLE = "AdapEdit"
PARTS = {  # as the paper's Figure 6 has them, and the method that AdapEdit goes out from
    WHOLE: ("adapedit", {}),
    "w/o FWT": ("adapedit", {"fwt": False}),
    "w/o DPS": ("adapedit", {"dps": False}),
    "w/o DPS*": ("adapedit", {"mask": False}),
    "Prompt-to-Prompt": ("p2p", {}),
}


@dataclass(frozen=True)
class Cell:
    """An edit, and what is said of it."""

    caption: str
    target: str
    method: str
    own: dict  # settings of the method and its inversion, those that are not their defaults
    told: dict  # columns of its own in the CSV
    inversion: str | None = None  # of a photograph, where the method takes one


@dataclass(frozen=True)
class Line:
    """A source and its edits: a row of the picture, or several of `columns` edits."""

    source: str
    seed: int
    run: dict  # steps, guidance ...
    cells: tuple[Cell, ...]
    image: Path | None = None  # the photograph's file
    columns: int = 0  # edits a row; 0: all


def main(argv: list[str]) -> None:
    verb = argv[0]
    args = _parser(verb).parse_args(argv[1:])
    args.made, args.lora, began = {}, args.lora or [], time.perf_counter()
    lines, pair, title = {"ablate": _ablation, "sweep": _sweep, "gallery": _gallery}[verb](args)
    from minedit import image  # and what draws, once the arguments are right
    from minedit.cli import output

    with output.folder(args.out):
        sd = output.load(args)
        output.check_letters(title, *(text for line in lines for text in (line.source, *_captions(line))))
        images, captions, rows = [], [], []
        width = max(line.columns or len(line.cells) for line in lines)
        for line in lines:
            print(f"\n{shown(repr(line.source), 400)}, seed {line.seed}: {len(line.cells)} edits")
            output.forewarn(sd, line.source, *{cell.target for cell in line.cells}, inverted=line.image is not None)
            with output.progress() as progress:
                found = _drawn(sd, line, progress)
            label = f"seed {line.seed}" if verb != "gallery" else line.source
            for some in _parts(list(zip(line.cells, found, strict=True)), line.columns or width):
                empty = [None] * (width - len(some))
                images += [found[0].source, *(res.edited for _, res in some), *empty]
                captions += [label, *(cell.caption for cell, _ in some), *("" for _ in empty)]
            rows += _rows(line, found, verb)
        sheet = image.grid(images, captions, width + 1, title)
        told = {"verb": verb, **pair, **output.arguments(args, 0), **output.model_settings(args, sd), "seed": args.seed}
        table = [{name: value for name, value in row.items() if name != "words"} for row in rows]
        seconds, said = time.perf_counter() - began, {"rows": rows, "notes": []}
        output.write(args.out, "", {verb: sheet}, told, said, seconds, rows=table)


def _drawn(sd: Model, line: Line, progress: Callable[[int, int], None]) -> list[EditResult]:
    from minedit import photo
    from minedit.verbs.edit import edits

    picture, found = photo.upright(photo.read(line.image)) if line.image else None, {}
    for name in dict.fromkeys(cell.inversion for cell in line.cells):
        alike = [at for at, cell in enumerate(line.cells) if cell.inversion == name]
        for some in _parts(alike, BATCH):
            cells = [line.cells[at] for at in some]
            targets = [{"target": cell.target, "method": cell.method, **cell.own} for cell in cells]
            more = {"image": picture, "inversion": name} if picture else {}
            results = edits(sd, line.source, targets, seed=line.seed, progress=progress, **line.run, **more)
            found |= dict(zip(some, results, strict=True))
    return [found[at] for at in range(len(found))]


def _rows(line: Line, found: list[EditResult], verb: str) -> Iterator[dict]:
    """What the CSV has of each edit, and its words. changed: mean difference from the source over pixels, of 255."""
    from minedit.image import difference

    for cell, res in zip(line.cells, found, strict=True):
        row = {"seed": line.seed, "source": line.source, "target": cell.target, "method": cell.method, **cell.told}
        row["settings"] = json.dumps(cell.own, ensure_ascii=False)
        row["changed"] = round(difference(res.edited, found[0].source), 3)
        if verb == "ablate":
            row["from_whole"] = round(difference(res.edited, found[0].edited), 3)
        row["words"] = [{"text": word.text, "kind": word.kind, "tau": word.tau} for word in res.words]
        yield row


def _ablation(args: argparse.Namespace) -> tuple[list[Line], dict, str]:
    given = _given(args)
    known = {name for method, _ in PARTS.values() for name in settings(METHODS[method])}
    cells = []
    for label, (method, part) in PARTS.items():
        has = settings(METHODS[method])
        own = {name: value for name, value in given.items() if name in has or name not in known} | part
        cells.append(_cell(args, label, method, own, {"part": label}))
    return _lines(args, cells), _pair(args), f"{args.source} \u2192 {args.target}"


def _sweep(args: argparse.Namespace) -> tuple[list[Line], dict, str]:
    given = _given(args)
    lists = {name: value for name, value in given.items() if isinstance(value, list) and _number(name)}
    swept = {name: values for name, values in lists.items() if len(values) > 1}
    if len(swept) not in (1, 2):
        what = f"{len(swept)} settings have several values"
        raise MineditError(f"{what}; expected one or two, such as --lambda-tau 0.2,0.6,1 --lambda-s 0.5,0.9,0.95")
    fixed = given | {name: values[0] for name, values in lists.items() if len(values) == 1}
    cells = []
    for values in product(*swept.values()):
        at = dict(zip(swept, values, strict=True))
        caption = ", ".join(f"{_flag(name)}\u00a0{_text(value)}" for name, value in at.items())
        cells.append(_cell(args, caption, args.method, fixed | at, at))
    pair = _pair(args) | {"method": args.method, "swept": swept}
    title = f"{args.source} \u2192 {args.target}, {args.method}"
    return _lines(args, cells, columns=len(list(swept.values())[-1])), pair, title


def _gallery(args: argparse.Namespace) -> tuple[list[Line], dict, str]:
    from minedit.cli.pairs import asked

    found: dict[tuple, list[Cell]] = {}
    edits = [(each, seed) for each in asked(args) for seed in each.seeds]
    several = len({each.method for each, _ in edits}) > 1
    for each, seed in edits:
        plain, inverse = METHODS[each.method](), asdict(each.inverse) if each.inverse else {}
        own = {name: value for name, value in asdict(each.settings).items() if value != getattr(plain, name)}
        caption = each.target + f" ({each.method})" * several
        name = name_of(each.inverse) if each.inverse else None
        cell = Cell(caption, each.target, each.method, own | inverse, {}, name)
        found.setdefault((each.source, seed, each.run, each.image), []).append(cell)
    lines = [
        Line(source, seed, asdict(run), tuple(cells), image) for (source, seed, run, image), cells in found.items()
    ]
    return lines, {"pairs": str(args.pairs.absolute())}, ""


def _given(args: argparse.Namespace) -> dict:
    """The settings that are asked for, in the order of the command line."""
    names = options.setting_names()
    return {name: value for name, value in vars(args).items() if name in names}


def _number(name: str) -> bool:
    kinds = (settings(kind) for kind in (*METHODS.values(), *INVERSIONS.values()))
    return any(name in kind and kind[name].kind in options.NUMBERS for kind in kinds)


def _cell(args: argparse.Namespace, caption: str, method: str, own: dict, told: dict) -> Cell:
    """Raises MineditError for settings that the method, or the photograph's inversion, does not have."""
    inverts = args.image is not None and getattr(METHODS[method], "inverts", True)
    inverse, rest = inversion_settings(inverts, METHODS[method], args.inversion, own)
    method_settings(method, None, rest)
    return Cell(caption, args.target, method, own, told, name_of(inverse) if inverse else None)


def _lines(args: argparse.Namespace, cells: list[Cell], columns: int = 0) -> list[Line]:
    from minedit.sampling.numbers import Numbers

    run = {name: getattr(args, name) for name in settings(Numbers)}
    return [Line(args.source, seed, run, tuple(cells), args.image, columns) for seed in args.seed]


def _pair(args: argparse.Namespace) -> dict:
    photo = {"image": str(args.image.absolute()), "inversion": args.inversion} if args.image else {}
    return {"source": args.source, "target": args.target, **photo}


def _captions(line: Line) -> list[str]:
    return [cell.caption for cell in line.cells]


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _text(value: float | tuple[float, float]) -> str:
    return ":".join(f"{end:g}" for end in (value if isinstance(value, tuple) else [value]))


def _parts(found: list, size: int) -> list[list]:
    return [found[at : at + size] for at in range(0, len(found), size)]


def _parser(verb: str) -> Parser:
    text = options.FIGURES[verb]
    parser = parser_of(verb, text[0].upper() + text[1:] + ", in one labelled picture.")
    if verb == "gallery":
        text = 'an edit a line: {"source": "...", "target": "..."}, and settings of its own, such as "seed": 3'
        parser.add_argument("pairs", metavar="PAIRS.jsonl", type=options.path, help=text)
        parser.set_defaults(source=None, target=None, origin=None)
    else:
        parser.add_argument("source", metavar="SOURCE", help="prompt of the picture to start from")
        parser.add_argument("target", metavar="TARGET", help="prompt of the edited picture")
        options.add_photo(parser)
    if verb == "gallery":
        parser.set_defaults(image=None, inversion=None)
    if verb != "ablate":
        methods = tuple(METHODS)
        parser.add_argument("--method", choices=methods, default=DEFAULT, help="how to edit", metavar="NAME")
    options.add_numbers(parser)
    options.add_seeds(parser)
    options.add_settings(parser, several=verb == "sweep")
    options.add_model(parser)
    return parser
