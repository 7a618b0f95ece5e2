"""A tensor in a file: where it lies, and reading it from there. In: a path and numbers. Out: a tensor."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from minedit.config import MineditError

PIECE = 2**20  # elements converted at once
AXES = 8  # of a tensor, at most
STAYS = 2**28  # bytes of a file whose tensors stay in it; those of smaller ones are read, and cannot be lost later


class Refused(Exception):
    """What a file has that is not taken, as the words that follow its name."""


class Files(dict[Path, FileIO]):
    """Files that are open, so that all their tensors are of one state of them; closed at the end of a `with`."""

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.values():
            file.close()


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: `offset` in bytes, `stride` in elements."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def repeats(self) -> bool:
        """Whether it has more numbers than are stored: a file of a few bytes may name gigabytes."""
        return math.prod(self.shape) > extent(self.shape, self.stride)

    def read(self, dtype: torch.dtype, files: dict[Path, FileIO] | None = None) -> Tensor:
        """The tensor on the CPU, contiguous. Raises MineditError where it cannot be read, or its file became shorter.

        It has memory of its own, filled piece by piece. Only with `files`, those open so far, and in its own dtype, it
        stays in a file of STAYS or more: pages come into memory as they are used, and writing to it changes a copy of
        them. Whoever cuts such a file short while it is in use ends the process (SIGBUS); replacing it is safe.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=dtype)
        file = None if files is None else files.get(self.path)
        try:
            file = file or FileIO(self.path)
            if files is not None:
                files[self.path] = file
            size = os.fstat(file.fileno()).st_size
            if size < self.offset + extent(self.shape, self.stride) * self.dtype.itemsize:
                raise EOFError
            stays = files is not None and size >= STAYS and dtype == self.dtype
            return self._mapped(file) if stays and not self._loose else self._read(file, dtype)
        except OSError as error:
            raise MineditError(f"{self.path} cannot be read any more ({error.strerror or error}); try again") from error
        except (EOFError, ValueError) as error:  # ValueError: mmap's
            raise MineditError(f"{self.path} has become shorter while it was read; try again") from error
        finally:
            if files is None and file is not None:
                file.close()

    @property
    def _loose(self) -> bool:
        return self.stride != contiguous(self.shape)

    def _read(self, file: FileIO, dtype: torch.dtype) -> Tensor:
        if self._loose:
            row = self._row(file, 0, extent(self.shape, self.stride))
            return row.as_strided(self.shape, self.stride).to(dtype).contiguous()
        if dtype == self.dtype:
            return self._row(file, 0, math.prod(self.shape)).view(self.shape)
        out, done = torch.empty(self.shape, dtype=dtype), 0
        for piece in out.view(-1).split(PIECE):
            piece.copy_(self._row(file, done, len(piece)))
            done += len(piece)
        return out

    def _row(self, file: FileIO, first: int, count: int) -> Tensor:
        """`count` elements of the file from the tensor's element `first` on, [count]."""
        row = torch.empty(count, dtype=self.dtype)
        rest = memoryview(row.view(torch.uint8).numpy())
        file.seek(self.offset + first * self.dtype.itemsize)
        while len(rest):
            got = file.readinto(rest)
            if not got:
                raise EOFError
            rest = rest[got:]
        return row

    def _mapped(self, file: FileIO) -> Tensor:
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        count = math.prod(self.shape)
        length = self.offset - start + count * self.dtype.itemsize
        pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
        return torch.frombuffer(pages, dtype=self.dtype, count=count, offset=self.offset - start).view(self.shape)


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The stride of a tensor without gaps. Raises ValueError for more than AXES axes, as `extent` does."""
    _few(shape)
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from a tensor's first to behind its last."""
    _few(shape)
    return 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def _few(shape: Sequence[int]) -> None:
    if len(shape) > AXES:
        raise ValueError(f"it has a tensor of {len(shape)} axes, expected {AXES} at most")
