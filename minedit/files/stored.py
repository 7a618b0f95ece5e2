"""A tensor in a file: where it lies, and reading it from there. In: a path and numbers. Out: a tensor."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minedit.config import MineditError

LIMIT = 2 * 2**20  # bytes that a file may spend on saying what is in it: seven times what the largest of SD-v1 does
PIECE = 2**22  # elements converted at once
Files = dict[Path, mmap.mmap]


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

    def read(self, dtype: torch.dtype, files: Files | None = None) -> Tensor:
        """The tensor on the CPU, contiguous. Raises MineditError where it cannot be read.

        In its own dtype it stays in the file, whose pages come into memory as they are used; writing to it changes a
        copy of them. In another dtype it has memory of its own, filled piece by piece: pages in use count as memory.
        files: whole files mapped so far, for the tensors that stay there.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=dtype)
        if self.stride != contiguous(self.shape):
            row = self._mapped(0, extent(self.shape, self.stride))
            return row.as_strided(self.shape, self.stride).to(dtype).contiguous()
        if dtype == self.dtype:
            return self._mapped(0, math.prod(self.shape), files).view(self.shape)
        out, done = torch.empty(self.shape, dtype=dtype), 0
        for piece in out.view(-1).split(PIECE):
            piece.copy_(self._mapped(done, len(piece)))
            done += len(piece)
        return out

    def _mapped(self, first: int, count: int, files: Files | None = None) -> Tensor:
        """`count` elements of the file from the tensor's element `first` on, [count]."""
        offset = self.offset + first * self.dtype.itemsize
        start = 0 if files is not None else offset - offset % mmap.ALLOCATIONGRANULARITY
        length = 0 if files is not None else offset - start + count * self.dtype.itemsize  # 0: all of it
        try:
            pages = files.get(self.path) if files is not None else None
            if pages is None:
                with self.path.open("rb") as file:
                    pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
            if files is not None:
                files[self.path] = pages
            return torch.frombuffer(pages, dtype=self.dtype, count=count, offset=offset - start)
        except OSError as error:
            raise MineditError(f"{self.path} cannot be read any more ({error.strerror or error}); try again") from error
        except ValueError as error:  # beyond the file's end
            raise MineditError(f"{self.path} has become shorter while it was read; try again") from error


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
