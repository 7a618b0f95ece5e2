"""`minedit edit`: a picture and its edit, for each pair of prompts and seed."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

from minedit import image
from minedit.cli import options, output
from minedit.config import MineditError
from minedit.methods.choose import method_settings

PAIR = '{"source": "a boy", "target": "a sitting boy"}'


def run(args: argparse.Namespace) -> None:
    overrides = {name: getattr(args, name) for name in options.setting_names() if hasattr(args, name)}
    method_settings(args.method, None, overrides)
    pairs = _pairs(args)
    runs = [(pair, seed) for pair in pairs for seed in dict.fromkeys(args.seed)]
    from minedit.verbs import edit  # and torch, once the arguments are right

    with output.folder(args.out):
        sd = output.load(args)
        preview = output.preview(args, sd)
        output.check_prompts(sd, {text: pair.where for pair in pairs for text in (pair.source, pair.target)})
        for pair, seed in runs:
            run = output.arguments(args, seed)
            print(f"\n{pair.source!r} -> {pair.target!r}")
            print(f"  {args.method}, seed {seed}, {args.steps} steps, guidance {args.guidance}")
            with output.progress() as progress:
                calls = {"progress": progress, "on_step": preview}
                res = edit(sd, pair.source, pair.target, args.method, **calls, **run, **overrides)
            width = max((len(word.text) for word in res.words), default=0)
            print(f"  {'word':{width}}  kind      τ, fraction of the steps")
            for word in res.words:
                print(f"  {word.text:{width}}  {word.kind:8}  {word.tau:.2f}")
            pictures = {"source": res.source, "edited": res.edited}
            pictures["grid"] = image.grid([res.source, res.edited], [pair.source, pair.target])
            settings = {"verb": "edit", **res.settings, **output.model_settings(args, sd)}
            found = {"words": [asdict(word) for word in res.words], "notes": list(res.notes), **pair.more}
            name = (f"{pair.number:02d}-" if len(pairs) > 1 else "") + f"seed{seed}-" if len(runs) > 1 else ""
            output.write(args.out, name, pictures, settings, found, res.seconds)


@dataclass(frozen=True)
class _Pair:
    number: int
    source: str
    target: str
    where: str  # "pairs.jsonl line 3: ", for messages
    more: dict  # what else the line says, for the JSON


def _pairs(args: argparse.Namespace) -> list[_Pair]:
    """The prompt pairs, from the command line or a file of JSON lines."""
    if args.pairs is None:
        if args.source is None or args.target is None:
            raise MineditError("a prompt is missing; expected SOURCE and TARGET, or --pairs FILE")
        return [_Pair(1, args.source, args.target, "", {})]
    if args.source is not None and args.again is None:
        raise MineditError("prompts and --pairs; expected one or the other")
    try:
        lines = args.pairs.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise MineditError(f"cannot read {args.pairs} ({reason}); expected lines such as {PAIR}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        where = f"{args.pairs} line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise MineditError(f"{where} is not JSON ({error.msg}); expected {PAIR}") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("source", "target")):
            raise MineditError(f"{where} lacks a text for source or target; expected {PAIR}")
        more = {"pair": row} if set(row) - {"source", "target"} else {}
        pairs.append(_Pair(len(pairs) + 1, row["source"], row["target"], f"{where}: ", more))
    if not pairs:
        raise MineditError(f"{args.pairs} is empty; expected lines such as {PAIR}")
    return pairs
