"""Where every benchmark leaves its figures: rows appended to the CSV beside it."""

from __future__ import annotations

import csv
from pathlib import Path


def append(path: Path, rows: list[dict]) -> None:
    """Add the rows, under a header where the file is new. Raises SystemExit where the file has other columns."""
    new = not path.exists()
    if not new and next(csv.reader(path.open(newline="")), []) != [*rows[0]]:
        kept = path.with_suffix(".new.csv")
        append(kept, rows)
        raise SystemExit(f"{path} has other columns; the rows went to {kept}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if new:
            writer.writeheader()
        writer.writerows(rows)
