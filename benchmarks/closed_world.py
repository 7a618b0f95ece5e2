"""Edits of the closed world by several methods, scored by the judge: S, P, O, S·P, identity, with 95 % intervals.

    python benchmarks/closed_world.py --split tune --methods adapedit,p2p:cross_steps=0.6 [--limit 5] [--steps 50]

A method is its name, or its name and settings: name:setting=value:setting=value. All methods that are asked for edit a
pair in one batch, so `seconds`, the batch's divided by the edits in it, is a method's own only with --alone. Pairs come
one of each kind after the other: a run that --seconds ends has as many of each.
Three frames are methods, too: "copy" gives back the source, "fixed-seed" is the target's prompt from the same noise,
"re-render" is the renderer's source and counterfactual, both through the autoencoder. What the judge read goes to
--kept, a line per method and pair, and is not made again; the table's rows go to --out (benchmarks/closed_world.csv).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from datetime import date
from pathlib import Path

import torch
from table import append
from tqdm import tqdm

import minedit
from minedit.files.checkpoint import Model, weights_folder
from minedit.image import to_pil
from minedit.picturebook.score import Reading, Score, mean, read, rendered, scored, through
from minedit.picturebook.training.fit import fingerprint
from minedit.picturebook.training.train_judge import Judge, load_judge
from minedit.picturebook.world.edits import KINDS, SPLITS, Pair, pairs

FIGURES = ("s", "p", "o", "sp", "identity")
FRAMES = ("copy", "re-render")  # made here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=tuple(SPLITS), default="tune")
    parser.add_argument("--methods", default="copy,fixed-seed,re-render,p2p,adapedit")
    parser.add_argument("--limit", type=int, help="pairs of each kind")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--alone", action="store_true", help="each method by itself")
    parser.add_argument("--seconds", type=float, help="begin no pair after this long, and make no table")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--kept", type=Path, default=Path("out/closed_world.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sd = minedit.load(args.model, device=args.device, fast=args.fast)
    judge = load_judge(weights_folder() / "picturebook-judge.safetensors")
    made = {"model": sd.weights or fingerprint(sd.unet), "judge": fingerprint(judge)}
    made |= {"steps": args.steps, "guidance": args.guidance}
    specs = list(dict.fromkeys(args.methods.split(",")))
    for spec in specs:
        target(spec, "")
    args.kept.parent.mkdir(parents=True, exist_ok=True)
    done = before(args.kept, made)
    picked, seen = [], Counter()
    for pair in pairs(args.split):
        seen[pair.kind] += 1
        if args.limit is None or seen[pair.kind] <= args.limit:
            picked.append(pair)
    picked.sort(key=lambda pair: int(pair.id.rsplit("-", 1)[1]))
    began = time.monotonic()
    with args.kept.open("a", encoding="utf-8") as file:
        for pair in tqdm(picked, mininterval=10):
            if args.seconds and time.monotonic() - began > args.seconds:
                return
            missing = [spec for spec in specs if (spec, pair.id) not in done]
            for some in ([spec] for spec in missing) if args.alone else filter(None, [missing]):
                for row in edited(sd, judge, pair, some, args.steps, args.guidance):
                    done[row["method"], pair.id] = row
                    print(json.dumps({**made, **row}), file=file, flush=True)
    told = {"date": date.today().isoformat(), "torch": torch.__version__, "threads": args.threads, **made}
    rows = [row for spec in specs for row in table(spec, picked, done)]
    print(f"{'method':32}{'kind':10}{'pairs':>5}", *(f"{name.upper():>21}" for name in FIGURES), "s/edit")
    for row in rows:
        shares = (f"{row[name]:>6} [{row[f'{name}_low']:>5}, {row[f'{name}_high']:>5}]" for name in FIGURES)
        print(f"{row['method']:32}{row['kind']:10}{row['pairs']:>5}", *shares, f"{row['seconds']:>6}")
    append(args.out, [{**told, "split": args.split, **row} for row in rows])


def target(spec: str, prompt: str) -> dict[str, object]:
    """What `minedit.edits` takes for a method as the command line says it."""
    name, *said = spec.split(":")
    if name not in (*minedit.METHODS, *FRAMES):
        raise SystemExit(f"no method {name}; expected one of {', '.join((*minedit.METHODS, *FRAMES))}")
    own = {}
    for each in said:
        setting, equals, value = each.partition("=")
        if not equals:
            raise SystemExit(f"{each} in {spec}: expected setting=value")
        try:
            own[setting] = json.loads(value)
        except ValueError:
            own[setting] = value  # a text
    return {"target": prompt, "method": name, **own}


def before(file: Path, made: dict[str, object]) -> dict[tuple[str, str], dict]:
    """Rows (method, pair) → what was read, of earlier calls with the same model, judge and steps."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be torn
    return {(row["method"], row["pair"]): row for row in rows if made.items() <= row.items()}


def edited(sd: Model, judge: Judge, pair: Pair, specs: list[str], steps: int, guidance: float) -> list[dict]:
    """A row for each method: what the judge reads off source and edit of a pair, and the seconds they took."""
    found: dict[str, tuple[Reading, Reading, float]] = {}
    drawn = [spec for spec in specs if spec not in FRAMES]
    began = time.perf_counter()
    if "re-render" in specs:
        source, edit = read(judge, to_pil(through(sd, rendered(pair, sd.config.image_size))))
        found["re-render"] = source, edit, time.perf_counter() - began
    how = {"seed": pair.seed, "steps": steps, "guidance": guidance}
    if drawn:
        began = time.perf_counter()
        results = minedit.edits(sd, pair.source, [target(spec, pair.target) for spec in drawn], **how)
        seconds = (time.perf_counter() - began) / len(drawn)
        for spec, each in zip(drawn, results, strict=True):
            found[spec] = *read(judge, [each.source, each.edited]), seconds
    if "copy" in specs:
        began = time.perf_counter()
        source = found[drawn[0]][0] if drawn else read(judge, minedit.generate(sd, [pair.source], **how).images)[0]
        found["copy"] = source, source, time.perf_counter() - began
    return [
        {"method": spec, "pair": pair.id, "source": found[spec][0], "edit": found[spec][1], "seconds": found[spec][2]}
        for spec in specs
    ]


def table(spec: str, picked: list[Pair], done: dict[tuple[str, str], dict]) -> list[dict]:
    """A row for each kind of edit by a method, and one for all."""
    rows = []
    for kind in (*KINDS, "all"):
        own = [pair for pair in picked if kind in (pair.kind, "all")]
        kept = [done[spec, pair.id] for pair in own]
        scores: list[Score] = [scored(p, row["source"], row["edit"]) for p, row in zip(own, kept, strict=True)]
        row = {"method": spec, "kind": kind, "pairs": len(own)}
        for name in FIGURES:
            at, low, high, asked = mean([getattr(score, name) for score in scores])
            for ending, value in (("", at), ("_low", low), ("_high", high)):
                row[name + ending] = f"{value:.3f}" if asked else ""  # of things nobody's identity
        rows.append(row | {"seconds": f"{sum(row['seconds'] for row in kept) / len(own):.2f}"})
    return rows


if __name__ == "__main__":
    main()
