"""Several processes, started by `torchrun`, that train a module, or measure edits, together: each its own data."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def together(backend: str, patience: timedelta | None = None) -> Iterator[None]:
    """Inside the block the processes that `torchrun` started, if it did, know of each other.

    patience: how long one waits for the others; None for torch's own, minutes.

    They part before Python ends: a thread of gloo that then still lets go of a tensor ends its process (SIGABRT).
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    import torch.distributed.nn  # noqa: F401 - later, its functions would keep the processes' group as a default

    dist.init_process_group(backend, timeout=patience)
    try:
        yield
    finally:
        dist.destroy_process_group()


def worker() -> int:
    """0 ... workers() - 1: which of the processes that train together this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def workers() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def first_worker_first() -> Iterator[None]:
    """The first worker goes through the block before the others, which find on disk what it made there."""
    if worker():
        dist.barrier()
    yield
    if workers() > 1 and not worker():
        dist.barrier()


def all_of(flag: bool) -> bool:
    """Whether it is so of every worker; waits for all."""
    if workers() == 1:
        return flag
    found = torch.tensor(int(flag))
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return bool(found)


@torch.no_grad()
def add_up(tensors: list[Tensor]) -> None:
    """Put the sum of all workers' tensors in the place of each one's own."""
    if workers() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])  # one message instead of hundreds
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
