"""Rows that stay: a line of JSON for each edit that was measured. A run that was killed goes on behind the last.

What was being written when it was killed, a last line without an end, is cut off and made again. Of several processes
each writes a file of its own, a `part`, whose rows go to the first's file in the end, or when the next run begins.
"""

from __future__ import annotations

import fcntl
import glob
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from minedit.config import MineditError, foreign_json, shown

Row = dict[str, object]
Key = tuple[str, str]  # method, as it was asked for, and the edit's id


class Rows:
    """The rows of a file that were made in the same circumstances (model, steps ...); further ones are appended."""

    def __init__(self, path: Path, file: BinaryIO, told: Mapping[str, object]) -> None:
        self.path, self.file, self.told = path, file, json.loads(json.dumps(told))
        self.found: dict[Key, Row] = {}

    def add(self, row: Row) -> None:
        """Written at once, whole."""
        row = self.told | row
        self.file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        self.file.flush()
        self.keep(row)

    def keep(self, row: Row) -> None:
        if self.told.items() <= row.items():
            self.found[str(row["method"]), str(row["id"])] = row

    def take(self) -> None:
        """The rows of all parts, which are removed. Raises MineditError where a process still writes one."""
        parts = sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.rank*"))
        held = set(self.path.read_bytes().splitlines()) if parts else set()  # of a run killed while it took them, some
        for each in parts:
            with each.open("rb") as file:
                _alone(file, each)
                for line, row in _read(file.read(), each):
                    if line not in held:
                        self.file.write(line + b"\n")
                        self.keep(row)
                self.file.flush()
            each.unlink()

    def of(self, key: Key, same: Mapping[str, object]) -> Row | None:
        """The row of a method and an edit, if that had these prompts and seed."""
        row = self.found.get(key)
        return row if row and same.items() <= row.items() else None


def part(path: Path, rank: int) -> Path:
    """The file of one of several processes, beside that of the first."""
    return path.with_name(f"{path.name}.rank{rank}")


@contextmanager
def rows(path: Path, told: Mapping[str, object], beside: Path | None = None) -> Iterator[Rows]:
    """told: the circumstances that a row must have been made in. Raises MineditError for a file that holds no rows.

    beside: of a part, the first process's file, whose rows are known too.
    No two runs may write into one file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise MineditError(f"cannot write {shown(path, 300)} ({error.strerror}); choose another --out") from error
    with file:
        _alone(file, path)
        found = Rows(path, file, told)
        if beside is not None:
            for _, row in _read(beside.read_bytes(), beside):
                found.keep(row)
        file.seek(0)
        whole = file.read()
        for _, row in _read(whole, path):
            found.keep(row)
        file.truncate(whole.rfind(b"\n") + 1)
        if beside is None:
            found.take()
        yield found


def _alone(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise MineditError(f"another run writes {shown(path, 300)}; wait for it, or choose another --out") from error
    except OSError:
        pass  # a file system without locks


def _read(whole: bytes, path: Path) -> Iterator[tuple[bytes, Row]]:
    """Its whole lines, and the rows that they are."""
    for at, line in enumerate(whole[: whole.rfind(b"\n") + 1].splitlines(), 1):
        with suppress(UnicodeDecodeError):
            yield line, _row(line.decode(), path, at)


def _row(line: str, path: Path, at: int) -> Row:
    try:
        row = foreign_json(line)
        if not isinstance(row, dict) or not {"method", "id"} <= row.keys():
            raise ValueError("it is no row of an evaluation")
    except ValueError as error:
        fault = f"{shown(path, 300)} line {at} cannot be read ({shown(error)})"
        raise MineditError(f"{fault}; expected what minedit evaluate writes; choose another --out") from error
    return row
