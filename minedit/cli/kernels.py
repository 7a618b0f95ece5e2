"""`minedit kernels check|bench`: attention functions, tried on SD-v1.4's shapes and every form of Rule.

`check` compares with float64 (lab/check.py); `bench` does so too and times what is right, the plain call also with
columns (lab/bench.py). Both print one table and append to a CSV (lab/table.py, lab/rows.py). Exit status 1 where a
function is wrong, or right nowhere. How to write such a function: docs/kernels.md.
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from minedit.cli import compiled, roofline
from minedit.cli.options import DTYPES, Formatter, Parser, number, path
from minedit.config import MineditError
from minedit.lab.names import RULES

ELSEWHERE = {"compiled": compiled.main, "roofline": roofline.main}


def main(argv: list[str]) -> int:
    """Print the table, append to the CSV, return the exit status. Raises MineditError for arguments that cannot be."""
    if argv[:1] and argv[0] in ELSEWHERE:
        return ELSEWHERE[argv[0]](argv[1:])
    args = _arguments(argv)
    if args.bounds:
        _interpreted(args)
    if args.only:
        _only(args)
    rules, dtypes = _chosen("rules", args.rules, RULES), _chosen("dtype", args.dtype, DTYPES)
    import torch  # and what takes it, once the arguments are right

    from minedit.files.torchnames import torch_device
    from minedit.lab import rows as kept
    from minedit.lab import table

    device = torch_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtypes = dtypes or (list(DTYPES) if device.type == "cuda" else ["float32"])
    kept.held(args.csv)
    table.shapes(args, device)
    rows: list[kept.Row] = []
    functions = table.named_functions(args.attention, device)
    if args.bounds:
        from minedit.lab.bounds import watched

        functions = {name: watched(attend) for name, attend in functions.items()}
    with table.threads(args.threads), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        told = kept.machine(args.what, device)
        print(", ".join(f"{name} {told[name]}" for name in ("device", "torch", "triton", "threads") if told[name]))
        try:
            with torch.inference_mode():
                table.try_all(rows, args, functions, rules or list(RULES), dtypes, device)
        finally:  # what was measured before an interruption is kept
            if rows:
                kept.append(args.csv, [{**told, **row} for row in rows])
    row = table.one_row(rows)
    print(
        f"\n{len(rows)} rows to {args.csv}" + (f"; one of them again:\n{kept.again(args, device, row)}" if row else "")
    )
    counts = {name: Counter(row["status"] for row in rows if row["attention"] == name) for name in functions}
    for name, count in counts.items():
        print(f"{name}: {', '.join(f'{n} {status}' for status, n in count.items()) or 'not tried'}")
    return int(any(count["wrong"] or not count["right"] for count in counts.values()))


def _interpreted(args: argparse.Namespace) -> None:
    """Triton decides as it is first imported; what no one named is then the fused kernel on the CPU."""
    if args.what != "check" or args.device not in (None, "cpu"):
        raise MineditError("--bounds watches kernels in Triton's interpreter: it goes with check, on the cpu")
    os.environ["TRITON_INTERPRET"] = "1"
    args.device, args.attention = "cpu", args.attention or ["triton"]


def _only(args: argparse.Namespace) -> None:
    from minedit.lab.rows import parts

    attention, dtype, _, rule, _ = parts(args.only)
    args.attention, args.dtype, args.rules = [attention], [dtype], [rule]


def _chosen(option: str, asked: list[str] | None, known: Iterable[str]) -> list[str]:
    """Names, each once; none where none is asked for. Raises MineditError for one that is not known."""
    names = [name for text in asked or [] for name in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise MineditError(f"--{option} has {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}")
    return list(dict.fromkeys(names))


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        "minedit kernels",
        description="Check and time attention functions, your own too.",
        epilog="minedit kernels compiled --help: what a compiler makes of them; roofline --help: a picture.",
        formatter_class=Formatter,
    )
    several = {"action": "append", "metavar": "NAME"}
    parser.add_argument("what", choices=("check", "bench"), help="compare with float64; bench: and time")
    parser.add_argument("--attention", **several, help="eager, sdpa, triton, auto, module:function; again, or a,b")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; else cuda where there is one")
    parser.add_argument("--dtype", **several, help="float32, float16, bfloat16; else all on cuda, float32 elsewhere")
    parser.add_argument("--rules", **several, help=f"some of {', '.join(RULES)}; else all")
    parser.add_argument("--shapes", choices=("all", "small", "real"), default="all", help="real: those of SD-v1.4")
    parser.add_argument("--quick", action="store_true", help="small shapes only, and times that say little")
    parser.add_argument("--full", action="store_true", help="on a CPU too self-attention of 4096 pixels and more")
    parser.add_argument("--bounds", action="store_true", help="check: a Triton kernel's addresses too, interpreted")
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=number(int, 1, 1000),
        help="timings of a call; else until their error is under 1 %%",
    )
    parser.add_argument("--seconds", metavar="S", type=number(float, 0, 3600), default=1, help="of them at most")
    parser.add_argument("--only", metavar="ROW", help="one row, by the name printed below a table; of all shapes")
    parser.add_argument("--threads", metavar="N", type=number(int, 1, 1000), help="of the CPU; else torch's choice")
    parser.add_argument("--csv", metavar="FILE", type=path, default=Path("out/kernels.csv"), help="appended to")
    return parser.parse_args(argv)
