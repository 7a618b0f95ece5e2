"""What `minedit evaluate` leaves beside its rows: tables, and charts of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from minedit import __version__

if TYPE_CHECKING:
    from minedit.metrics.asked import Task
    from minedit.metrics.evaluate import How
    from minedit.metrics.measured import Tools

BARS = (("s", "p", "o"), ("lpips", "clip", "clip_direction"), ("lpips", "psnr", "ssim"), ("psnr", "ssim"))
PLANES = {"s-p": ("s", "p"), "clip": ("clip_direction", "clip_pictures")}  # file → across and up


def write(args: argparse.Namespace, tasks: list[Task], how: How, tools: Tools, found: dict, told: dict) -> None:
    """Tables and charts into --out, and the means on the terminal."""
    from minedit import image
    from minedit.metrics import paper, piebench, table

    lines = table.summary(how.specs, tasks, found)
    told = _told(args, told)
    title = f"{Path(args.pairs).name}: {len(tasks)} edits by {len(how.specs)} methods"
    texts = {"table.csv": table.as_csv(lines, told), "table.md": table.as_markdown(lines, told, title)}
    if paper.asked(tasks, lines[0]["figures"]):
        texts["table1.md"] = paper.as_markdown(lines, str(told["model"]), tools.clip)
    if piebench.asked(tasks, lines[0]["figures"]):
        texts["pie-bench.md"] = piebench.as_markdown(lines, str(told["model"]), tools, how.inversion)
    for name, text in texts.items():
        image.write_whole(args.out / name, lambda part, text=text: part.write_text(text, encoding="utf-8"))
    charts = _charts([line for line in lines if line["kind"] == table.ALL], title)
    for name, chart in charts.items():
        image.save(args.out / name, chart, told)
    _print([line for line in lines if line["kind"] == table.ALL])
    names = ", ".join(str(args.out / name) for name in (*texts, *charts))
    print(f"wrote {names}; rows in {args.kept or args.out / 'rows.jsonl'}")


def _charts(lines: list[dict], title: str) -> dict:
    from minedit.metrics.charts import bars, plane

    methods = [(line["method"], line["figures"]) for line in lines]
    charts = {}
    if names := next((names for names in BARS if set(names) <= lines[0]["figures"].keys()), None):
        charts["bars.png"] = bars(names, methods, f"{title}; means and 95 % intervals")
    for name, axes in PLANES.items():
        if chart := plane(*axes, methods, title):
            charts[f"{name}.png"] = chart
    return charts


def _told(args: argparse.Namespace, told: Mapping[str, object]) -> dict[str, object]:
    import torch

    limit = {"limit": args.limit} if args.limit else {}
    split = {"split": args.split} if args.pairs == "picturebook" else {}
    told = {"benchmark": args.pairs, **split, **limit, **told, "date": date.today().isoformat()}
    told |= {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "minedit": __version__,
        "command": "minedit evaluate " + " ".join(args.said),
    }
    weights = told["metrics"].items()
    told["metrics"] = " ".join(f"{name.replace(' ', '-')}:{value}".rstrip(":") for name, value in weights)
    return told


def _print(lines: list[dict]) -> None:
    from minedit.metrics.columns import COLUMNS
    from minedit.metrics.table import cell

    width = max(len(line["method"]) for line in lines)
    for name in lines[0]["figures"]:
        print(f"{COLUMNS[name].title}: {COLUMNS[name].said}")
        for line in lines:
            print(f"  {line['method']:{width}}  {cell(name, line['figures'][name], line['edits'])}")
