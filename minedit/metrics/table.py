"""Rows of edits -> means with 95 % bootstrap intervals, for each method and kind of edit: as CSV, and to be read."""

import csv
import io
from collections.abc import Mapping, Sequence

from minedit.metrics import closed
from minedit.metrics.asked import Task
from minedit.metrics.columns import COLUMNS
from minedit.metrics.kept import Key, Row
from minedit.picturebook.score import mean

ALL = "all"
Mean = tuple[float, float, float, int]  # and its interval's ends, and of how many


def figures(task: Task, row: Row) -> dict[str, float | None]:
    """All of an edit's, by the names of COLUMNS; none of one that failed."""
    found = dict(row.get("figures") or {})
    if task.world and row.get("read"):
        found |= closed.read_off(task.world, *row["read"])
    return found


def summary(specs: Sequence[str], tasks: Sequence[Task], rows: Mapping[Key, Row]) -> list[dict[str, object]]:
    """A line for each method and kind of edit, and one for all: method, kind, edits, failed, figures: Mean, seconds."""
    known = {(spec, task.id): figures(task, rows[spec, task.id]) for spec in specs for task in tasks}
    names = [name for name in COLUMNS if any(name in each for each in known.values())]
    kinds = [kind for kind in dict.fromkeys(task.kind for task in tasks) if kind]
    lines = []
    for spec in specs:
        for kind in (ALL, *kinds) if len(kinds) > 1 else (ALL,):
            own = [task for task in tasks if kind in (ALL, task.kind)]
            held = [rows[spec, task.id] for task in own]
            took = [row["seconds"] for row in held if "seconds" in row]
            lines.append(
                {
                    "method": spec,
                    "kind": kind,
                    "edits": len(own),
                    "failed": sum("error" in row for row in held),
                    "figures": {name: mean([known[spec, task.id].get(name) for task in own]) for name in names},
                    "seconds": sum(took) / len(took) if took else float("nan"),
                }
            )
    return lines


def as_csv(lines: Sequence[dict], told: Mapping[str, object]) -> str:
    """A row a line, with the circumstances; what is missing is counted and left empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = list(lines[0]["figures"])
    heads = [f"{name}{ending}" for name in names for ending in ("", "_low", "_high", "_missing")]
    writer.writerow([*told, "method", "kind", "edits", "failed", *heads, "seconds"])
    for line in lines:
        cells = []
        for name in names:
            *numbers, count = line["figures"][name]
            digits = COLUMNS[name].digits + 1
            cells += [f"{number:.{digits}f}" if count else "" for number in numbers] + [line["edits"] - count]
        own = [line[name] for name in ("method", "kind", "edits", "failed")]
        writer.writerow([*told.values(), *own, *cells, f"{line['seconds']:.3f}"])
    return out.getvalue()


def as_markdown(lines: Sequence[dict], told: Mapping[str, object], title: str) -> str:
    """All edits first, then kind by kind, then what the columns are."""
    parts = [f"# {title}", "", *(f"- {name}: {value}" for name, value in told.items()), ""]
    kinds = list(dict.fromkeys(line["kind"] for line in lines))
    for kind in kinds:
        own = [line for line in lines if line["kind"] == kind]
        parts += [f"## {kind}: {own[0]['edits']} edits" if kind != ALL else f"## All {own[0]['edits']} edits", ""]
        names = [name for name, found in own[0]["figures"].items() if any(line["figures"][name][3] for line in own)]
        titles = ["method", *(COLUMNS[name].title for name in names), "failed", "s/edit"]
        parts += [row_of(titles), row_of(["---"] * len(titles))]
        for line in own:
            cells = [cell(name, line["figures"][name], line["edits"]) for name in names]
            parts.append(row_of([line["method"], *cells, str(line["failed"]), f"{line['seconds']:.2f}"]))
        parts.append("")
    parts += [
        "Means with their 95 % bootstrap intervals; “of N” where an edit has no such figure.",
        *_ceiling(lines),
        "",
    ]
    named = [name for name in lines[0]["figures"]]
    parts += [f"- {COLUMNS[name].title}: {COLUMNS[name].said}" for name in named]
    return "\n".join(parts) + "\n"


def _ceiling(lines: Sequence[dict]) -> list[str]:
    """How far a judge that errs, too, lets an edit come: as it is measured, where the truth is among the methods."""
    if "s" not in lines[0]["figures"]:
        return []
    truth = next((line for line in lines if (line["method"], line["kind"]) == ("re-render", ALL)), None)
    if truth is None:
        return [
            "The judge errs, too: docs/training.md#the-judge has how often, the method re-render how much it is here."
        ]
    s, p = (cell(name, truth["figures"][name], truth["edits"]) for name in ("s", "p"))
    return [f"re-render is the truth: what its S {s} and P {p} lack of 1 is the judge's error and the autoencoder's."]


def cell(name: str, found: Mean, edits: int) -> str:
    """ "0.912 [0.893, 0.930]", and of how many, where some are missing."""
    return interval(found, edits, COLUMNS[name].digits)


def interval(found: Mean, edits: int, digits: int) -> str:
    *numbers, count = found
    if not count:
        return "–"
    at, low, high = (f"{number:.{digits}f}" for number in numbers)
    return f"{at} [{low}, {high}]" + f" of {count}" * (count < edits)


def row_of(cells: Sequence[str]) -> str:
    return "| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |"
