"""Difference-driven edits by their settings, beside Prompt-to-Prompt and SDEdit, as a judge reads them.

    python benchmarks/flow.py [--pairs 18] [--steps 25] [--ways p2p "flow, .3 skipped"] [--sheets FOLDER]

The pairs are those of benchmarks/one_pass.py, captions with one factor changed. "changed": edits that show the factor
as asked; "kept": the others that are read the same off source and edit; "difference": of the two pictures, the mean
over pixels and channels, of 255. Rows go to benchmarks/flow.csv, whose first of 18 pairs are of the seeds 0 to 18 but
4; what each way costs, tests/test_costs.py knows.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import torch
from one_pass import changed, judged
from table import append

import minedit
from minedit.files.checkpoint import weights_folder
from minedit.image import difference, grid
from minedit.picturebook.training.judge_net import load_judge

TABLE = Path(__file__).with_suffix(".csv")
WAYS = {
    "fixed seed": ("fixed-seed", {}),
    "p2p": ("p2p", {}),
    "adapedit": ("adapedit", {}),
    "sdedit": ("sdedit", {}),
    "sdedit, strength .6": ("sdedit", {"strength": 0.6}),
    "flow, none skipped": ("flow", {"skipped": 0.0}),
    "flow, .1 skipped": ("flow", {"skipped": 0.1}),
    "flow, .2 skipped": ("flow", {"skipped": 0.2}),
    "flow, .3 skipped": ("flow", {"skipped": 0.3}),
    "flow, .4 skipped": ("flow", {"skipped": 0.4}),
    "flow, .2 skipped, kept noise": ("flow", {"skipped": 0.2, "noise": "kept"}),
    "flow, .3 skipped, kept noise": ("flow", {"skipped": 0.3, "noise": "kept"}),
    "flow, .2 skipped, 2 draws": ("flow", {"skipped": 0.2, "draws": 2}),
    "flow, .2 skipped, source guidance 1": ("flow", {"skipped": 0.2, "source_guidance": 1.0}),
    "flow, .2 skipped, source guidance 4": ("flow", {"skipped": 0.2, "source_guidance": 4.0}),
    "flow, .2 skipped, re-estimated": ("flow", {"skipped": 0.2, "form": "re-estimated"}),
    "flow, .2 skipped, re-estimated, kept noise": ("flow", {"skipped": 0.2, "form": "re-estimated", "noise": "kept"}),
    "flow, .2 skipped, rules of p2p": ("flow", {"skipped": 0.2, "rules": "p2p"}),
    "flow, .2 skipped, rules of adapedit": ("flow", {"skipped": 0.2, "rules": "adapedit"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=18)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--sheets", type=Path, help="where a sheet of pictures goes for each pair")
    args = parser.parse_args()
    sd, judge = minedit.load(), load_judge(weights_folder() / "picturebook-judge.safetensors")
    told = {"date": date.today().isoformat(), "torch": torch.__version__, "steps": args.steps}
    got: dict[str, list[tuple]] = {way: [] for way in args.ways}
    for seed in range(args.pairs):
        pair, before, after = changed(seed)
        pictures = []
        for way in args.ways:
            method, settings = WAYS[way]
            res = minedit.edit(sd, *pair, method, seed=seed, steps=args.steps, **settings)
            pictures += [res.edited] if pictures else [res.source, res.edited]
            got[way].append((*judged(judge, res, before, after), difference(res.source, res.edited)))
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            grid(pictures, [pair[0], *args.ways], 5, pair[1]).save(args.sheets / f"{seed}.png")
    rows = []
    for way, found in got.items():
        right, asked, kept, of, apart = (sum(column) for column in zip(*found, strict=True))
        row = {**told, "way": way, "pairs": len(found), "changed": f"{right}/{asked}", "kept": f"{kept}/{of}"}
        rows.append(row | {"difference": f"{apart / len(found):.1f}"})
        print(*rows[-1].values(), sep="  ")
    append(TABLE, rows)


if __name__ == "__main__":
    main()
