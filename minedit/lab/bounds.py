"""Does a Triton kernel read or write beyond its tensors? Watched in Triton's interpreter, address by address.

An address that is not masked away must lie between the first and the last number of one of the launch's tensors: the
view that was handed over, not the memory that it is cut out of. So that one's end is not another's beginning, a launch
works on copies that lie apart. On a GPU such an access reads what lies there, unseen, or ends the process. What passes:
the gaps of a view, and its neighbour in the same memory.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import triton
from torch import Tensor
from triton.runtime import interpreter

from minedit.attention.rules import Attend
from minedit.config import MineditError
from minedit.lab.traps import memory

GUARD = 2**20  # bytes before and behind each tensor's memory
NAMES = {  # of the interpreter's doors to memory: where they have their mask
    "create_masked_load": ("loads", 1),
    "create_masked_store": ("stores", 2),
    "create_atomic_rmw": ("updates", 3),
    "create_atomic_cas": ("updates", None),
}


class OutOfBounds(Exception):
    """Raised in place of the first access beyond; str() is one line."""


def watched(attend: Attend) -> Attend:
    """The function, which raises OutOfBounds. Raises MineditError where Triton does not interpret."""
    if not triton.knobs.runtime.interpret:
        raise MineditError(
            "bounds are watched in Triton's interpreter: set TRITON_INTERPRET=1 before minedit is imported"
        )

    @functools.wraps(attend)
    def call(*args: object, **asked: object) -> object:
        with _watching() as faults:
            try:
                found = attend(*args, **asked)
            except Exception as error:
                if faults:
                    raise OutOfBounds(faults[0]) from error
                raise
        if faults:  # the function went on nevertheless
            raise OutOfBounds(faults[0])
        return found

    return call


@contextmanager
def _watching() -> Iterator[list[str]]:
    """Launches are watched; what is found is in the list."""
    faults: list[str] = []
    spans: list[tuple[int, int, str]] = []  # first byte, byte behind the last, name: of the launch's tensors
    begin, end = interpreter.GridExecutor._init_args_hst, interpreter.GridExecutor._restore_args_dev
    copies: dict[int, tuple[Tensor, Tensor]] = {}  # by address: bytes, and their copy between two GUARDs
    host: list = []  # the arguments on the host, which are copied

    def launched(self: interpreter.GridExecutor, args: tuple, kwargs: dict) -> tuple[list, dict]:
        placed, named = host[:] = begin(self, args, kwargs)
        copies.clear()
        placed = [_apart(x, copies) for x in placed]
        named = {name: _apart(x, copies) for name, x in named.items()}
        given = [*zip(self.arg_names[: len(placed)], placed, strict=True), *named.items()]
        spans[:] = [span for name, x in given for span in _spans(name, x)]
        return placed, named

    def returned(self: interpreter.GridExecutor, args: tuple, placed: list, kwargs: dict, named: dict) -> None:
        for own, copy in copies.values():
            own.copy_(copy[GUARD : GUARD + len(own)])
        end(self, args, host[0], kwargs, host[1])

    def door(name: str) -> object:
        what, at = NAMES[name]
        inside = getattr(interpreter.InterpreterBuilder, name)

        def call(self: interpreter.InterpreterBuilder, ptrs: interpreter.TensorHandle, *rest: object) -> object:
            fault = _fault(what, ptrs, None if at is None else rest[at - 1].data, spans)
            if fault:
                faults.append(fault)
                raise OutOfBounds(fault)
            return inside(self, ptrs, *rest)

        return call

    doors = {name: door(name) for name in NAMES}
    with mock.patch.multiple(interpreter.GridExecutor, _init_args_hst=launched, _restore_args_dev=returned):
        with mock.patch.multiple(interpreter.InterpreterBuilder, **doors):
            yield faults


def _apart(x: object, copies: dict[int, tuple[Tensor, Tensor]]) -> object:
    """A tensor in a copy of its memory, tensors that share it in one copy; what is no tensor as it is."""
    if not isinstance(x, Tensor):
        return x
    storage = x.untyped_storage()
    if storage.data_ptr() not in copies:
        own = memory(x)
        copy = torch.empty(len(own) + 2 * GUARD, dtype=torch.uint8)
        copy[GUARD : GUARD + len(own)] = own
        copies[storage.data_ptr()] = own, copy
    place = copies[storage.data_ptr()][1].untyped_storage()
    offset = GUARD // x.element_size() + x.storage_offset()
    return torch.empty(0, dtype=x.dtype).set_(place, offset, x.shape, x.stride())


def _spans(name: str, x: object) -> Iterator[tuple[int, int, str]]:
    x = getattr(x, "base", x)  # of a descriptor, or of a tensor that triton took for another dtype
    if isinstance(x, tuple):
        for each in x:
            yield from _spans(name, each)
    elif isinstance(x, Tensor) and x.numel():
        last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        yield x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size(), name


def _fault(
    what: str, ptrs: interpreter.TensorHandle, mask: np.ndarray | None, spans: list[tuple[int, int, str]]
) -> str | None:
    """In one line, where some address lies in none of the spans."""
    at = np.asarray(ptrs.data).astype(np.int64)
    at = at.ravel() if mask is None else at[np.broadcast_to(mask, at.shape).astype(bool)]
    size = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
    inside = np.zeros(at.shape, bool)
    for first, end, _ in spans:
        inside |= (at >= first) & (at + size <= end)
    if inside.all():
        return None
    address = int(at[~inside][0])
    away = {name: first - address if address < first else address + size - end for first, end, name in spans}
    nearest = min(away, key=away.get)
    side = "before" if any(name == nearest and address < first for first, _, name in spans) else "behind"
    line = _line()
    lies = f"one of them {away[nearest]} bytes {side} {nearest}" if spans else "and no tensor was given"
    return f"{line} {what} {int((~inside).sum())} of {len(at)} numbers beyond the launch's tensors, {lies}"


def _line() -> str:
    """File and line of the kernel that is being interpreted."""
    ours, theirs = Path(__file__).name, Path(triton.__file__).parent
    frames = [
        f for f in traceback.extract_stack() if theirs not in Path(f.filename).parents and Path(f.filename).name != ours
    ]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
