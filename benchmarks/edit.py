"""How long an edit takes: every method on one prompt pair, and two plain pictures of the same run to compare with.

    python benchmarks/edit.py [--model PATH] [--device cuda] [--dtype float16] [--repeats 5] [--threads 1]

All works in turn, `repeats` times after a warm-up; prints medians and appends a row for each to benchmarks/edit.csv. At
one thread of a CPU seconds are those that the process computed, which other programs lengthen little. InstructPix2Pix
is the embedded variant, and edits the source picture as a photograph, which is not drawn in its time.
"""

import argparse
import platform
import statistics
import time
from datetime import date
from functools import partial
from pathlib import Path

import torch
from table import append

import minedit
from minedit.methods.choose import METHODS

SOURCE, TARGET = "a boy in the park", "a sitting boy in the park"
TABLE = Path(__file__).with_suffix(".csv")


def seconds(work, device: torch.device) -> float:
    """Duration of `work()`."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sd = minedit.load(args.model, args.device, args.dtype, args.attention)
    name = (
        torch.cuda.get_device_name(sd.device)
        if sd.device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    side = sd.config.image_size
    told = {"date": date.today().isoformat(), "device": f"{name}, {torch.get_num_threads()} threads"}
    told |= {"python": platform.python_version(), "torch": torch.__version__, "dtype": args.dtype}
    told |= {"model": sd.config.name, "image": f"{side}x{side}", "steps": args.steps, "attention": sd.attend.__name__}
    print(", ".join(f"{key} {value}" for key, value in told.items()))

    pair = [SOURCE, TARGET]
    works = {"two pictures": lambda: minedit.generate(sd, pair, steps=args.steps)}
    for method in METHODS:
        model, more = sd, {}
        if method == "instruct-pix2pix":
            if args.model:
                continue
            model = minedit.load(method, args.device, args.dtype, args.attention)
            more = {"image": minedit.generate(sd, [SOURCE], steps=args.steps).images[0]}
        works[method] = partial(minedit.edit, model, *pair, method, steps=args.steps, **more)
    every = [{work: seconds(run, sd.device) for work, run in works.items()} for _ in range(args.repeats + 1)]
    took = {work: statistics.median(each[work] for each in every[1:]) for work in works}
    rows = [
        {**told, "work": work, "seconds": f"{time:.3f}", "ratio": f"{time / took['two pictures']:.3f}"}
        for work, time in took.items()
    ]
    for row in rows:
        print(f"{row['work']:16} {row['seconds']:>8} s  {row['ratio']:>6} x two pictures")
    append(TABLE, rows)


if __name__ == "__main__":
    main()
