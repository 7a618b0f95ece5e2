"""`minedit kernels compiled`: what the compiler makes of Triton kernels, for GPUs that need not be here.

One line a kernel: registers a thread, bytes of shared memory a block, bytes spilled to memory a thread. Its code goes
to --out; --diff compares two such folders.
"""

import argparse
import re
from pathlib import Path

from minedit.cli.options import DTYPES, Formatter, Parser, path
from minedit.config import MineditError
from minedit.lab.names import LANGUAGES

OWN = ("triton", "flash", "fused")


def main(argv: list[str]) -> int:
    """Print the table, or the comparison. Raises MineditError."""
    args = _arguments(argv)
    if args.diff:
        from minedit.lab.made import compared

        for line in compared(*args.diff, args.language):
            print(line)
        return 0
    targets = [_number(name) for text in args.target for name in text.split(",")]
    dtypes = [name for text in args.dtype or ["float16"] for name in text.split(",")]
    unknown = [name for name in dtypes if name not in DTYPES]
    if unknown:
        raise MineditError(f"--dtype has {unknown[0]!r}; expected some of {', '.join(DTYPES)}")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise MineditError(f"kernels compiled: {error}; install the package triton") from error
    from minedit.files.torchnames import DTYPES as TORCH
    from minedit.lab.calls import calls
    from minedit.lab.compiled import of_call
    from minedit.lab.made import written

    print(f"{'GPU':6} {'kernel':16} {'dtype':8} {'of':44} registers shared spilled", flush=True)
    count = 0
    for target in targets:
        for dtype in dtypes:
            for what, call in calls(args.function, TORCH[dtype], target, args.quick):
                for kernel in of_call(call, target):
                    written(args.out, what, dtype, kernel)
                    numbers = f"{kernel.registers:>9} {kernel.shared:>6} {kernel.spilled:>7}"
                    print(f"sm_{target:<3} {kernel.name:16} {dtype:8} {what:44} {numbers}", flush=True)
                    count += 1
    if not count:
        raise MineditError(f"{args.function!r} launches no Triton kernel on the shapes tried: nothing to compile")
    print(f"\n{count} kernels to {args.out}")
    return 0


def _number(target: str) -> int:
    found = re.fullmatch(r"sm_(\d{2,3})", target)
    if not found:
        raise MineditError(f"--target has {target!r}; expected sm_80, sm_90 or the like")
    return int(found[1])


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser("minedit kernels compiled", description=__doc__, formatter_class=Formatter)
    parser.add_argument("function", nargs="?", default="triton", metavar="FUNCTION",
                        help=f"{', '.join(OWN)}, module:function, file.py:function; else triton")  # fmt: skip
    parser.add_argument(
        "--target", action="append", metavar="NAME", help="sm_80, sm_90, ...; again, or a,b; else sm_90"
    )
    parser.add_argument("--dtype", action="append", metavar="NAME", help="float32, float16, bfloat16; else float16")
    parser.add_argument("--quick", action="store_true", help="an edit of the largest shape only")
    parser.add_argument("--out", metavar="DIR", type=path, default=Path("out/compiled"), help="for the code, by kernel")
    parser.add_argument("--diff", nargs=2, metavar=("A", "B"), type=path, help="compare two such folders")
    parser.add_argument("--language", choices=LANGUAGES, default="ttgir", help="of the diff")
    args = parser.parse_args(argv)
    args.target = args.target or ["sm_90"]
    return args
