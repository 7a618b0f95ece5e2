"""Where every benchmark leaves its figures: rows appended to the CSV beside it."""

from __future__ import annotations

import csv
from pathlib import Path


def append(path: Path, rows: list[dict]) -> None:
    """Add the rows, under a header where the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if new:
            writer.writeheader()
        writer.writerows(rows)
