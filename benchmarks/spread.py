"""Prompt-to-Prompt's two rules for a word replaced by one of another number of tokens, as a judge reads the edits.

    python benchmarks/spread.py [--seeds 1] [--steps 50]

Of the embedded model's words one has two tokens, "hamburgers": it is replaced by each other thing, and replaces it, at
every count and support, 40 pairs. "changed": the edit shows the new thing; "kept": factors besides it that are read the
same off source and edit; "difference": of the two pictures, the mean over pixels and channels, of 255. Rows go to
benchmarks/spread.csv.
"""

from __future__ import annotations

import argparse
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
import torch
from table import append

import minedit
from minedit.files.checkpoint import weights_folder
from minedit.image import to_tensor
from minedit.picturebook.training.judge_net import load_judge

TABLE = Path(__file__).with_suffix(".csv")
MANY, OTHERS = "hamburgers", ("apples", "peaches", "balls", "cakes", "strawberries")
THING = {"hamburgers": "hamburger", "peaches": "peach", "strawberries": "strawberry"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    sd, judge = minedit.load(), load_judge(weights_folder() / "picturebook-judge.safetensors")
    told = {"date": date.today().isoformat(), "torch": torch.__version__, "steps": args.steps}
    rows = {}
    for seed, count, support, other in product(range(args.seeds), ("two", "three"), ("a plate", "the table"), OTHERS):
        for i, (old, new) in enumerate(((MANY, other), (other, MANY))):
            pair = [f"{count} {thing} on {support}" for thing in (old, new)]
            for spread in ("mean", "sum"):
                res = minedit.edit(sd, *pair, "p2p", seed=seed, steps=args.steps, spread=spread)
                images = torch.cat([to_tensor(image) for image in (res.source, res.edited)])
                read = {name: judge.read(images, name) for name in ("subject", "count", "place", "size")}
                want = THING.get(new, new.removesuffix("s"))
                apart = np.abs(np.asarray(res.source, float) - np.asarray(res.edited, float)).mean()
                same = [a == b for name, (a, b) in read.items() if name != "subject"]
                got = read["subject"][1] == want, sum(same), len(same), apart
                rows.setdefault((("2 tokens to 1", "1 token to 2")[i], spread), []).append(got)
    out = []
    for (way, spread), got in rows.items():
        changed, kept, of, apart = (sum(column) for column in zip(*got, strict=True))
        row = {**told, "way": way, "spread": spread, "pairs": len(got), "changed": f"{changed}/{len(got)}"}
        out.append(row | {"kept": f"{kept}/{of}", "difference": f"{apart / len(got):.2f}"})
        print(*out[-1].values(), sep="  ")
    append(TABLE, out)


if __name__ == "__main__":
    main()
