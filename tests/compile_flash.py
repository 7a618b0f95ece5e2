"""Compile the flash kernel for GPUs that are not here; print what each launch takes of them.

    python tests/compile_flash.py [--quick]

One line a launch that benchmarks/flash.py tries: registers a thread, bytes of shared memory a block, bytes spilled to
memory a thread. --quick: the launch that `flash.attend` makes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import triton
from compile_kernels import TYPES, resources
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minedit.attention import flash

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))


def compiled(target: int, dtype: torch.dtype, sizes: dict[str, int], d: int = 40):
    """`sizes` for keys that fill their tiles, 8 heads of width `d`, no routes."""
    names = flash.flash.arg_names
    fixed = {"HEADS": 8, "D": d, "T": 4096, "UNIT": 8, "WIDE": False, "q_from": None, "k_from": None, "v_from": None}
    fixed |= sizes
    options = {"num_warps": fixed.pop("num_warps")}
    types = dict.fromkeys(("q", "k", "v", "out"), f"*{TYPES[dtype]}")
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in names}
    source = ASTSource(
        flash.flash,
        signature,
        {(names.index(name),): value for name, value in fixed.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in types},
    )
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def main() -> None:
    print("GPU     dtype registers shared spilled")
    if "--quick" in sys.argv:
        jobs = [(gpu, dtype, flash.shape(4096, 40, 4096, gpu >= 90)) for gpu in (80, 90) for dtype in flash.DTYPES]
    else:
        from flash import candidates

        jobs = [(90, torch.float16, sizes) for sizes in candidates()]
    for target, dtype, sizes in jobs:
        registers, shared, spilled = resources(compiled(target, dtype, sizes), target)
        told = " ".join(f"{name} {value}" for name, value in sizes.items())
        print(f"sm_{target}  {TYPES[dtype]} {told} {registers:>9} {shared:>6} {spilled:>7}", flush=True)


if __name__ == "__main__":
    main()
