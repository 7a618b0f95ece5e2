"""A tensor in a file: where it lies, and reading it from there. In: a path and numbers. Out: a tensor."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minedit.config import MineditError

LIMIT = 2 * 2**20  # bytes that a file may spend on saying what is in it: seven times what the largest of SD-v1 does
PIECE = 2**20  # elements read at once: what fits a cache


class Refused(Exception):
    """What a file has that is not taken, as the words that follow its name."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: `offset` in bytes, `stride` in elements."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self, dtype: torch.dtype) -> Tensor:
        """The tensor on the CPU, contiguous, in memory of its own. Raises MineditError where it cannot be read.

        The file is not mapped: its pages would count beside the copy, and sums over them round otherwise, unaligned.
        """
        out = torch.empty(self.shape, dtype=dtype)
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                if self.stride != contiguous(self.shape):
                    row = self._next(file, torch.empty(extent(self.shape, self.stride), dtype=self.dtype))
                    return out.copy_(row.as_strided(self.shape, self.stride))
                for piece in out.view(-1).split(PIECE):
                    if dtype == self.dtype:
                        self._next(file, piece)
                    else:
                        piece.copy_(self._next(file, torch.empty(len(piece), dtype=self.dtype)))
        except OSError as error:
            raise MineditError(f"{self.path} cannot be read any more ({error.strerror or error}); try again") from error
        return out

    def _next(self, file: io.BufferedReader, row: Tensor) -> Tensor:
        if row.nbytes and file.readinto(row.view(torch.uint8).numpy()) != row.nbytes:
            raise MineditError(f"{self.path} has become shorter while it was read; try again")
        return row


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The stride of a tensor without gaps."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from a tensor's first to behind its last."""
    return 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def shown(name: object) -> str:
    """A name out of a file, fit for a line on a terminal."""
    text = str(name)[:120]
    return text if text.isprintable() else ascii(text)
