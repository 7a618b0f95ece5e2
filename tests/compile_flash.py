"""Compile the launches that benchmarks/flash.py tries, for a GPU that is not here; print what each takes of it.

    python tests/compile_flash.py

One line a launch: registers a thread, bytes of shared memory a block, bytes spilled to memory a thread. The launch that
`flash.attend` makes: `minedit kernels compiled flash`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from minedit.attention import flash as kernels
from minedit.lab.compiled import of_call

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from flash import candidates, tensors, with_sizes  # noqa: E402


def main() -> None:
    given = tensors((1, 8, 4096, 40), torch.float16, "cpu")
    for sizes in candidates():
        with with_sizes(sizes):
            (made,) = of_call(lambda: kernels.attend(*given), 90)
        told = " ".join(f"{name} {value}" for name, value in sizes.items())
        print(f"{told}: registers {made.registers}, shared {made.shared}, spilled {made.spilled}", flush=True)


if __name__ == "__main__":
    main()
