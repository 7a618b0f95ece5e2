"""What this CPU is good at. In: the names of its instructions, or a convolution timed. Out: a CPU.

Multiplied in hardware, bfloat16 is faster than float32, at Stable Diffusion's size by far; emulated, it is slower. And
where AMX's tiles multiply, convolutions by fewer products (winograd.py) gained nothing in float32.
Flags decide wherever they can, so that the same machine always chooses alike.
"""

import platform
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

AMX, AVX512 = "amx_bf16", "avx512_bf16"  # x86's instructions for products of bfloat16
ASKED = {  # what a torch before get_capabilities says, by the function that says it
    AMX: "_is_amx_tile_supported",
    AVX512: "_is_avx512_bf16_supported",
}
X86 = ("x86_64", "amd64", "i386", "i686")
FASTER = 1.25  # float32's time over bfloat16's, from which on bfloat16 is called the faster


@dataclass(frozen=True)
class CPU:
    bfloat16: str = ""  # what makes it faster than float32, in words; empty where it is slower
    tiles: bool = False  # whether AMX's tiles multiply


@cache
def this() -> CPU:
    """This machine's, found once; where instructions do not tell, in less than 0.3 s."""
    onednn = torch.backends.mkldnn.is_available()
    return judged(instructions(), platform.machine(), onednn, measured)


def judged(names: Collection[str], machine: str, onednn: bool, measured: Callable[[], float]) -> CPU:
    """names: of instructions. machine: `platform.machine()`. onednn: whether torch computes by oneDNN.

    measured: float32's time over bfloat16's, asked for where the rest does not tell: other processors than x86, unless
    they name their instructions and none is bfloat16's.
    """
    if machine.lower() in X86:
        if not onednn:  # whose kernels are all that use them
            return CPU()
        return CPU("AMX" if AMX in names else AVX512 if AVX512 in names else "", AMX in names)
    if names and not any(re.search("bf16|bfloat16", name) for name in names):
        return CPU()
    ratio = measured()
    return CPU(f"{ratio:.1f} times as fast as float32, measured" if ratio >= FASTER else "")


def instructions(cpuinfo: Path = Path("/proc/cpuinfo"), asked: object = torch.cpu) -> frozenset[str]:
    """Names, as Linux and torch spell them; none where neither says. asked: torch.cpu, of whatever version."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    said = getattr(asked, "get_capabilities", dict)()
    said = {name for name, value in said.items() if value is True}
    older = {name for name, function in ASKED.items() if getattr(asked, function, bool)()}
    return frozenset({*" ".join(lines[:1]).split(), *said, *older})


def measured() -> float:
    """float32's time over bfloat16's, of a convolution."""
    best = {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            x, weight = torch.ones(1, 128, 32, 32, dtype=dtype), torch.ones(128, 128, 3, 3, dtype=dtype)
            times = []
            while len(times) < 4 and sum(times) < 0.06:  # the first warms up; an emulated one may be long
                began = time.perf_counter()
                F.conv2d(x, weight, padding=1)
                times.append(time.perf_counter() - began)
            best[dtype] = min(times)
    return best[torch.float32] / best[torch.bfloat16]
