"""Compile the fused kernels for GPUs that are not here; print what each variant takes of them.

    python tests/compile_kernels.py [--quick | --fused]

One line a variant: registers a thread, bytes of shared memory a block, bytes spilled to memory a thread. The compiler
and the assembler come with the package triton.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minedit.attention import kernel
from minedit.attention import triton as kernels
from minedit.speed import fused, group_norm

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
SIZES = ((4096, 40), (1024, 80), (256, 160), (64, 160))  # pixels, width of a head: Stable Diffusion v1.4's


def compiled(target: int, n: int, d: int, dtype: torch.dtype, edited: bool, seen: bool = False, **sizes: int):
    """What `kernels.attend` would launch for `n` pixels, 8 heads of width `d` and 77 tokens; `sizes` in its place."""
    function = kernel.columns if seen else kernel.attention
    names = function.arg_names
    numbers = sizes or kernels.shape(n, d, 77, dtype, hopper=target >= 90)
    options = {"num_warps": numbers.pop("num_warps"), "num_stages": numbers.pop("num_stages", 1)}
    fixed = {
        "HEADS": 8,
        "D": d,
        "T": 77,
        "UNIT": 8,
        "WIDE": False,
        "q_from": None,
        "k_from": None,
        "v_from": None,
    } | numbers
    fixed |= {} if edited else dict.fromkeys(kernel.ANYWHERE)
    fixed = {name: value for name, value in fixed.items() if name in names}
    types = dict.fromkeys(("q", "k", "v", "out"), f"*{TYPES[dtype]}")
    types |= dict.fromkeys((*kernel.ANYWHERE, "seen"), "*fp32")
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in names}
    aligned = [name for name in names if signature[name][0] == "*" and name not in kernel.ANYWHERE]
    source = ASTSource(
        function,
        signature,
        {(names.index(name),): value for name, value in fixed.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


# What fused.py launches for widths of 320, 960 and 2560 channels and for the VAE's 128; a group's channels, padded.
NORMS = ((320, 10, 16), (960, 30, 32), (2560, 80, 128), (128, 4, 4))


def fused_variants():
    """(name, kernel, its constants, warps)."""
    for c, w, wide in NORMS:
        norm, groups, across = {"G": 32, "W": w, "SHIFT": True}, max(1, 64 // wide), group_norm.across(c)
        rows, tile = group_norm.TILE // (groups * wide), {"BC": across, "ROWS": 4096 // across}
        if c > 128:
            one = {"BP": group_norm.IN_REGISTERS // wide, "BW": wide, "SILU": True}
            yield f"group_norm {c}, at once", group_norm._small, norm | one, 16
            yield f"group_norm {c}, applied", group_norm._apply, norm | tile | {"K": group_norm.CHUNKS, "SILU": True}, 4
        moments = {"K": group_norm.CHUNKS, "CHUNK": 2 * rows, "BG": groups, "BW": wide, "ROWS": rows}
        yield f"group_norm {c}, moments", group_norm._moments, norm | moments, 8
    yield "group_norm 128, joined", group_norm._join, {"G": 32, "W": 4, "K": group_norm.MANY}, 4
    yield "group_norm 128, applied", group_norm._apply, norm | tile | {"K": 1, "SILU": True}, 4
    yield "add 320", fused._add, {"C": 320, "BC": 64, "ROWS": 64}, 4
    for c, rows in ((320, 4), (640, 4), (1280, 1)):
        yield f"add_layer_norm {c}", fused._add_layer_norm, {"C": c, "BC": 1 << c.bit_length(), "ROWS": rows}, 4
    yield "gate 1280, sums", fused._sums, {"C": 1280, "CHUNK": 16, "BC": 32, "ROWS": 128}, 4
    yield "gate 1280", fused._gate, {"C": 1280, "BC": 2048, "ROWS": 4, "K": fused.CHUNKS, "CENTRE": True}, 4
    yield "geglu 1280", fused._geglu, {"C": 1280, "BC": 256, "ROWS": 16}, 4


def fused_compiled(target: int, kernel, fixed: dict, warps: int, dtype: torch.dtype):
    names = kernel.arg_names
    maps = ("x", "h", "out", "total", "weight", "bias", "shift", "key")
    types = dict.fromkeys(maps, f"*{TYPES[dtype]}") | dict.fromkeys(("moments", "parts"), "*fp32")
    types |= dict.fromkeys(("eps", "scale", "slope"), "fp32")
    if kernel is fused._add:
        types["bias"] = "*fp32"
    if kernel is fused._gate:
        types["out"] = "*fp32"
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in names}
    aligned = [name for name in names if signature[name][0] == "*"]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in fixed.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": warps})


def resources(binary, target: int) -> tuple[int, int, int]:
    """(registers a thread, bytes of shared memory a block, bytes spilled a thread), as the assembler tells."""
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "kernel.ptx"
        code.write_text(binary.asm["ptx"])
        name = f"sm_{target}" + "a" * (target >= 90)
        command = [assembler, "-v", "--gpu-name", name, code, "-o", code.with_suffix(".cubin")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    return int(registers[1]), binary.metadata.shared, int(spilled[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one variant for each GPU")
    parser.add_argument("--fused", action="store_true", help="the kernels of speed/fused.py, for sm_90")
    args = parser.parse_args()
    quick = args.quick
    if args.fused:
        print("kernel, channels                dtype registers shared spilled")
        for (name, kernel, fixed, warps), kind in itertools.product(fused_variants(), (torch.float16, torch.float32)):
            registers, shared, spilled = resources(fused_compiled(90, kernel, fixed, warps, kind), 90)
            print(f"{name:32} {TYPES[kind]:>4} {registers:>9} {shared:>6} {spilled:>7}", flush=True)
        return
    sizes, kinds = (SIZES[:1], (torch.float16,)) if quick else (SIZES, TYPES)
    variants = ((True, False),) if quick else ((False, False), (True, False), (False, True))
    print(f"{'GPU':6} {'pixels':>6} {'width':>5} {'dtype':>9} {'edited':>6} {'columns':>7} registers shared spilled")
    for target, (n, d), kind, (edited, seen) in itertools.product((80, 90), sizes, kinds, variants):
        registers, shared, spilled = resources(compiled(target, n, d, kind, edited, seen), target)
        what = f"sm_{target}  {n:>6} {d:>5} {TYPES[kind]:>9} {edited!s:>6} {seen!s:>7}"
        print(f"{what} {registers:>9} {shared:>6} {spilled:>7}", flush=True)


if __name__ == "__main__":
    main()
