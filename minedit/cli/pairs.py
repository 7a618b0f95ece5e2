"""Which edits `minedit edit` is asked for: one by its command line, or one by each line of a file (`--pairs`).

A line is a JSON object with two prompts, under the names that several projects give them; its own seed, method, numbers
of the run and settings of the method take the place of the command line's. Every line is checked before the first is
drawn.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minedit.cli import options
from minedit.config import MineditError, foreign_json, shown
from minedit.inversion.choose import inversion_settings
from minedit.methods.choose import METHODS, method_settings
from minedit.sampling.numbers import SEED, Numbers
from minedit.settings import Settings, settings

if TYPE_CHECKING:
    from minedit.stack.model import Model

PAIR = '{"source": "a boy", "target": "a sitting boy"}'
NAMES = (  # of the two prompts; the last mark what changes with [brackets]
    ("source", "target"),
    ("source_prompt", "target_prompt"),
    ("input", "output"),
    ("original_prompt", "editing_prompt"),
)
THEIRS = {"mask"}  # what lines with the prompts of others call so is no setting


@dataclass(frozen=True)
class Asked:
    """An edit, for each of its seeds."""

    source: str
    target: str
    method: str
    seeds: tuple[int, ...]
    run: Numbers
    settings: Settings
    inverse: Settings | None  # the photograph's inversion
    image: Path | None  # the photograph's file
    where: str  # "pairs.jsonl line 3: ", for messages
    more: dict  # what else the line says, for the JSON

    def check(self, sd: Model) -> None:
        """What only the model knows. Raises MineditError."""
        from minedit.sampling.loop import Run
        from minedit.verbs.asked import check_reads, read_prompt

        try:
            check_reads(sd, self.method, self.settings, self.image is not None)
            pair = [read_prompt(sd, text or "", empty=not text) for text in (self.source, self.target)]
            if not self.image:
                Run(**asdict(self.run)).fits(sd, 2)
            if check := getattr(self.settings, "check_words", None):
                check(sd.tokenizer, *pair)
        except MineditError as error:
            raise MineditError(f"{self.where}{error}") from error


def asked(args: argparse.Namespace) -> list[Asked]:
    """Raises MineditError for lines that cannot be read, or used."""
    overrides = {name: getattr(args, name) for name in options.setting_names() if hasattr(args, name)}
    if args.pairs is None:
        if args.source is None or args.target is None:
            raise MineditError("a prompt is missing; expected SOURCE and TARGET, or --pairs FILE")
        return [_asked(args, overrides, {}, [args.source, args.target], "", {})]
    if args.source is not None and args.origin is None:
        raise MineditError("prompts and --pairs; expected one or the other")
    try:
        lines = args.pairs.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text, or no name of a file"
        raise MineditError(f"cannot read {shown(args.pairs, 300)} ({reason}); expected lines such as {PAIR}") from error
    rows = [_row(args, overrides, line, f"{args.pairs} line {at}") for at, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise MineditError(f"{args.pairs} is empty; expected lines such as {PAIR}")
    return rows


def _row(args: argparse.Namespace, overrides: dict, line: str, where: str) -> Asked:
    try:
        row = foreign_json(line)
    except ValueError as error:
        raise MineditError(f"{where} is not JSON ({shown(error)}); expected {PAIR}") from error
    held = row if isinstance(row, dict) else {}
    names = next((names for names in NAMES if all(isinstance(held.get(name), str) for name in names)), None)
    if names is None:
        raise MineditError(f"{where} lacks a text for source or target; expected {PAIR}")
    texts = [re.sub(r"[\[\]]", "", held[name]) if names is NAMES[-1] else held[name] for name in names]
    own = {name: value for name, value in held.items() if names is NAMES[0] or name not in THEIRS}
    try:
        return _asked(args, overrides, own, texts, f"{where}: ", {"pair": row} if set(row) - set(names) else {})
    except MineditError as error:
        raise MineditError(f"{where}: {error}") from error


def _asked(args: argparse.Namespace, overrides: dict, own: dict, texts: list[str], where: str, more: dict) -> Asked:
    """own: what the line says, in place of `args` and `overrides`."""
    method = own.get("method", args.method)
    if method != args.method:
        method_settings(str(method), None, {})
        others = {name for kind in METHODS.values() for name in settings(kind)} - settings(METHODS[method]).keys()
        overrides = {name: value for name, value in overrides.items() if name not in others}
    overrides = overrides | {name: own[name] for name in own.keys() & options.setting_names()}
    image, inversion = _image(args, own), own.get("inversion", args.inversion)
    inverse, overrides = inversion_settings(image is not None, METHODS.get(str(method)), inversion, overrides)
    seeds = own.get("seed", args.seed)
    seeds = dict.fromkeys(SEED.check("seed", seed) for seed in (seeds if isinstance(seeds, list) else [seeds]))
    run = Numbers(**{name: own.get(name, getattr(args, name)) for name in settings(Numbers)})
    for text in texts:
        if not text.strip() and not (image and text is texts[0]):
            raise MineditError(f"prompt {shown(repr(text))} has no words; write what the picture shows")
    chosen = method_settings(method, None, overrides)
    return Asked(*texts, method, tuple(seeds), run, chosen, inverse, image, where, more)


def _image(args: argparse.Namespace, own: dict) -> Path | None:
    """The photograph's file: of a line, by a name that its file's folder holds. Raises MineditError."""
    name = own.get("image")
    if name is None:
        return args.image and Path(args.image)
    if not isinstance(name, str):
        raise MineditError(f"image is {shown(repr(name), 60)}, expected the name of a file")
    return args.pairs.parent / options.path(name)
