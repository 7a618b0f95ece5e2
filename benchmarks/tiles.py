"""The fused kernel's launches, tried one by one on this GPU: which tiles are the fastest for SD-v1.4's shapes?

    python benchmarks/tiles.py [--seconds 50] [--workers 12] [--out DIR] [--tiny]

Candidates are compiled in processes beforehand, then checked against float64 within the lab's limit, and timed as 20
calls in a CUDA graph. Prints a table a shape, sorted by time, and the winners as code to paste into triton.shape(); all
goes to DIR/tiles.csv. One that does not compile or launch is told so and skipped. --tiny rehearses it anywhere.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from unittest import mock

if "--tiny" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
import torch.nn.functional as F
import triton

from minedit.attention import triton as kernels
from minedit.lab.cases import Case, Shape, cases
from minedit.lab.check import answers, judge
from minedit.lab.clock import CALLS, elapsed, repeated, replayed

Sizes = dict[str, int]
CROSS = tuple(
    Shape("cross", b, 8, n, 77, d) for b in (4, 2) for n, d in ((4096, 40), (1024, 80), (256, 160), (64, 160))
)
TINY = (Shape("cross", 4, 1, 40, 77, 40), Shape("cross", 2, 1, 16, 77, 24))


def candidates(shape: Shape) -> Iterator[Sizes]:
    """The default first, then each that makes sense for the shape."""
    first = kernels.shape(shape.N, shape.D, shape.T, torch.float16)
    yield first
    widths = {40: ((64, 0), (32, 16)), 80: ((64, 16), (128, 0)), 160: ((128, 32),)}.get(shape.D, ((32, 0),))
    pixels = [bn for bn in (16, 32, 64, 128) if bn <= shape.N and (bn >= 64 or shape.N <= 256)]
    tiles = [count for count in (1, 2, 4, 8) if count == 1 or shape.N // count >= 512]
    for bn, (bd, be), count, warps in itertools.product(pixels, widths, tiles, (4, 8)):
        if bn * 2 < 16 * warps:
            continue
        for stages in (1, 2) if count > 1 else (1,):  # without a loop there is nothing to overlap
            sizes = first | {"BN": bn, "BD": bd, "BE": be, "TILES": count, "num_warps": warps, "num_stages": stages}
            if sizes != first:
                yield sizes


def case_of(shape: Shape, rule: str, device: str) -> Case:
    (case,) = cases(shape, [rule], torch.float16, device)
    return case


def with_sizes(sizes: Sizes) -> mock._patch:
    """`kernels.attend` with these tiles; launches made with others are forgotten."""
    kernels._launches.cache_clear()
    return mock.patch.object(kernels, "shape", lambda *_: dict(sizes))


def compiled(shape: Shape, rule: str, sizes: Sizes) -> str:
    """Fill Triton's cache on disk, in a process of its own. Returns a fault or nothing."""
    try:
        case = case_of(Shape("cross", shape.B, shape.H, shape.N, shape.T, shape.D), rule, "cuda")
        with with_sizes(sizes):
            kernels.attend(case.q, case.k, case.v, case.rule)
        torch.cuda.synchronize()
    except Exception as error:  # out of shared memory, or whatever a compiler has to say
        return told(error)
    return ""


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}" if str(error) else type(error).__name__


def microseconds(work: Callable[[], object], tiny: bool) -> float:
    """One call of a graph of CALLS, the median of five."""
    if tiny:
        return elapsed(work, 1, torch.device("cpu")) * 1e6
    here = torch.device("cuda")
    replay = replayed(work, here)
    replay()
    return repeated(lambda: elapsed(replay, 1, here), 5, 0).median * 1e6 / CALLS


def tried(case: Case, expected: tuple, sizes: Sizes, tiny: bool) -> tuple[float, str]:
    """(microseconds, a fault or nothing)."""
    try:
        with with_sizes(sizes):
            found = judge(kernels.attend, case, expected, explain=False)
            if found.status != "right":
                return float("nan"), f"{found.status}: {found.report[0][:90]}"
            return microseconds(lambda: kernels.attend(case.q, case.k, case.v, case.rule), tiny), ""
    except Exception as error:
        return float("nan"), told(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=50, help="start no candidate after this long")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    began, tiny = time.perf_counter(), args.tiny
    if not (tiny or torch.cuda.is_available()):
        print("skipped: torch finds no CUDA GPU here")
        return
    device = "cpu" if tiny else "cuda"
    # the default of every shape and rule first, so that a run that is cut short has compared something everywhere
    jobs = [
        (place, shape, rule, sizes)
        for shape in (TINY if tiny else CROSS)
        for rule in (("plain", "dps") if shape.B == 4 else ("plain",))
        for place, sizes in enumerate(itertools.islice(candidates(shape), 2 if tiny else None))
    ]
    jobs.sort(key=lambda job: job[0])
    faults = {}
    if not tiny:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}", flush=True)
        faults = compiled_ahead(compiled, [job[1:] for job in jobs], args.workers, began + args.seconds * 0.6)
        print(f"{len(faults)} of {len(jobs)} candidates compiled after {time.perf_counter() - began:.0f} s", flush=True)
    rows, known = [], {}
    for i, (_, shape, rule, sizes) in enumerate(jobs):
        if time.perf_counter() - began > args.seconds:
            print("out of time: the candidates left were not tried")
            break
        if not tiny and i not in faults:
            continue
        if (shape, rule) not in known:
            case = case_of(Shape(*list(vars(shape).values())[:6], columns=False), rule, device)
            plain = microseconds(lambda: F.scaled_dot_product_attention(case.q, case.k, case.v), tiny)  # noqa: B023
            known[shape, rule] = case, answers(case), plain
        case, expected, plain = known[shape, rule]
        us, fault = (float("nan"), faults[i]) if faults.get(i) else tried(case, expected, sizes, tiny)
        row = {"shape": str(shape), "rule": rule, **sizes, "us": round(us, 2), "of_plain": round(us / plain, 3)}
        rows.append(row | {"fault": fault})
    report(rows, args.out / "tiles.csv")
    print(f"{time.perf_counter() - began:.0f} s")


def compiled_ahead(compiled: Callable[..., str], jobs: Sequence[tuple], workers: int, until: float) -> dict[int, str]:
    """What `compiled` says of each job, its arguments, that was compiled in time: a fault or nothing."""
    found = {}
    pool = ProcessPoolExecutor(workers, mp_context=torch.multiprocessing.get_context("spawn"))
    futures = {pool.submit(compiled, *job): i for i, job in enumerate(jobs)}
    try:
        for future in as_completed(futures, timeout=max(1, until - time.perf_counter())):
            found[futures[future]] = str(future.exception() or future.result())
    except TimeoutError:
        pass
    for process in list(pool._processes.values()):  # one that hangs in a compiler must not hold up the rest
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)
    return found


def report(rows: list[dict], path: Path) -> None:
    """A table for each shape and rule, the best of each as code, and a CSV of all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not rows:
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    best = []
    for kind in dict.fromkeys((row["shape"], row["rule"]) for row in rows):
        mine = sorted((r for r in rows if (r["shape"], r["rule"]) == kind), key=lambda r: (r["us"] != r["us"], r["us"]))
        print("\n" + ", ".join(kind), "  (of_plain: of torch's call, as long)")
        for row in mine[:8] + [row for row in mine[8:] if row["fault"]]:
            print("  ", *(f"{name} {value}" for name, value in row.items() if name not in ("shape", "rule")))
        if mine[0]["us"] == mine[0]["us"]:
            best.append((kind, {name: mine[0][name] for name in list(mine[0])[2:-3]}))
    print("\nwinners, for triton.shape():")
    for kind, sizes in best:
        print(f"    {kind}: {sizes},")


if __name__ == "__main__":
    main()
