"""The lab's rows: what a row is called, and the CSV that they go to."""

import argparse
import csv
import io
import platform
import shlex
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from minedit.config import MineditError
from minedit.image import write_whole

FIRST = (  # what the first tables had
    *("date", "verb", "device", "torch", "triton", "threads", "dtype", "attention"),
    *("kind", "batch", "heads", "pixels", "tokens", "width", "note", "rule", "columns"),
    *("status", "error", "eager_error", "ratio", "ms", "gb_s", "of_ceiling", "ceiling_gb_s", "ceiling_gflop_s"),
)
FIELDS = (*FIRST, "spread", "stderr", "runs", "cold_ms", "graph_ms", "first_ms", "peak_mb")
Row = dict[str, object]  # by FIELDS; absent where there is nothing to say
COLUMNS = " + columns"


def named(row: Row) -> str:
    """By which `--only` finds a row again: "sdpa, float32, cross 4x2x64x77x40 contiguous, plain + columns"."""
    sizes = "x".join(str(row[name]) for name in ("batch", "heads", "pixels", "tokens", "width"))
    shape = f"{row['kind']} {sizes} {row['note']}".strip()
    return f"{row['attention']}, {row['dtype']}, {shape}, {row['rule']}{COLUMNS if row['columns'] else ''}"


def parts(name: str) -> tuple[str, str, str, str, bool]:
    """(attention, dtype, shape, rule, whether with columns) of a row's name. Raises MineditError."""
    found = name.split(", ")
    if len(found) != 4:
        example = "sdpa, float32, cross 4x2x64x77x40, plain"
        raise MineditError(f"--only {name!r} names no row; expected attention, dtype, shape, rule, as in {example!r}")
    attention, dtype, shape, rule = found
    return attention.partition(" (")[0], dtype, shape, rule.removesuffix(COLUMNS), rule.endswith(COLUMNS)


def again(args: argparse.Namespace, device: torch.device, row: Row) -> str:
    """The command that tries this row alone."""
    command = ["minedit", "kernels", args.what, "--device", str(device)]
    for name in ("threads", "repeats", "seconds"):
        if getattr(args, name) is not None:
            command += [f"--{name}", f"{getattr(args, name):g}"]
    command += [f"--{name}" for name in ("quick", "bounds") if getattr(args, name)]
    return shlex.join([*command, "--csv", str(args.csv), "--only", named(row)])


def machine(verb: str, device: torch.device) -> Row:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    told = {"date": date.today().isoformat(), "verb": verb, "device": f"{device.type} {name}"}
    return {**told, "torch": torch.__version__, "triton": triton, "threads": torch.get_num_threads()}


def held(path: Path) -> str:
    """What the CSV holds already, under today's columns. Raises MineditError where it is another table."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise MineditError(f"cannot read {path} ({error}); choose another --csv") from error
    rows = list(csv.reader(io.StringIO(text)))
    header = tuple(rows[0]) if rows else FIRST
    if header != FIELDS[: max(len(header), len(FIRST))]:
        raise MineditError(f"{path} is not a table of the kernel lab's columns; choose another --csv")
    wide = io.StringIO()
    csv.writer(wide, lineterminator="\n").writerows(
        [FIELDS, *(row + [""] * (len(FIELDS) - len(header)) for row in rows[1:])]
    )
    return wide.getvalue()


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(held(path))))


def append(path: Path, rows: list[Row]) -> None:
    before = held(path)  # another run may have added rows meanwhile

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            file.write(before)
            table = csv.DictWriter(file, FIELDS, lineterminator="\n")
            for row in rows:
                table.writerow({name: f"{x:.4g}" if isinstance(x, float) else x for name, x in row.items()})

    write_whole(path, write)
