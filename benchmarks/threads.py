"""How long an edit of the embedded model takes alone, and beside a program that uses a core.

    python benchmarks/threads.py [--repeats 3]

Every way runs in turn, each edit in a process of its own, and a row is the median of what the edit says it took:
as minedit chooses its threads, and with one and two by `--threads`. Rows go to benchmarks/threads.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch
from table import append

WAYS = {"chosen": [], "one": ["--threads", "1"], "two": ["--threads", "2"]}
EDIT = ["-m", "minedit", "edit", "a boy in the park", "a sitting boy in the park", "--seed", "16"]


def seconds(way: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, *EDIT, *way, "--out", folder], check=True, capture_output=True)
        (path,) = Path(folder).glob("*edit.json")
        return json.loads(path.read_text())["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    took: dict[tuple[str, str], list[float]] = {}
    for _ in range(repeats):
        for beside in ("nothing", "a busy program"):
            for name, way in WAYS.items():
                busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"])] if beside != "nothing" else []
                try:
                    took.setdefault((beside, name), []).append(seconds(way))
                finally:
                    for program in busy:
                        program.kill()
                        program.wait()
    told = {"date": date.today().isoformat(), "torch": torch.__version__, "cores": os.cpu_count(), "runs": repeats}
    rows = []
    for (beside, name), times in took.items():
        middle, usual = statistics.median(times), statistics.median(took["nothing", "two"])
        rows.append({**told, "beside": beside, "threads": name, "seconds": middle, "ratio": f"{middle / usual:.2f}"})
        print(f"{beside:15} {name:7} {middle:6.2f} s  {middle / usual:5.2f} x two threads alone")
    append(Path(__file__).with_suffix(".csv"), rows)


if __name__ == "__main__":
    main()
