"""How long a call takes, and how long it would at the least: the roofline.

    of ceiling = max(bytes / bandwidth, flops / peak) / time        1: as fast as the device can be

bandwidth and peak are measured on the device, in the dtype: a large copy, a large matrix product. bytes: q, k, v and
out once, columns where asked for; each edit adds its source's q and k, R and gate. flops: 4BHNTD; each edit adds 4HNTD.
More than 1 means that the tensors stayed in a cache. The softmax itself is not counted: narrow heads stay below 1.
"""

import math
from dataclasses import dataclass

import torch

from minedit.attention.rules import Attend
from minedit.lab import clock
from minedit.lab.cases import Case


@dataclass(frozen=True)
class Ceiling:
    """What the device can do in one dtype."""

    bandwidth: float  # bytes/s, read and written
    flops: float  # flop/s

    def __str__(self) -> str:
        return f"max(bytes / {self.bandwidth / 1e9:.4g} GB/s, flops / {self.flops / 1e9:.4g} GFLOP/s) / time"


@dataclass(frozen=True)
class Timing:
    """Numbers of one row; nan where there is none."""

    ms: float  # the median, warm
    gb_s: float  # bytes / time
    of_ceiling: float
    spread: float  # interquartile range / median
    stderr: float  # of the mean / mean
    runs: int
    cold_ms: float
    graph_ms: float  # of a call in a recorded graph
    peak_mb: float  # 1e6 bytes beside the inputs


def ceiling(device: torch.device, dtype: torch.dtype, quick: bool = False) -> Ceiling:
    """The fastest of a few large copies and matrix products; quick: of small ones, which says little."""
    side, size = (128, 2**18) if quick else (4096, 2**28) if device.type == "cuda" else (1024, 2**27)
    a = torch.randn(side, side, device=device).to(dtype)
    x = torch.zeros(size, dtype=torch.uint8, device=device)
    y = torch.zeros_like(x)
    copy, product = (clock.warm(work, device, 5, 0, quick).least for work in (lambda: y.copy_(x), lambda: a @ a))
    return Ceiling(2 * size / copy, 2 * side**3 / product)


def timing(
    attend: Attend, case: Case, columns: bool, top: Ceiling, repeats: int | None, limit: float, quick: bool = False
) -> Timing:
    """A call's times. columns: whether it asks for them; limit: of seconds for each of them, without `repeats`."""
    asked = {"columns": True} if columns else {}
    work = lambda: attend(case.q, case.k, case.v, case.rule, **asked)  # noqa: E731
    device = case.q.device
    warm = clock.warm(work, device, repeats, limit, quick)
    cold = clock.cold(work, device, repeats, limit)
    graph, peak = clock.graph(work, device, repeats, limit), clock.peak(work, device)
    moved, flops = traffic(case, columns)
    took = warm.median
    return Timing(
        took * 1e3,
        moved / took / 1e9,
        max(moved / top.bandwidth, flops / top.flops) / took,
        warm.spread,
        warm.error,
        warm.runs,
        cold.median * 1e3,
        graph.median * 1e3 if graph else math.nan,
        math.nan if peak is None else peak / 1e6,
    )


def traffic(case: Case, columns: bool) -> tuple[int, int]:
    """(bytes, flops) of a function that shares nothing between rows."""
    shape, edits = case.shape, case.rule.edits if case.rule else ()
    B, H, N, T, D = shape.B, shape.H, shape.N, shape.T, shape.D
    moved = case.q.element_size() * H * (N + T) * D * (2 * B + len(edits))  # q and out, k and v; an edit's q and k
    moved += 4 * B * N * T * columns
    moved += sum(4 * x.numel() for edit in edits for x in (edit.columns, edit.gate) if x is not None)
    return moved, 4 * H * N * T * D * (B + len(edits))
