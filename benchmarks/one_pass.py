"""AdapEdit by cheaper statistics: what it costs, how far τ is off, and what a judge reads off the edits.

    python benchmarks/one_pass.py [--pairs 100] [--edits 10] [--steps 50] [--model PATH]

Pairs are captions of the picture book with one factor changed, held-out compositions among them. |Δτ| is the mean over
the kept words of all pairs. The first `--edits` pairs are edited by every way in turn: times are sums over them, and
the judge reads the changed factor off each edit and, off source and edit, the others; "kept" is how many of those are
read the same in both. Rows go to benchmarks/one_pass.csv.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from table import append

import minedit
from minedit.files.checkpoint import Model, weights_folder
from minedit.image import to_tensor
from minedit.methods import running
from minedit.methods.adapedit import AdapEditConfig
from minedit.methods.wordmaps import measure
from minedit.picturebook.training.judge_net import Judge, load_judge
from minedit.picturebook.world.captions import caption
from minedit.picturebook.world.draw import stream
from minedit.picturebook.world.factors import SIZES, Factors, colours, random_factors
from minedit.picturebook.world.looks import POSES
from minedit.sampling.loop import Run
from minedit.stack.tokens import align
from minedit.verbs.results import EditResult

TABLE = Path(__file__).with_suffix(".csv")
AGAINST = ("two passes, last step", "two passes, mean")
Pair = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--edits", type=int, default=10)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--model")
    args = parser.parse_args()
    args.edits = min(args.edits, args.pairs)
    sd = minedit.load(args.model)
    judge = load_judge(weights_folder() / "picturebook-judge.safetensors")
    ways = ways_of(args.steps)
    took, read = dict.fromkeys(ways, 0.0), {way: [0, 0, 0, 0] for way in ways}  # changed right, asked; kept, of
    off: dict[tuple[str, str], list[float]] = {(way, against): [] for way in ways for against in AGAINST}
    minedit.edit(sd, "a boy", "a girl", steps=2)  # the warm-up
    for seed in range(args.pairs):
        pair, before, after = changed(seed)
        tau = {}
        for way, (method, settings) in ways.items():
            if seed < args.edits:
                began = time.perf_counter()
                done = minedit.edit(sd, *pair, method, seed=seed, steps=args.steps, **settings)
                took[way] += time.perf_counter() - began
                tau[way] = [word.tau for word in done.words]
                read[way] = [a + b for a, b in zip(read[way], judged(judge, done, before, after), strict=True)]
            elif method == "adapedit":
                tau[way] = taus(sd, pair, seed, args.steps, settings)
        alignment = align(*(sd.tokenizer.encode(text) for text in pair))
        counted = [p.word for p in alignment.pairs if p.kind == "kept"]
        for way, against in off:
            off[way, against] += [abs(tau[way][i] - tau[against][i]) for i in counted] if way in tau else []
    told = {"date": date.today().isoformat(), "torch": torch.__version__, "model": args.model or "embedded"}
    told |= {"pairs": args.pairs, "edits": args.edits, "steps": args.steps}
    print(", ".join(f"{key} {value}" for key, value in told.items()))
    rows = []
    for way in ways:
        seconds, right, asked, kept, others = took[way] / max(1, args.edits), *read[way]
        row = {**told, "way": way, "seconds": f"{seconds:.3f}", "ratio": f"{took[way] / (took['p2p'] or 1):.3f}"}
        row |= {f"off from {a}": "" if way == "p2p" else f"{statistics.fmean(off[way, a]):.4f}" for a in AGAINST}
        row |= {"changed": f"{right}/{asked}", "kept": f"{kept}/{others}"}
        shown = " ".join(f"{row[f'off from {a}']:>8} from {a}" for a in AGAINST if way != "p2p")
        print(f"  {way:30}{row['seconds']:>8} s {row['ratio']:>7} x p2p   |Δτ| {shown:58} "
              f"changed {row['changed']:>6} kept {row['kept']:>7}")  # fmt: skip
        rows.append(row)
    append(TABLE, rows)


def ways_of(steps: int) -> dict[str, tuple[str, dict]]:
    """Name -> method and settings, of edits of `steps`."""
    return {
        "two passes, last step": ("adapedit", {"fwt_steps": steps}),
        "two passes, mean": ("adapedit", {"fwt_steps": steps, "statistics": "mean"}),
        "10 steps of statistics": ("adapedit", {"fwt_steps": 10}),
        "10 steps of statistics, mean": ("adapedit", {"fwt_steps": 10, "statistics": "mean"}),
        "one pass": ("adapedit", {"fwt": "one-pass"}),
        "p2p": ("p2p", {}),
    }


def taus(sd: Model, pair: Pair, seed: int, steps: int, settings: dict) -> list[float]:
    """τ of each target word by AdapEdit with these settings; without the edit, where that can be left out."""
    chosen, prompts = AdapEditConfig(**settings), [sd.tokenizer.encode(text) for text in pair]
    if chosen.one_pass:
        return [word.tau for word in minedit.edit(sd, *pair, seed=seed, steps=steps, settings=chosen).words]
    found = measure(sd, *prompts, seed, Run(steps), chosen)
    return [word.tau for word in running.plan(sd, *prompts, steps, chosen, found).words]


def judged(judge: Judge, done: EditResult, before: Factors, after: Factors) -> tuple[int, int, int, int]:
    """(the changed factor is as asked, 1, factors that stayed, of how many)."""
    images = torch.cat([to_tensor(image) for image in (done.source, done.edited)])
    names = ["subject", "place", "colour", "size", *(("count",) if after.still else ("pose", "time", "held"))]
    (factor,) = (name for name in names if getattr(before, name) != getattr(after, name))
    read = {name: judge.read(images, name) for name in names if getattr(after, name) is not None or name == "held"}
    kept = [source == edited for name, (source, edited) in read.items() if name != factor]
    return int(read[factor][1] == getattr(after, factor)), 1, sum(kept), len(kept)


def changed(seed: int) -> tuple[Pair, Factors, Factors]:
    """Two captions of one wording, and their factors, of which one changed: pose, colour, size, or count."""
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
            return pair, f, after


def said(f: Factors, factor: str, seed: int) -> str:
    return caption(f, random.Random(seed), frozenset({factor, "place", "count"})).text


if __name__ == "__main__":
    main()
