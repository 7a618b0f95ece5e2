"""How long a call takes, and how long it would at the least: the roofline.

    of ceiling = max(bytes / bandwidth, flops / peak) / time        1: as fast as the device can be

bandwidth and peak are measured on the device, in the dtype: a large copy, a large matrix product. bytes: q, k, v and
out once, columns where asked for; each edit adds its source's q and k, R and gate. flops: 4BHNTD; each edit adds 4HNTD.
More than 1 means that the tensors stayed in a cache. The softmax itself is not counted: narrow heads stay below 1.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minedit.attention.rules import Attend
from minedit.lab.cases import Case

LEAST = 5e-3  # seconds that one measurement takes at least: a call alone may be shorter than its launch


@dataclass(frozen=True)
class Ceiling:
    """What the device can do in one dtype."""

    bandwidth: float  # bytes/s, read and written
    flops: float  # flop/s

    def __str__(self) -> str:
        return f"max(bytes / {self.bandwidth / 1e9:.4g} GB/s, flops / {self.flops / 1e9:.4g} GFLOP/s) / time"


@dataclass(frozen=True)
class Timing:
    ms: float  # the median
    gb_s: float  # bytes / time
    of_ceiling: float


def ceiling(device: torch.device, dtype: torch.dtype, quick: bool = False) -> Ceiling:
    """The fastest of a few large copies and matrix products; quick: of small ones, which says little."""
    side, size = (128, 2**18) if quick else (4096, 2**28) if device.type == "cuda" else (1024, 2**27)
    a = torch.randn(side, side, device=device).to(dtype)
    x = torch.zeros(size, dtype=torch.uint8, device=device)
    y = torch.zeros_like(x)
    copy, product = (min(seconds(work, device, 5, quick)) for work in (lambda: y.copy_(x), lambda: a @ a))
    return Ceiling(2 * size / copy, 2 * side**3 / product)


def timing(attend: Attend, case: Case, columns: bool, top: Ceiling, repeats: int, quick: bool = False) -> Timing:
    """The median time of a call. columns: whether it asks for them."""
    asked = {"columns": True} if columns else {}
    work = lambda: attend(case.q, case.k, case.v, case.rule, **asked)  # noqa: E731
    took = statistics.median(seconds(work, case.q.device, repeats, quick))
    moved, flops = traffic(case, columns)
    return Timing(took * 1e3, moved / took / 1e9, max(moved / top.bandwidth, flops / top.flops) / took)


def traffic(case: Case, columns: bool) -> tuple[int, int]:
    """(bytes, flops) of a function that shares nothing between rows."""
    shape, edits = case.shape, case.rule.edits if case.rule else ()
    B, H, N, T, D = shape.B, shape.H, shape.N, shape.T, shape.D
    moved = case.q.element_size() * H * (N + T) * D * (2 * B + len(edits))  # q and out, k and v; an edit's q and k
    moved += 4 * B * N * T * columns
    moved += sum(4 * x.numel() for edit in edits for x in (edit.columns, edit.gate) if x is not None)
    return moved, 4 * H * N * T * D * (B + len(edits))


def seconds(work: Callable[[], object], device: torch.device, repeats: int, quick: bool = False) -> list[float]:
    """Duration of one `work()`, `repeats` times after a warm-up, each the mean of as many calls as fill LEAST."""
    for _ in range(1 if quick else 3):
        once = _elapsed(work, 1, device)
    calls = 1 if quick else max(1, min(100, round(LEAST / max(once, 1e-6))))
    return [_elapsed(work, calls, device) / calls for _ in range(repeats)]


def _elapsed(work: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds of `calls` calls: CUDA's own clock there, else the CPU's."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            work()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1e3
    began = time.perf_counter()
    for _ in range(calls):
        work()
    if device.type == "mps":
        torch.mps.synchronize()
    return max(time.perf_counter() - began, 1e-9)
