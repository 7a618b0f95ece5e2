"""`minedit evaluate`: a benchmark's edits by several methods, measured: rows, a CSV and a table to read."""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from minedit import __version__
from minedit.cli import options
from minedit.cli.parser import Formatter, Parser
from minedit.config import MineditError, shown
from minedit.inversion.choose import DEFAULT as INVERSION
from minedit.inversion.choose import INVERSIONS
from minedit.methods.choose import METHODS
from minedit.metrics.columns import GROUPS
from minedit.sampling.numbers import Numbers

if TYPE_CHECKING:
    from minedit.metrics.asked import Task
    from minedit.metrics.evaluate import How, Made
    from minedit.metrics.measured import Tools
    from minedit.stack.model import Model

WORLD, SPLITS = "picturebook", ("test", "tune")


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    args.made, args.lora, args.said = {}, args.lora or [], argv
    if args.pairs is None:
        raise MineditError(f"what to evaluate is missing; expected {WORLD}, a file of pairs, or PIE-Bench's folder")
    from minedit.cli import output  # and what measures, once the arguments are right
    from minedit.metrics import asked, evaluate, kept, measured
    from minedit.metrics.evaluate import How

    tasks = _seeded(asked.few(asked.tasks(args.pairs, args.split), args.limit), args.seed)
    world, masks = all(task.world for task in tasks), any(task.mask is not None for task in tasks)
    pictures = {task.image is not None or (args.photographs and task.world is not None) for task in tasks}
    if len(pictures) > 1 or (args.photographs and not world):
        raise MineditError("--photographs is for the closed world, whose renderings it edits; omit it")
    if any(task.world for task in tasks) and (args.height or args.width):
        raise MineditError("the closed world's pictures are square, as the model draws them; omit --height and --width")
    if args.inversion and pictures == {False}:
        raise MineditError("--inversion is for photographs, and there are none; omit it, or add --photographs")
    run = Numbers(**{field.name: getattr(args, field.name) for field in fields(Numbers)})
    how = How((), run, pictures == {True}, args.inversion, args.alone)
    named = args.methods if args.methods != ["all"] else None
    for spec in named or ():
        evaluate.parsed(spec)
    with output.folder(args.out):
        sd = output.load(args)
        how = replace(how, specs=_specs(sd, named, how, world))
        tools = measured.tools(args.metrics, vars(args), world, masks, sd.device)
        for line in tools.absent:
            print(f"  note: {line}")
        told = {**_told(args, sd), **how.told(), "metrics": tools.told()}
        with kept.rows(args.kept or args.out / "rows.jsonl", told) as rows:
            if _run(args, sd, tools, tasks, how, rows):
                _write(args, tasks, how, rows.found, told)


def _specs(sd: Model, named: list[str] | None, how: How, world: bool) -> tuple[str, ...]:
    """The methods that are asked for, or all that can be; raises MineditError for one that cannot."""
    from minedit.metrics.evaluate import FRAMES, possible

    specs, left = [], []
    for spec in dict.fromkeys(named or (*FRAMES, *METHODS)):
        try:
            possible(sd, spec, how, world)
            specs.append(spec)
        except MineditError as error:
            if named:
                raise
            left.append(f"{spec} is left out: {shown(error, 300)}")
    for line in left:
        print(f"  note: {line}")
    return tuple(specs)


def _run(args: argparse.Namespace, sd: Model, tools: Tools, tasks: list[Task], how: How, rows: object) -> bool:
    """Whether all edits are there."""
    from tqdm import tqdm

    from minedit.metrics.evaluate import evaluated

    began, failed = time.perf_counter(), 0
    show = (lambda task: lambda spec, made: _save(args.pictures, task, spec, made)) if args.pictures else lambda _: None
    with tqdm(tasks, unit="edit", ncols=80, mininterval=1) as bar:
        for done, task in enumerate(bar):
            if args.seconds is not None and time.perf_counter() - began > args.seconds:
                print(
                    f"  {done} of {len(tasks)} edits after {args.seconds:g} s; the same command goes on with the rest"
                )
                return False
            for row in evaluated(sd, tools, task, how, rows, show(task)):
                if "error" in row:
                    failed += 1
                    bar.write(f"  {row['method']} cannot make {shown(task.id, 60)}: {row['error']}")
    if failed:
        print(f"  {failed} edits could not be made; the table counts them")
    return True


def _write(args: argparse.Namespace, tasks: list[Task], how: How, found: dict, told: dict) -> None:
    import torch

    from minedit.image import write_whole
    from minedit.metrics import table

    lines = table.summary(how.specs, tasks, found)
    limit = {"limit": args.limit} if args.limit else {}
    split = {"split": args.split} if args.pairs == WORLD else {}
    told = {"benchmark": args.pairs, **split, **limit, **told, "date": date.today().isoformat()}
    told |= {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "minedit": __version__,
        "command": "minedit evaluate " + " ".join(args.said),
    }
    told["metrics"] = " ".join(
        f"{name.replace(' ', '-')}:{weights}".rstrip(":") for name, weights in told["metrics"].items()
    )
    text = table.as_markdown(lines, told, f"{Path(args.pairs).name}: {len(tasks)} edits by {len(how.specs)} methods")
    written = {"table.csv": table.as_csv(lines, told), "table.md": text}
    for name, text in written.items():
        write_whole(args.out / name, lambda part, text=text: part.write_text(text, encoding="utf-8"))
    _print([line for line in lines if line["kind"] == table.ALL])
    print(
        f"wrote {', '.join(str(args.out / name) for name in written)}; rows in {args.kept or args.out / 'rows.jsonl'}"
    )


def _print(lines: list[dict]) -> None:
    from minedit.metrics.columns import COLUMNS
    from minedit.metrics.table import cell

    width = max(len(line["method"]) for line in lines)
    for name in lines[0]["figures"]:
        print(f"{COLUMNS[name].title}: {COLUMNS[name].said}")
        for line in lines:
            print(f"  {line['method']:{width}}  {cell(name, line['figures'][name], line['edits'])}")


def _told(args: argparse.Namespace, sd: Model) -> dict[str, object]:
    """Which model draws."""
    from minedit.files import lora
    from minedit.picturebook.training.fit import fingerprint

    return {
        "model": sd.config.name,
        "weights": sd.weights or fingerprint(sd.unet),
        "dtype": args.dtype,
        **lora.settings(sd),
    }


def _seeded(tasks: list[Task], seeds: list[int] | None) -> list[Task]:
    """Each with its seed: those asked for, an edit each; else its own, or 0."""
    if seeds is None:
        return [replace(task, seed=task.seed or 0) for task in tasks]
    ids = [f"@{seed}" if len(seeds) > 1 else "" for seed in seeds]
    return [
        replace(task, id=task.id + mark, seed=seed) for task in tasks for mark, seed in zip(ids, seeds, strict=True)
    ]


def _save(folder: Path, task: Task, spec: str, made: Made) -> None:
    from minedit import image

    place = folder / re.sub(r"[^\w.@-]", "_", task.id)[:100]
    told = {"source": task.source, "target": task.target, "seed": task.seed, "method": spec}
    if not (place / "source.png").exists():
        image.save(place / "source.png", made.source, told)
    image.save(place / (re.sub(r"[^\w.+=-]", "_", spec)[:100] + ".png"), made.edit, told)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"found {shown(repr(text))}, expected names with commas between")
    return names


def _groups(text: str) -> list[str]:
    names = _names(text)
    if unknown := [name for name in names if name not in GROUPS]:
        raise argparse.ArgumentTypeError(f"found {shown(repr(unknown[0]))}, expected some of {', '.join(GROUPS)}")
    return names


def _parser() -> Parser:
    parser = Parser("minedit evaluate", description=__doc__, formatter_class=Formatter, allow_abbrev=False)
    text = (
        f"{WORLD}, the closed world; a .jsonl of pairs (InstructPix2Pix's 700, EditEval, your own); PIE-Bench's folder"
    )
    parser.add_argument("pairs", metavar="BENCHMARK", nargs="?", default=argparse.SUPPRESS, help=text)
    parser.add_argument("--pairs", metavar="BENCHMARK", help="the same")
    text = "all, or some with commas between: copy, re-render, " + ", ".join(METHODS)
    text += "; with settings: p2p:cross_steps=0.6:self_steps=0"
    parser.add_argument("--methods", metavar="NAMES", type=_names, default="copy,fixed-seed,p2p,adapedit", help=text)
    text = f"some of {', '.join(GROUPS)}; all whose weights are there, if not given"
    parser.add_argument("--metrics", metavar="NAMES", type=_groups, help=text)
    parser.add_argument("--limit", metavar="N", type=options.number(int, 1, 10**9), help="edits of each kind")
    parser.add_argument("--split", choices=SPLITS, default="test", help=f"of {WORLD}")
    text = f"of {WORLD}, edit renderings as photographs, whose counterfactual is known"
    parser.add_argument("--photographs", action="store_true", help=text)
    text = f"of photographs: {', '.join(INVERSIONS)} (default: {INVERSION})"
    parser.add_argument("--inversion", metavar="NAME", choices=tuple(INVERSIONS), help=text)
    group = parser.add_argument_group("weights to measure by")
    text = "a CLIP's folder, as transformers has them: openai/clip-vit-large-patch14"
    group.add_argument("--clip", metavar="FOLDER", help=text)
    group.add_argument("--dino", metavar="FOLDER", help="a ViT's folder, as transformers has them: facebook/dino-vitb8")
    text = "torchvision's squeezenet1_1, by which PIE-Bench publishes, or another alexnet than the embedded one"
    group.add_argument("--lpips", metavar="FILE", help=text)
    group = options.add_numbers(parser)
    parser.set_defaults(out=Path("out/evaluate"), seed=None)
    text = "where the rows go and stay, which the same command goes on behind (default: rows.jsonl in --out)"
    group.add_argument("--kept", metavar="FILE", type=options.path, help=text)
    group.add_argument(
        "--pictures", metavar="FOLDER", type=options.path, help="where sources and edits go, if anywhere"
    )
    text = "each method by itself: its time is its own, and more"
    group.add_argument("--alone", action="store_true", help=text)
    text = "begin no edit after this long, and make no table; the same command goes on"
    group.add_argument("--seconds", metavar="X", type=options.number(float, 0), help=text)
    options.add_model(parser)
    return parser
