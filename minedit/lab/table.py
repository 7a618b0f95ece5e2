"""Attention functions on the lab's cases: a table on the terminal, rows for a CSV.

In: functions by name, shapes, rules, number types. Out: a row (rows.FIELDS) for every call that was tried.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

import torch

from minedit.attention.choose import backend, resolve
from minedit.attention.rules import Attend
from minedit.config import MineditError
from minedit.files.torchnames import DTYPES
from minedit.lab.bench import Ceiling, Timing, ceiling, timing
from minedit.lab.cases import Case, Shape, cases, real_shapes, small_shapes
from minedit.lab.check import Verdict, answers, judge
from minedit.lab.rows import COLUMNS, Row, parts

EXPLAINED = 3  # cases of one function and status that are reported in full


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
    print(f"\n{'attention':{wide}}  {HEAD}{TIMES if args.what == 'bench' else ''}")
    for dtype in dtypes:
        top = ceiling(device, DTYPES[dtype], args.quick) if args.what == "bench" else None
        if top:
            print(f"{dtype}: of ceiling = {top}")
        for shape in shapes(args, device):
            begun = len(rows)
            for case in cases(shape, rules, DTYPES[dtype], device):
                expected = answers(case)
                for name, attend in functions.items():
                    verdict = judge(attend, case, expected, explain=had[name, "wrong"] < EXPLAINED)
                    tried = list(_rows_of(attend, case, verdict, top, args))
                    rows += [{"attention": name, "dtype": dtype, **row} for row in tried]
                    for row in rows[-len(tried) :] if top else ():
                        print(_line(wide, row, shape, row["rule"] + COLUMNS * row["columns"], timed=True), flush=True)
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
        if args.only and parts(args.only)[4] != columns:
            continue
        took: Timing = timing(attend, case, columns, top, args.repeats, args.seconds, args.quick)
        first = {} if columns else {"first_ms": verdict.first_ms}
        yield {
            **row,
            "columns": columns,
            **{name: x for name, x in asdict(took).items() if x == x},
            **ceilings,
            **first,
        }


# --- what comes out --------------------------------------------------------------------------------------------------

HEAD = f"{'dtype':8}  {'BxHxNxTxD':34}  {'rules':20}  error/eager"
TIMES = "         ms  spread       cold      graph      first      MB      GB/s  of ceiling"


def _line(wide: int, row: Row, shape: Shape, rule: str, timed: bool = False) -> str:
    def number(name: str, width: int) -> str:
        return f"{row[name]:.3g}".rjust(width) if name in row else "-".rjust(width)

    line = f"{row['attention']:{wide}}  {row['dtype']:8}  {str(shape):34}  {rule:20}  {number('ratio', 11)}"
    if timed:
        spread = f"{row['spread']:.0%}" if "spread" in row else "-"
        line += f"  {number('ms', 9)}  {spread:>6}  {number('cold_ms', 9)}  {number('graph_ms', 9)}"
        line += f"  {number('first_ms', 9)}  {number('peak_mb', 6)}  {number('gb_s', 8)}  {number('of_ceiling', 10)}"
    remark = "" if row["status"] == "right" else row["status"].upper()
    return f"{line}  {remark}".rstrip()


def _summary(wide: int, rows: list[Row], shape: Shape) -> Iterator[str]:
    """The rules of a shape in a line for each status, with the largest error and the rule it belongs to."""
    for status in dict.fromkeys(row["status"] for row in rows):
        some = [row for row in rows if row["status"] == status]
        worst = max(some, key=lambda row: row.get("ratio", 0))
        if status == "right":
            yield _line(wide, worst, shape, f"{len(some)}, most in {worst['rule']}")
        else:
            names = " ".join(row["rule"] for row in some)
            yield f"{_line(wide, worst, shape, f'{len(some)} of {len(rows)}')}: {names}"


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


def one_row(rows: list[Row]) -> Row | None:
    """Worth a second look: the first that is wrong, else what is furthest from its ceiling."""
    wrong, timed = ([row for row in rows if test(row)] for test in (_is_wrong, lambda row: "of_ceiling" in row))
    return next(iter(wrong), min(timed, key=lambda row: row["of_ceiling"], default=None))


def _is_wrong(row: Row) -> bool:
    return row["status"] == "wrong"


def shapes(args: argparse.Namespace, device: torch.device) -> list[Shape]:
    """Those asked for. Raises MineditError where `--only` names none."""
    if args.only:
        found = [shape for shape in small_shapes() + real_shapes() if str(shape) == parts(args.only)[2]]
        if not found:
            raise MineditError(f"--only names the shape {parts(args.only)[2]!r}, which is none of the lab's")
        return found
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
