"""Where recorded values go: memory, or a .safetensors file that is laid out before the run and filled while it goes on.

Either has a budget in bytes, of a file with its header: what does not fit is refused before anything is computed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from minedit.config import MineditError, foreign_json, shown
from minedit.image import place
from minedit.record.axes import Values

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
AXES = "minedit.axes"  # in a file's metadata: axes, labels and map of each name


@dataclass(frozen=True, eq=False)
class Planned:
    """What is to be recorded under one name."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    axes: tuple[str, ...]
    labels: dict[str, tuple]
    map: tuple[int, int] | None
    words: dict[str, tuple[str, ...]]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Memory:
    """Tensors on a device."""

    def __init__(self, budget: int | None, device: torch.device) -> None:
        self.budget, self.device, self.taken = budget, device, 0

    def check(self, planned: Mapping[str, Planned]) -> int:
        """What is needed, in bytes. Raises MineditError where it does not fit."""
        need = sum(each.bytes for each in planned.values())
        refuse(self.taken + need, self.budget, planned)
        return need

    def lay_out(self, planned: Mapping[str, Planned]) -> dict[str, Values]:
        """Values of NaN, to be filled. Raises MineditError where they do not fit."""
        self.taken += self.check(planned)
        tensors = {
            name: torch.full(each.shape, torch.nan, dtype=each.dtype, device=self.device)
            for name, each in planned.items()
        }
        return {name: _values(tensors[name], each) for name, each in planned.items()}

    def close(self, done: bool) -> None:
        """Nothing is to be done."""


class File:
    """One .safetensors file, which appears when all is done. It holds one run."""

    def __init__(self, budget: int | None, path: str | os.PathLike) -> None:
        self.budget, self.path = budget, place(path)
        self.part = self.path.parent / f".{self.path.name}.{os.getpid()}.part"
        self.laid_out = False

    def check(self, planned: Mapping[str, Planned]) -> tuple[bytes, dict[str, int], int]:
        """(the file's beginning, where each name's bytes begin, how long it is). Raises MineditError."""
        header, at, first = {"__metadata__": {AXES: json.dumps({name: _told(x) for name, x in planned.items()})}}, 0, {}
        for name, each in sorted(planned.items(), key=lambda each: -each[1].dtype.itemsize):  # so that all are aligned
            first[name] = at
            offsets = [at, at := at + each.bytes]
            header[name] = {"dtype": NAMES[each.dtype], "shape": list(each.shape), "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        begin = len(text).to_bytes(8, "little") + text
        refuse(len(begin) + at, self.budget, planned)
        return begin, {name: len(begin) + offset for name, offset in first.items()}, len(begin) + at

    def lay_out(self, planned: Mapping[str, Planned]) -> dict[str, Values]:
        import numpy as np

        if self.laid_out:
            raise MineditError(f"{shown(self.path)} holds one run; record the next in a `with` and a file of its own")
        begin, first, size = self.check(planned)
        self.laid_out = True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.part.open("wb") as file:
                file.write(begin)
                file.truncate(size)
                if hasattr(os, "posix_fallocate"):  # a full disk is said here, not by a signal later
                    os.posix_fallocate(file.fileno(), 0, size)
            found = {}
            for name, each in planned.items():
                flat = torch.from_numpy(np.memmap(self.part, np.uint8, "r+", first[name], (each.bytes,)))
                found[name] = _values(flat.view(each.dtype).view(each.shape).fill_(torch.nan), each)
        except OSError as error:
            self.close(done=False)
            fault = f"cannot write {shown(self.path, 300)} ({error.strerror or error})"
            raise MineditError(f"{fault}; choose another place, or make room") from error
        return found

    def close(self, done: bool) -> None:
        """done: whether the file is to stay."""
        with suppress(OSError):
            if done and self.laid_out:
                self.part.replace(self.path)
            else:
                self.part.unlink(missing_ok=True)


def refuse(need: int, budget: int | None, planned: Mapping[str, Planned]) -> None:
    """Raises MineditError where there is less than what is needed."""
    if budget is None or need <= budget:
        return
    name, most = max(planned.items(), key=lambda each: each[1].bytes)
    what = f"the recording takes {need:,} bytes, the budget is {budget:,}; most of it, {most.bytes:,}, is {name}"
    raise MineditError(f"{what} {list(most.shape)}; choose fewer names, steps=, rows=, heads=, words=, or dtype=")


def read(path: str | os.PathLike) -> dict[str, Values]:
    """The values of a file that a recording was written to. Raises MineditError for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            told = foreign_json((file.metadata() or {})[AXES])
            return {name: _read(file.get_tensor(name), told[name]) for name in file.keys()}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        what = f"{shown(path, 300)} is no recording ({shown(error, 200)})"
        raise MineditError(f"{what}; expected a file that recorded(to=...) wrote") from error


def _read(tensor: Tensor, told: dict) -> Values:
    labels = {axis: tuple(each) for axis, each in told["labels"].items()}
    words = {row: tuple(each) for row, each in told["words"].items()}
    return Values(tensor, tuple(told["axes"]), labels, told["map"] and tuple(told["map"]), words)


def _told(each: Planned) -> dict:
    return {"axes": each.axes, "labels": each.labels, "map": each.map, "words": each.words}


def _values(tensor: Tensor, each: Planned) -> Values:
    return Values(tensor, each.axes, each.labels, each.map, each.words)
