"""How long a call takes: warm, cold, as a recorded graph; and the memory that it takes beside its inputs.

Warm: the tensors lie in a cache as far as they fit. Cold: something larger than the last-level cache was written just
before. A figure is the median of measurements, taken until the standard error of their mean is under ERROR or time is
over; spread says how far apart they lie.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import profiler_legacy

from minedit.speed.graphs import cuda_graph

LEAST = 5e-3  # seconds that one measurement takes at least: a call alone may be shorter than its launch
ERROR = 0.01  # standard error / mean at which measuring ends
FEWEST = 5  # measurements of which an error is told
CALLS = 20  # in one graph

Work = Callable[[], object]


@dataclass(frozen=True)
class Seconds:
    """Of measurements of one call."""

    median: float
    spread: float  # interquartile range / median
    error: float  # standard error of the mean / mean
    runs: int
    least: float

    @classmethod
    def of(cls, took: list[float]) -> Seconds:
        low, median, high = statistics.quantiles(took, n=4, method="inclusive") if len(took) > 1 else took * 3
        return cls(median, (high - low) / median, _error(took), len(took), min(took))


def _error(took: list[float]) -> float:
    if len(took) < 2:
        return float("nan")
    return statistics.stdev(took) / len(took) ** 0.5 / statistics.fmean(took)


def repeated(measure: Callable[[], float], repeats: int | None, limit: float) -> Seconds:
    """`repeats` measurements; None: as many as ERROR asks for, within `limit` seconds."""
    took, began = [measure()], time.perf_counter()
    while len(took) < repeats if repeats else len(took) < FEWEST or not _error(took) < ERROR:
        if not repeats and time.perf_counter() - began > limit:
            break
        took.append(measure())
    return Seconds.of(took)


def warm(work: Work, device: torch.device, repeats: int | None, limit: float, quick: bool = False) -> Seconds:
    """One `work()`; each measurement is the mean of as many calls as fill LEAST."""
    for _ in range(1 if quick else 3):
        once = elapsed(work, 1, device)
    calls = 1 if quick else max(1, min(100, round(LEAST / max(once, 1e-6))))
    return repeated(lambda: elapsed(work, calls, device) / calls, repeats, limit)


def cold(work: Work, device: torch.device, repeats: int | None, limit: float) -> Seconds:
    """One `work()` at a time, each after a flush of the caches."""
    dust = _dust(device)

    def measure() -> float:
        dust.add_(1)
        if device.type == "mps":
            torch.mps.synchronize()
        return elapsed(work, 1, device)

    measure()
    return repeated(measure, repeats, limit)


def graph(work: Work, device: torch.device, repeats: int | None, limit: float) -> Seconds | None:
    """One `work()` of those recorded together in a CUDA graph: no launches by Python. None where it cannot be."""
    if device.type != "cuda":
        return None
    with suppress(RuntimeError):  # it waits for the GPU, or reads a number back
        replay = replayed(work, device)
        replay()
        return repeated(lambda: elapsed(replay, 1, device) / CALLS, repeats, limit)
    torch.cuda.synchronize(device)
    return None


def replayed(work: Work, device: torch.device) -> Callable[[], None]:
    """CALLS of `work` as one CUDA graph. Raises RuntimeError where it cannot be recorded."""

    def calls() -> None:
        for _ in range(CALLS):
            work()

    with torch.cuda.device(device):
        return cuda_graph(calls)[0]


def peak(work: Work, device: torch.device) -> int | None:
    """Bytes that a call has at most at a time beside what is there already, its result among them; None on MPS."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        found = work()
        del found
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    return _held(work)


def _held(work: Work) -> int:
    """`peak` on a CPU, by torch's older profiler: the newer one writes to the terminal."""
    recorder = profiler_legacy.profile(profile_memory=True)
    recorder._start_trace()
    try:
        found = work()
        del found
    finally:
        threads = torch.autograd._disable_profiler_legacy()
    records = [record for thread in threads for record in thread]
    start = next(record for record in records if record.name() == "__start_profile")
    taken = [record for record in records if record.kind() == "memory_alloc"]
    taken.sort(key=start.cpu_elapsed_us)
    return max(accumulate((record.cpu_memory_usage() for record in taken), initial=0))


def elapsed(work: Work, calls: int, device: torch.device) -> float:
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


@lru_cache(maxsize=2)
def _dust(device: torch.device) -> Tensor:
    """Twice the last-level cache, to be written."""
    with torch.inference_mode(False):  # it serves outside, too
        return torch.zeros(2 * _cache(device), dtype=torch.uint8, device=device)


def _cache(device: torch.device) -> int:
    """Bytes of the last-level cache; 64 MiB where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    known = [int(size[:-1]) << {"K": 10, "M": 20, "G": 30}[size[-1]] for size in sizes if size[-1:] in "KMG"]
    return max(known, default=64 << 20)
