"""`minedit evaluate`: a benchmark's edits by several methods, measured: rows, tables and charts.

Under `torchrun` its processes share the edits, each on a GPU of its own where --device is cuda.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import time
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from minedit.cli import options, report
from minedit.cli.parser import Parser, parser_of
from minedit.config import MineditError, shown
from minedit.inversion.choose import DEFAULT as INVERSION
from minedit.inversion.choose import INVERSIONS
from minedit.methods.choose import METHODS
from minedit.metrics.columns import GROUPS
from minedit.sampling.numbers import Numbers

if TYPE_CHECKING:
    from minedit.metrics.asked import Task
    from minedit.metrics.evaluate import How, Made
    from minedit.metrics.kept import Rows
    from minedit.metrics.measured import Tools
    from minedit.stack.model import Model

WORLD, SPLITS = "picturebook", ("test", "tune")
PATIENCE = timedelta(days=30)  # of a process that waits for slower ones


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    args.made, args.lora, args.said = {}, args.lora or [], argv
    if args.pairs is None:
        raise MineditError(f"what to evaluate is missing; expected {WORLD}, a file of pairs, or PIE-Bench's folder")
    from minedit.cli import output  # and what measures, once the arguments are right
    from minedit.metrics import asked, evaluate, measured
    from minedit.metrics.evaluate import How
    from minedit.picturebook.training.workers import together

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
    with together("gloo", PATIENCE), _heard(), output.folder(args.out):
        if "LOCAL_RANK" in os.environ and args.device == "cuda":  # torchrun
            args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        sd = output.load(args)
        how = replace(how, specs=_specs(sd, named, how, world))
        tools = measured.tools(args.metrics, vars(args), world, masks, sd.device)
        for line in tools.absent:
            print(f"  note: {line}")
        told = {**_told(args, sd), **how.told(), "metrics": tools.told()}
        found = _shared(args, sd, tools, tasks, how, told)
        if found is not None:
            failed = sum("error" in found[spec, task.id] for spec in how.specs for task in tasks)
            if failed:
                print(f"  {failed} edits could not be made; the table counts them")
            report.write(args, tasks, how, tools, found, told)


def _heard() -> AbstractContextManager:
    """Of several processes the first is heard; what the others say is what it says."""
    from minedit.picturebook.training.workers import worker

    return redirect_stdout(io.StringIO()) if worker() else nullcontext()


def _shared(args: argparse.Namespace, sd: Model, tools: Tools, tasks: list[Task], how: How, told: dict) -> dict | None:
    """All rows, of the first process, which takes those of the others; None where some are still to be made."""
    from minedit.metrics import kept
    from minedit.metrics.evaluate import groups
    from minedit.picturebook.training.workers import all_of, worker, workers

    file, own = args.kept or args.out / "rows.jsonl", groups(tasks, how)[worker() :: workers()]
    if worker():
        all_of(True)  # the first has taken what a run that was killed left
        with kept.rows(kept.part(file, worker()), told, beside=file) as rows:
            done = _run(args, sd, tools, own, how, rows)
        all_of(done)
        return None
    with kept.rows(file, told) as rows:
        all_of(True)
        done = all_of(_run(args, sd, tools, own, how, rows))
        for other in range(1, workers()):
            if not kept.part(file, other).exists():
                where = f"the rows of process {other} are not beside {shown(file, 300)}"
                raise MineditError(f"{where}; give --out, or --kept, in a folder that all machines share")
        rows.take()
        return rows.found if done else None


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


def _run(args: argparse.Namespace, sd: Model, tools: Tools, own: list[list[Task]], how: How, rows: Rows) -> bool:
    """Whether all of these edits are there."""
    from tqdm import tqdm

    from minedit.metrics.evaluate import evaluated
    from minedit.picturebook.training.workers import worker

    began, count = time.perf_counter(), sum(map(len, own))
    show = partial(_save, args.pictures) if args.pictures else None
    with tqdm(total=count, unit="edit", ncols=80, mininterval=1, disable=worker() > 0) as bar:
        for group in own:
            if args.seconds is not None and time.perf_counter() - began > args.seconds:
                print(f"  {bar.n} of {count} edits after {args.seconds:g} s; the same command goes on with the rest")
                return False
            for row in evaluated(sd, tools, group, how, rows, show):
                if "error" in row:
                    bar.write(f"  {row['method']} cannot make {shown(row['id'], 60)}: {row['error']}")
            bar.update(len(group))
    return True


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
    parser = parser_of("evaluate", __doc__)
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
