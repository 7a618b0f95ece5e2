"""How many threads a CPU computes with. In: what was asked for, or how busy the machine is. Out: torch's setting.

The threads of one layer wait for the slowest, spinning. Beside another program that uses a core, two threads on two
cores are slower than one (benchmarks/threads.csv).
"""

import os
import time
from pathlib import Path

Look = tuple[float, float, float]  # seconds: that all cores worked, that this process did, and of the clock


def look() -> Look | None:
    """What the machine has done so far; None where it does not say (Linux does)."""
    try:
        user, nice, system, _, _, interrupts, soft, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return None
    worked = (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
    return worked, time.process_time(), time.monotonic()


def others(before: Look, now: Look) -> float:
    """Cores that other programs used between two looks."""
    worked, own, passed = (b - a for a, b in zip(before, now, strict=True))
    return max(0.0, (worked - own) / passed) if passed > 0 else 0.0


def free(most: int, cores: int, used: float) -> int:
    """Threads, 1 to `most`, for the cores that others leave; half a core is left to the system."""
    return max(1, min(most, round(cores - used)))


def choose(asked: int | None, before: Look | None) -> str:
    """Set torch's threads: those asked for, or as the machine was busy since `before`. Returns what to say of it."""
    import torch

    most, now = torch.get_num_threads(), look()
    if asked is not None:
        torch.set_num_threads(asked)
    elif before and now and "OMP_NUM_THREADS" not in os.environ:
        used = others(before, now)
        if (threads := free(most, os.cpu_count() or most, used)) < most:
            torch.set_num_threads(threads)
            return f", threads {threads} of {most}, as others use {used:.1f} cores (--threads)"
    return f", threads {torch.get_num_threads()}"
