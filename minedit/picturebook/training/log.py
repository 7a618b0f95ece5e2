"""The figures of a training, as a table: `log` adds a row, `forget` takes back those of steps that are taken again."""

import csv
from pathlib import Path

from minedit.image import write_whole
from minedit.picturebook.training.workers import worker


def forget(path: Path, step: int) -> None:
    """Leave out the rows of steps after `step`, which a run that was stopped between two saves takes again."""
    rows = _rows(path) if worker() == 0 else []
    kept = [row for row in rows if int(row["step"]) <= step]
    if len(kept) < len(rows):
        _write_rows(path, list(rows[0]), kept)


def log(path: Path, row: dict[str, float]) -> None:
    """Append a row; columns that appear only in some rows stay empty in the others."""
    rows = _rows(path)
    columns = list(dict.fromkeys([*(rows[0] if rows else []), *row]))
    if rows and list(rows[0]) == columns:
        with path.open("a", newline="") as file:
            csv.DictWriter(file, columns).writerow(row)
    else:
        _write_rows(path, columns, [*rows, row])


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write_rows(path: Path, columns: list[str], rows: list[dict]) -> None:
    """The whole table, or what was there before."""

    def write(part: Path) -> None:
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)
