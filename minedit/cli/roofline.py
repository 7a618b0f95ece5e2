"""`minedit kernels roofline`: a picture of how near attention functions come to what a device can do."""

import argparse
from pathlib import Path

from minedit.cli.options import Formatter, Parser, path
from minedit.config import SD14, MineditError
from minedit.lab.names import RULES


def main(argv: list[str]) -> int:
    """Draw rows of `kernels bench`, of Stable Diffusion's shapes. Raises MineditError where there are none."""
    args = _arguments(argv)
    rules = args.rules.split(",")
    unknown = [name for name in rules if name not in RULES]
    if unknown:
        raise MineditError(f"--rules has {unknown[0]!r}; expected some of {', '.join(RULES)}")
    from minedit.image import write_whole
    from minedit.lab.roofline import drawn
    from minedit.lab.rows import read

    rows = [row for row in read(args.csv) if row["ms"]]
    found = [row for row in rows if (args.device or "") in row["device"] and args.dtype in (None, row["dtype"])]
    if not found:
        had = ", ".join(sorted({f"{row['device']} {row['dtype']}" for row in rows})) or "no times"
        raise MineditError(f"{args.csv} has no row for --device and --dtype; it has {had}")
    device, dtype = (found[-1][name] for name in ("device", "dtype"))
    kept = [row for row in found if (row["device"], row["dtype"]) == (device, dtype) and row["rule"] in rules]
    kept = [row for row in kept if _wanted(row, args)]
    if not kept:
        raise MineditError(f"{args.csv} has no row of {device}, {dtype} with these --rules, --kind and --pixels")
    picture = drawn(
        kept, f"{device}, {dtype}, torch {kept[-1]['torch']}, {kept[-1]['threads']} threads, {kept[-1]['date']}"
    )
    write_whole(args.out, lambda part: picture.save(part, "PNG"))
    print(f"{args.out}: {device}, {dtype}, the last row of each function and case")
    return 0


def _wanted(row: dict[str, str], args: argparse.Namespace) -> bool:
    pixels = args.pixels and row["pixels"] not in args.pixels.split(",")
    of_sd = int(row["heads"]) == SD14.unet.heads and row["columns"] == "False"
    return of_sd and not pixels and args.kind in (None, row["kind"])


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser("minedit kernels roofline", description=__doc__, formatter_class=Formatter)
    parser.add_argument("--csv", metavar="FILE", type=path, default=Path("out/kernels.csv"), help="rows of bench")
    parser.add_argument("--out", metavar="FILE", type=path, default=Path("out/roofline.png"), help="the picture")
    parser.add_argument("--device", metavar="NAME", help="some of a device's name; else that of the last row")
    parser.add_argument("--dtype", metavar="NAME", help="else that of the last row")
    parser.add_argument("--rules", metavar="NAMES", default="plain,dps", help="a,b of those that bench knows")
    parser.add_argument("--kind", choices=("cross", "self"), help="else both")
    parser.add_argument("--pixels", metavar="N,N", default="4096,1024,256,64", help="those of 512 x 512; '' for all")
    return parser.parse_args(argv)
