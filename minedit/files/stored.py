"""A tensor in a file: where it lies, and reading it from there. In: a path and numbers. Out: a tensor."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from minedit.config import MineditError

PIECE = 2**20  # elements converted at once
AXES = 8  # of a tensor, at most
SAMPLE = 64  # numbers that tell a tensor from others
STAYS = 2**28  # bytes of a file whose tensors stay in it; those of smaller ones are read, and cannot be lost later
WINDOW = 2**28  # bytes of a file mapped at once: each map holds a file open, and a process may open 256 or 1024


class Refused(Exception):
    """What a file has that is not taken, as the words that follow its name."""


class Files(dict[Path, FileIO]):
    """Files that are open, so that all their tensors are of one state of them; closed at the end of a `with`."""

    def __init__(self) -> None:
        self.maps: dict[tuple[Path, int, int], mmap.mmap] = {}  # by where they begin, and their bytes

    def __enter__(self) -> Files:
        return self

    def __missing__(self, path: Path) -> FileIO:
        self[path] = FileIO(path)
        return self[path]

    def kept(self) -> tuple[Kept, ...]:
        """The files that tensors stay in."""
        return tuple(Kept.of(path, self[path]) for path in dict.fromkeys(path for path, *_ in self.maps))

    def __exit__(self, *_: object) -> None:
        for file in self.values():
            file.close()


@dataclass(frozen=True)
class Kept:
    """A file that tensors stay in, as it was when they were read."""

    path: Path
    identity: tuple[int, int]  # its device's number, its own: another file at that path has others
    size: int
    written: int  # when, in nanoseconds

    @classmethod
    def of(cls, path: Path, file: FileIO) -> Kept:
        found = os.fstat(file.fileno())
        return cls(path, (found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns)

    def check(self) -> None:
        """Raises MineditError where it was written to, or cut short, since; one that was moved or replaced is whole."""
        with suppress(OSError):
            now = os.stat(self.path)
            same = (now.st_dev, now.st_ino) == self.identity
            if same and (now.st_size, now.st_mtime_ns) != (self.size, self.written):
                what = "cut short" if now.st_size < self.size else "written to"
                raise MineditError(f"{self.path} was {what} while its model was in use; load the model again")


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

    def read(self, dtype: torch.dtype, files: Files | None = None) -> Tensor:
        """The tensor on the CPU, contiguous. Raises MineditError where it cannot be read, or its file became shorter.

        It has memory of its own, filled piece by piece. Only with `files`, those open so far, and in its own dtype, it
        stays in a file of STAYS or more: pages come into memory as they are used, and writing to it changes a copy of
        them. Whoever cuts such a file short while it is in use ends the process (SIGBUS); replacing it is safe, and
        `Kept.check` finds what was cut short before it is used again.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=dtype)
        file = None
        try:
            file = FileIO(self.path) if files is None else files[self.path]
            size = os.fstat(file.fileno()).st_size
            if size < self.offset + extent(self.shape, self.stride) * self.dtype.itemsize:
                raise EOFError
            stays = files is not None and size >= STAYS and dtype == self.dtype
            return self._mapped(files, size) if stays and not self._loose else self._read(file, dtype)
        except OSError as error:
            raise MineditError(f"{self.path} cannot be read any more ({error.strerror or error}); try again") from error
        except (EOFError, ValueError) as error:  # ValueError: mmap's
            raise MineditError(f"{self.path} has become shorter while it was read; try again") from error
        finally:
            if files is None and file is not None:
                file.close()

    def sample(self, files: Mapping[Path, FileIO]) -> bytes:
        """Its name-giving bytes: some numbers at its beginning and from its middle on, of files that are open."""
        count = extent(self.shape, self.stride)
        try:
            rows = [self._row(files[self.path], at, min(SAMPLE, count - at)) for at in (0, count // 2) if count]
        except (OSError, EOFError) as error:
            raise MineditError(f"{self.path} has become shorter while it was read; try again") from error
        return b"".join(row.view(torch.uint8).numpy().tobytes() for row in rows)

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

    def _mapped(self, files: Files, size: int) -> Tensor:
        count = math.prod(self.shape)
        end = self.offset + count * self.dtype.itemsize
        start = self.offset - self.offset % WINDOW
        length = min(WINDOW, size - start)
        if end > start + length:  # across two windows: a map of its own
            start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
            length = end - start
        key = self.path, start, length
        if key not in files.maps:
            number = files[self.path].fileno()
            files.maps[key] = mmap.mmap(number, length, access=mmap.ACCESS_COPY, offset=start)
        return torch.frombuffer(files.maps[key], dtype=self.dtype, count=count, offset=self.offset - start).view(
            self.shape
        )


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The stride of a tensor without gaps. Raises ValueError for more than AXES axes, as `extent` does."""
    _few(shape)
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from a tensor's first to behind its last."""
    _few(shape)
    return 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def fingerprint(parts: Mapping[str, Mapping[str, Stored]], files: Mapping[Path, FileIO]) -> str:
    """Twelve hexadecimal digits of names, types, shapes and samples of all tensors: others for other weights."""
    digest = hashlib.sha256()
    for part, tensors in sorted(parts.items()):
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{part}.{name} {tensor.dtype} {list(tensor.shape)}\n".encode() + tensor.sample(files))
    return digest.hexdigest()[:12]


def _few(shape: Sequence[int]) -> None:
    if len(shape) > AXES:
        raise ValueError(f"it has a tensor of {len(shape)} axes, expected {AXES} at most")
