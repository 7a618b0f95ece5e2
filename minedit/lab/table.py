"""Attention functions on the lab's cases: a table on the terminal, rows for a CSV.

In: functions by name, shapes, rules, number types. Out: a row (FIELDS) for every call that was tried.
"""

import argparse
import csv
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from minedit.attention.choose import backend, resolve
from minedit.attention.rules import Attend
from minedit.config import MineditError
from minedit.files.torchnames import DTYPES
from minedit.image import write_whole
from minedit.lab.bench import Ceiling, Timing, ceiling, timing
from minedit.lab.cases import Case, Shape, cases, real_shapes, small_shapes
from minedit.lab.check import Verdict, answers, judge

EXPLAINED = 3  # cases of one function and status that are reported in full
FIELDS = (
    *("date", "verb", "device", "torch", "triton", "threads", "dtype", "attention"),
    *("kind", "batch", "heads", "pixels", "tokens", "width", "note", "rule", "columns"),
    *("status", "error", "eager_error", "ratio", "ms", "gb_s", "of_ceiling", "ceiling_gb_s", "ceiling_gflop_s"),
)
Row = dict[str, object]  # by FIELDS; absent where there is nothing to say


def try_all(
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
                    tried = list(_rows_of(attend, case, verdict, top, args))
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


def _rows_of(
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


def machine(verb: str, device: torch.device) -> Row:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    told = {"date": date.today().isoformat(), "verb": verb, "device": f"{device.type} {name}"}
    return {**told, "torch": torch.__version__, "triton": triton, "threads": torch.get_num_threads()}


def held(path: Path) -> str:
    """What the CSV holds already. Raises MineditError where it is another table."""
    header = ",".join(FIELDS) + "\n"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else header
    except (OSError, UnicodeDecodeError) as error:
        raise MineditError(f"cannot read {path} ({error}); choose another --csv") from error
    if not text.startswith(header):
        raise MineditError(f"{path} is not a table of the kernel lab's columns; choose another --csv")
    return text if text.endswith("\n") else text + "\n"


def append(path: Path, rows: list[Row]) -> None:
    before = held(path)  # another run may have added rows meanwhile

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


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
