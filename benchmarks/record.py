"""What recording costs: `python benchmarks/record.py [--device cuda --fast]`. Rows go to benchmarks/record.csv.

An edit by Prompt-to-Prompt of the embedded model, as it is and with a tape of several sizes, the median of some runs
after one to warm up; whether a bit of the edit changed; and what the test of an attention layer without a tape takes.
"""

import argparse
import csv
import platform
import statistics
import time
import timeit
from contextlib import nullcontext
from pathlib import Path

import torch

import minedit
from minedit.attention.rules import Attn

PAIR = "a boy in the park", "a sitting boy in the park"
STEPS, RUNS = 20, 5
TAPES = {
    "off": None,
    "latents": {"names": ["x_t", "eps*", "x0"]},
    "a word's columns, mid and up": {"names": ["middle_block.*.attn2.columns", "output_blocks.*.attn2.columns"],
                                     "words": ["boy"], "rows": "cond"},
    "all cross-attention columns": {"names": "*.attn2.columns"},
    "columns before and after, q, k, v, heads": {"names": ["*.attn2.columns*", "*.attn2.[qkv]", "*.attn2.heads"]},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_name("record.csv"))
    args = parser.parse_args()
    sd = minedit.load(device=args.device, fast=args.fast)
    cuda = sd.device.type == "cuda"
    name = (
        torch.cuda.get_device_name() if cuda else f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} threads"
    )
    test = min(timeit.repeat("attn.tap is not None", globals={"attn": Attn()}, number=10**6, repeat=5)) / 10**6
    layers = len(sd.unet.sites)
    print(f"{name}, torch {torch.__version__}, {STEPS} steps, fast {args.fast}")
    seconds, sizes, same, plain = {tape: [] for tape in TAPES}, {}, {}, None
    for _ in range(RUNS + 1):  # in turn, so that what else runs meanwhile slows all alike
        for tape, chosen in TAPES.items():
            with minedit.recorded(sd, **chosen, budget=None) if chosen else nullcontext() as found:
                began = time.perf_counter()
                res = minedit.edit(sd, *PAIR, "p2p", steps=STEPS)
                seconds[tape].append(time.perf_counter() - began)
            plain = plain or res
            pairs = (res.source_latent, plain.source_latent), (res.edited_latent, plain.edited_latent)
            same[tape] = same.get(tape, True) and all(torch.equal(*pair) for pair in pairs)
            sizes[tape] = sum(found[each].tensor.nbytes for each in found) if chosen else 0
    rows, known = [], {"device": name, "torch": torch.__version__, "fast": args.fast, "steps": STEPS}
    for tape in TAPES:
        median = round(statistics.median(seconds[tape][1:]), 3)
        rows.append({**known, "tape": tape, "seconds": median, "bytes": sizes[tape], "same bits": same[tape]})
        print("  {tape:42} {seconds:7.3f} s  {bytes:12,} bytes  same bits: {same bits}".format(**rows[-1]))
    off = rows[0]["seconds"]
    share = test * layers * STEPS / off
    print(f"  off: {test * 1e9:.0f} ns a layer, {layers} layers a step: {share:.1e} of the edit")
    new = not args.csv.exists()
    with args.csv.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
