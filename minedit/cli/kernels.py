"""`minedit kernels check|bench`: attention functions, tried on SD-v1.4's shapes and every form of Rule.

`check` compares with float64 (lab/check.py); `bench` does so too and times what is right, the plain call also with
columns (lab/bench.py). Both print one table and append to a CSV. Exit status 1 where a function is wrong, or right
nowhere. How to write such a function: docs/kernels.md.
"""

import argparse
import csv
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from minedit.attention.choose import backend, resolve
from minedit.attention.rules import Attend
from minedit.cli.options import Formatter, Parser, number, path
from minedit.config import MineditError
from minedit.files.checkpoint import DTYPES, torch_device
from minedit.image import write_whole
from minedit.lab.bench import Ceiling, Timing, ceiling, timing
from minedit.lab.cases import RULES, Case, Shape, cases, real_shapes, small_shapes
from minedit.lab.check import Verdict, answers, judge

EXPLAINED = 3  # cases of one function and status that are reported in full
FIELDS = (
    *("date", "verb", "device", "torch", "triton", "threads", "dtype", "attention"),
    *("kind", "batch", "heads", "pixels", "tokens", "width", "note", "rule", "columns"),
    *("status", "error", "eager_error", "ratio", "ms", "gb_s", "of_ceiling", "ceiling_gb_s", "ceiling_gflop_s"),
)
Row = dict[str, object]  # by FIELDS; absent where there is nothing to say


def main(argv: list[str]) -> int:
    """Print the table, append to the CSV, return the exit status. Raises MineditError for arguments that cannot be."""
    args = _arguments(argv)
    device = torch_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rules = _chosen("rules", args.rules, RULES, list(RULES))
    halves = ["float16", "bfloat16"] if device.type == "cuda" else []
    dtypes = _chosen("dtype", args.dtype, DTYPES, ["float32", *halves])
    _before(args.csv)
    rows: list[Row] = []
    functions = named_functions(args.attention, device)
    with _threads(args.threads), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        told = _told(args.what, device)
        print(", ".join(f"{name} {told[name]}" for name in ("device", "torch", "triton", "threads") if told[name]))
        try:
            with torch.inference_mode():
                _try(rows, args, functions, rules, dtypes, device)
        finally:  # what was measured before an interruption is kept
            if rows:
                _append(args.csv, [{**told, **row} for row in rows])
    print(f"\n{len(rows)} rows to {args.csv}")
    counts = {name: Counter(row["status"] for row in rows if row["attention"] == name) for name in functions}
    for name, count in counts.items():
        print(f"{name}: {', '.join(f'{n} {status}' for status, n in count.items()) or 'not tried'}")
    return int(any(count["wrong"] or not count["right"] for count in counts.values()))


def _try(
    rows: list[Row],
    args: argparse.Namespace,
    functions: Mapping[str, Attend],
    rules: list[str],
    dtypes: list[str],
    device: torch.device,
) -> None:
    """Try every function on every case and print the table: in `bench` a line a case, in `check` a line a shape."""
    had = Counter()
    wide = max(len(name) for name in ("attention", *functions))
    print(f"\n{'attention':{wide}}  {HEAD}")
    for dtype in dtypes:
        top = ceiling(device, DTYPES[dtype], args.quick) if args.what == "bench" else None
        if top:
            print(f"{dtype}: of ceiling = {top}")
        for shape in _shapes(args, device):
            begun = len(rows)
            for case in cases(shape, rules, DTYPES[dtype], device):
                expected = answers(case)
                for name, attend in functions.items():
                    verdict = judge(attend, case, expected, explain=had[name, "wrong"] < EXPLAINED)
                    tried = list(_tried(attend, case, verdict, top, args))
                    rows += [{"attention": name, "dtype": dtype, **row} for row in tried]
                    for row in rows[-len(tried) :] if top else ():
                        print(_line(wide, row, shape, row["rule"] + " + columns" * row["columns"]), flush=True)
                    had[name, verdict.status] += 1
                    if verdict.status != "right" and had[name, verdict.status] <= EXPLAINED:
                        print(f"{verdict.status}: {name}, {case}", *verdict.report, sep="\n    ", flush=True)
                    if verdict.fatal:
                        print("the device cannot be used after this: nothing more was tried")
                        return
            for name in functions if not top else ():
                mine = [row for row in rows[begun:] if row["attention"] == name]
                for line in _summary(wide, mine, shape):
                    print(line, flush=True)


def _tried(
    attend: Attend, case: Case, verdict: Verdict, top: Ceiling | None, args: argparse.Namespace
) -> Iterator[Row]:
    """What is known of one case: the verdict, the time where it is right. A plain call is timed with columns too."""
    s = case.shape
    row = {"kind": s.kind, "batch": s.B, "heads": s.H, "pixels": s.N, "tokens": s.T, "width": s.D, "note": s.note}
    numbers = {"error": verdict.error, "eager_error": verdict.eager_error, "ratio": verdict.ratio}
    row |= {"rule": case.name, "columns": False, "status": verdict.status}
    row |= {name: x for name, x in numbers.items() if x == x}  # no nan
    if top is None or verdict.status != "right":
        yield row
        return
    ceilings = {"ceiling_gb_s": top.bandwidth / 1e9, "ceiling_gflop_s": top.flops / 1e9}
    for columns in (False, True) if case.name == "plain" and s.columns else (False,):
        took: Timing = timing(attend, case, columns, top, args.repeats, args.quick)
        yield {**row, "columns": columns, **asdict(took), **ceilings}


# --- what comes out --------------------------------------------------------------------------------------------------

HEAD = f"{'dtype':8}  {'BxHxNxTxD':32}  {'rules':20}  error/eager         ms      GB/s  of ceiling"


def _line(wide: int, row: Row, shape: Shape, rule: str, remark: str = "") -> str:
    ratio, ms, gb_s, part = (f"{row[x]:.3g}" if x in row else "-" for x in ("ratio", "ms", "gb_s", "of_ceiling"))
    remark = remark or ("" if row["status"] == "right" else row["status"].upper())
    line = f"{row['attention']:{wide}}  {row['dtype']:8}  {str(shape):32}  {rule:20}"
    return f"{line}  {ratio:>11}  {ms:>9}  {gb_s:>8}  {part:>10}  {remark}".rstrip()


def _summary(wide: int, rows: list[Row], shape: Shape) -> Iterator[str]:
    """The rules of a shape in a line for each status, with the largest error and the rule it belongs to."""
    for status in dict.fromkeys(row["status"] for row in rows):
        some = [row for row in rows if row["status"] == status]
        worst = max(some, key=lambda row: row.get("ratio", 0))
        if status == "right":
            yield _line(wide, worst, shape, f"{len(some)}, most in {worst['rule']}")
        else:
            names = " ".join(row["rule"] for row in some)
            yield _line(wide, worst, shape, f"{len(some)} of {len(rows)}", f"{status.upper()}: {names}")


def _told(verb: str, device: torch.device) -> Row:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    told = {"date": date.today().isoformat(), "verb": verb, "device": f"{device.type} {name}"}
    return {**told, "torch": torch.__version__, "triton": triton, "threads": torch.get_num_threads()}


def _before(path: Path) -> str:
    """What the CSV holds already. Raises MineditError where it is another table."""
    header = ",".join(FIELDS) + "\n"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else header
    except (OSError, UnicodeDecodeError) as error:
        raise MineditError(f"cannot read {path} ({error}); choose another --csv") from error
    if not text.startswith(header):
        raise MineditError(f"{path} is not a table of the kernel lab's columns; choose another --csv")
    return text if text.endswith("\n") else text + "\n"


def _append(path: Path, rows: list[Row]) -> None:
    before = _before(path)  # another run may have added rows meanwhile

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            file.write(before)
            table = csv.DictWriter(file, FIELDS, lineterminator="\n")
            for row in rows:
                table.writerow({name: f"{x:.4g}" if isinstance(x, float) else x for name, x in row.items()})

    write_whole(path, write)


# --- what goes in ----------------------------------------------------------------------------------------------------


def named_functions(asked: list[str] | None, device: torch.device) -> dict[str, Attend]:
    """The attention functions by name; triton unasked where it can run. Raises MineditError where one cannot be had."""
    names = [name for text in asked or ["eager,sdpa"] for name in text.split(",")]
    if not asked and device.type == "cuda":
        try:
            backend("triton", device)
            names.append("triton")
        except MineditError as error:
            print(f"without triton: {error}")
    found = {}
    for name in names:
        found[f"auto ({resolve(name, device)})" if name == "auto" else name] = backend(name, device)
    return found


def _shapes(args: argparse.Namespace, device: torch.device) -> list[Shape]:
    small = small_shapes() if args.quick or args.shapes != "real" else ()
    real = real_shapes() if args.shapes != "small" and not args.quick else ()
    return [shape for shape in small + real if args.full or device.type != "cpu" or not shape.heavy]


def _chosen(option: str, asked: list[str] | None, known: Iterable[str], default: list[str]) -> list[str]:
    names = [name for text in asked or [] for name in text.split(",")] or default
    unknown = [name for name in names if name not in known]
    if unknown:
        raise MineditError(f"--{option} has {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}")
    return list(dict.fromkeys(names))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        "minedit kernels", description="Check and time attention functions, your own too.", formatter_class=Formatter
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
    parser.add_argument("--repeats", metavar="N", type=number(int, 1, 1000), default=20, help="timings of a call")
    parser.add_argument("--threads", metavar="N", type=number(int, 1, 1000), help="of the CPU; else torch's choice")
    parser.add_argument("--csv", metavar="FILE", type=path, default=Path("out/kernels.csv"), help="appended to")
    return parser.parse_args(argv)
