"""AdapEdit by cheaper statistics: what it costs, and how far τ is off. One pass, a shorter pass; the embedded model.

    python benchmarks/one_pass.py [--pairs 100] [--steps 50] [--model PATH]

Pairs are captions of the picture book with one factor changed, held-out compositions among them. |Δτ| is the mean over
the kept words. Times are sums over all pairs, each pair by every way in turn. Rows go to benchmarks/one_pass.csv.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

import minedit
from minedit.picturebook.captions import caption
from minedit.picturebook.draw import stream
from minedit.picturebook.factors import SIZES, Factors, colours, random_factors
from minedit.picturebook.looks import POSES
from minedit.tokens import align

TABLE = Path(__file__).with_suffix(".csv")
WAYS = {
    "two passes, last step": ("adapedit", {}),
    "two passes, mean": ("adapedit", {"statistics": "mean"}),
    "10 steps of statistics": ("adapedit", {"fwt_steps": 10}),
    "10 steps of statistics, mean": ("adapedit", {"fwt_steps": 10, "statistics": "mean"}),
    "one pass": ("adapedit", {"fwt": "one-pass"}),
    "p2p": ("p2p", {}),
}
AGAINST = ("two passes, last step", "two passes, mean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--model")
    args = parser.parse_args()
    sd = minedit.load(args.model)
    took = dict.fromkeys(WAYS, 0.0)
    off: dict[tuple[str, str], list[float]] = {(way, against): [] for way in WAYS for against in AGAINST}
    minedit.edit(sd, "a boy", "a girl", steps=2)  # the warm-up
    for seed in range(args.pairs):
        pair, tau = changed(seed), {}
        alignment = align(*(sd.tokenizer.encode(text) for text in pair))
        counted = [p.word for p in alignment.pairs if p.kind == "kept"]
        for way, (method, settings) in WAYS.items():
            began = time.perf_counter()
            words = minedit.edit(sd, *pair, method, seed=seed, steps=args.steps, **settings).words
            took[way] += time.perf_counter() - began
            tau[way] = [words[i].tau for i in counted]
        for way, against in off:
            off[way, against] += [abs(a - b) for a, b in zip(tau[way], tau[against], strict=True)]
    told = {"date": date.today().isoformat(), "torch": torch.__version__, "model": args.model or "embedded"}
    told |= {"pairs": args.pairs, "steps": args.steps}
    print(", ".join(f"{key} {value}" for key, value in told.items()))
    rows = []
    for way in WAYS:
        row = {
            **told,
            "way": way,
            "seconds": f"{took[way] / args.pairs:.3f}",
            "ratio": f"{took[way] / took['p2p']:.3f}",
        }
        row |= {f"off from {against}": f"{statistics.fmean(off[way, against]):.4f}" for against in AGAINST}
        shown = "" if way == "p2p" else " ".join(f"{row[f'off from {a}']:>8} from {a}" for a in AGAINST)
        print(f"  {way:30}{row['seconds']:>8} s {row['ratio']:>7} x p2p   |Δτ| {shown}")
        rows.append(row)
    new = not TABLE.exists()
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if new:
            writer.writeheader()
        writer.writerows(rows)


def changed(seed: int) -> tuple[str, str]:
    """Two captions of one wording and one factor changed: pose, colour, size, or how many things there are."""
    rng = stream(seed, "pair")
    while True:
        f = random_factors(rng)
        options = {"size": tuple(SIZES), "colour": colours(f.subject)}
        options |= {"count": (1, 2, 3)} if f.still else {"pose": POSES[f.subject]}
        factor = rng.choice(sorted(options))
        others = [value for value in options[factor] if value != getattr(f, factor)]
        if not others:
            continue
        after = replace(f, **{factor: rng.choice(others)})
        pair = (said(f, factor, seed), said(after, factor, seed))
        if pair[0] != pair[1]:
            return pair


def said(f: Factors, factor: str, seed: int) -> str:
    return caption(f, random.Random(seed), frozenset({factor, "place", "count"})).text


if __name__ == "__main__":
    main()
