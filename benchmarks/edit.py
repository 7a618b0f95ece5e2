"""How long an edit takes: every method on one prompt pair, and two plain pictures of the same run to compare with.

    python benchmarks/edit.py [--model PATH] [--device cuda] [--dtype float16] [--repeats 5]

Prints the median of synchronised runs after a warm-up and appends a row for each to benchmarks/edit.csv.
"""

import argparse
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch
from table import append

import minedit
from minedit.methods.choose import METHODS

SOURCE, TARGET = "a boy in the park", "a sitting boy in the park"
TABLE = Path(__file__).with_suffix(".csv")


def seconds(work, device: torch.device, repeats: int) -> float:
    """Median duration of `work()`."""
    took = []
    for repeat in range(repeats + 1):  # the first is the warm-up
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat:
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
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
        works[method] = lambda method=method: minedit.edit(sd, *pair, method, steps=args.steps)
    took = {work: seconds(run, sd.device, args.repeats) for work, run in works.items()}
    rows = [
        {**told, "work": work, "seconds": f"{time:.3f}", "ratio": f"{time / took['two pictures']:.3f}"}
        for work, time in took.items()
    ]
    for row in rows:
        print(f"{row['work']:13} {row['seconds']:>8} s  {row['ratio']:>6} x two pictures")
    append(TABLE, rows)


if __name__ == "__main__":
    main()
