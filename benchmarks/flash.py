"""Self-attention of SD-v1's 64 x 64 pixels, heads of width 40: torch's kernels beside launches of our flash kernel.

    python benchmarks/flash.py [--seconds 60] [--workers 14] [--out DIR] [--tiny]

Launches are compiled in processes beforehand, checked against float32 math within twice eager's error, and timed as 20
calls in a CUDA graph; in float16 all, in bfloat16 the fastest. Prints a table a shape, sorted by time; all goes to
DIR/flash.csv. One that does not compile or launch is told so and skipped. --tiny rehearses it anywhere.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

if "--tiny" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
import torch.nn.functional as F
import triton
from tiles import compiled_ahead, microseconds, told
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from minedit.attention import flash as kernels
from minedit.attention.eager import eager

Sizes = dict[str, int]
Shape = tuple[int, int, int, int]  # B, H, N, D
SHAPES = ((4, 8, 4096, 40), (2, 8, 4096, 40))
TINY = ((2, 1, 150, 40),)
BEST = 6  # launches that are timed in every shape and dtype, not only in the first
WIDTHS = ((64, 0, 64, 0), (64, 0, 32, 16), (32, 16, 64, 0), (32, 16, 32, 16))  # BD, BE, VD, VE
BLOCKS = ((128, 64, 8), (128, 128, 8), (64, 64, 4), (64, 128, 4), (256, 64, 8), (256, 64, 16), (128, 64, 4),
          (128, 32, 8), (256, 32, 16))  # BM, BN, warps  # fmt: skip
TORCH = {"default": None, "cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def candidates() -> Iterator[Sizes]:
    """The default first, then each that makes sense, those without polynomials before the others."""
    first = kernels.shape(4096, 40, 4096)
    yield first
    every = itertools.product((0,), BLOCKS, WIDTHS, (3,))
    staged = itertools.product((0,), BLOCKS[:2], WIDTHS[:2], (2, 4))
    soft_ones = itertools.product((1,), BLOCKS[:4], WIDTHS[:2], (3,))
    for soft, (bm, bn, warps), widths, stages in itertools.chain(every, staged, soft_ones):
        sizes = {"BM": bm, "BN": bn, **dict(zip(("BD", "BE", "VD", "VE"), widths, strict=True))}
        sizes |= {"SOFT": soft, "STAGES": stages, "num_warps": warps}
        if sizes != first:
            yield sizes


def tensors(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """q, k, v as a layer hands them: heads are a view of the channels."""
    b, h, n, d = shape
    made = torch.Generator(device).manual_seed(0)
    flat = (torch.randn(b, n, h * d, generator=made, device=device) for _ in range(3))
    return tuple(x.to(dtype).unflatten(-1, (h, d)).transpose(1, 2) for x in flat)


def with_sizes(sizes: Sizes) -> mock._patch:
    """`kernels.attend` with these tiles; launches made with others are forgotten."""
    kernels._launches.cache_clear()
    return mock.patch.object(kernels, "shape", lambda *_: dict(sizes))


def compiled(sizes: Sizes) -> str:
    """Fill Triton's cache on disk, in a process of its own. Returns a fault or nothing."""
    try:
        with with_sizes(sizes):
            kernels.attend(*tensors((1, 8, 4096, 40), torch.float16, "cuda"))
        torch.cuda.synchronize()
    except Exception as error:  # out of shared memory, or whatever a compiler has to say
        return told(error)
    return ""


def by_torch(q: Tensor, k: Tensor, v: Tensor, chosen: SDPBackend | None) -> Tensor:
    if chosen is None:
        return F.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(chosen):
        return F.scaled_dot_product_attention(q, k, v)


def timed(work: Callable[[], Tensor], exact: Tensor, allowed: float, tiny: bool) -> dict:
    """us, error in units of eager's, and a fault or nothing."""
    us = ratio = float("nan")
    try:
        ratio = ((work().float() - exact).abs().max() / allowed).item()
        if not ratio <= 2:
            return {"us": us, "error": round(ratio, 2), "fault": "error above twice eager's"}
        us = microseconds(work, tiny)
    except Exception as error:
        return {"us": us, "error": ratio, "fault": told(error)}
    return {"us": round(us, 2), "error": round(ratio, 2), "fault": ""}


def measured(shape: Shape, dtype: torch.dtype, jobs: list[Sizes], args: argparse.Namespace, until: float) -> list[dict]:
    """A row for each of torch's kernels and each launch, until time is over."""
    q, k, v = tensors(shape, dtype, "cpu" if args.tiny else "cuda")
    exact = torch.cat([eager(*(x[i : i + 1].float() for x in (q, k, v))) for i in range(shape[0])])
    allowed = (eager(q[:1], k[:1], v[:1]).float() - exact[:1]).abs().max()
    where = {"shape": "x".join(map(str, shape)), "dtype": str(dtype).removeprefix("torch.")}
    rows = []
    for name, chosen in TORCH.items():
        found = timed(partial(by_torch, q, k, v, chosen), exact, float("inf"), args.tiny)  # it is the yardstick
        error = float("nan") if found["fault"] else ((by_torch(q, k, v, chosen).float() - exact).abs().max() / allowed)
        rows.append(where | {"what": f"torch {name}"} | found | {"error": round(float(error), 2)})
    best = min((row["us"] for row in rows if row["us"] == row["us"]), default=float("nan"))
    for sizes in jobs:
        if time.perf_counter() > until:
            print("out of time: the launches left were not tried")
            break
        with with_sizes(sizes):
            found = timed(partial(kernels.attend, q, k, v), exact, allowed, args.tiny)
        what = " ".join(f"{name} {value}" for name, value in sizes.items())
        rows.append(where | {"what": what} | found | {"sizes": sizes})
    return [row | {"of_torch": round(row["us"] / best, 3)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="start nothing after this long")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    began = time.perf_counter()
    if not (args.tiny or torch.cuda.is_available()):
        print("skipped: torch finds no CUDA GPU here")
        return
    jobs, rows, until = list(candidates()), [], began + args.seconds
    if args.tiny:
        jobs = jobs[:3]
    else:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}", flush=True)
        faults = compiled_ahead(compiled, [(sizes,) for sizes in jobs], args.workers, began + args.seconds * 0.55)
        print(f"{len(faults)} of {len(jobs)} launches compiled after {time.perf_counter() - began:.0f} s", flush=True)
        for i, fault in faults.items():
            if fault:
                print(f"  {jobs[i]}: {fault}")
        jobs = [sizes for i, sizes in enumerate(jobs) if faults.get(i) == ""]
    with torch.inference_mode():
        for dtype, shape in itertools.product((torch.float16, torch.bfloat16), TINY if args.tiny else SHAPES):
            rows += report(measured(shape, dtype, jobs, args, until), rows, args.out / "flash.csv")
            right = sorted((row["us"], i) for i, row in enumerate(rows) if "sizes" in row and not row["fault"])
            if len(jobs) > BEST:
                jobs = [rows[i]["sizes"] for _, i in right[:BEST]]
    print(f"{time.perf_counter() - began:.0f} s")


def report(new: list[dict], before: list[dict], path: Path) -> list[dict]:
    """Prints a table of the new rows, writes a CSV of all. Returns the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("shape", "dtype", "what", "us", "of_torch", "error", "fault")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*before, *new])
    print(f"\n{new[0]['shape']} {new[0]['dtype']}  (of_torch: of torch's fastest; error: of eager's)")
    for row in sorted(new, key=lambda row: (row["us"] != row["us"], row["us"])):
        print(f"  {row['us']:>9} us {row['of_torch']:>6} {row['error']:>6}  {row['what']}  {row['fault']}", flush=True)
    return new


if __name__ == "__main__":
    main()
