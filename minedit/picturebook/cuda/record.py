"""A whole step of training as one launch: a CUDA graph, and the random numbers that it draws anew at every replay."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from minedit.speed.graphs import cuda_graph


class Dice:
    """The device's random numbers; another generator after a recording that failed, which may spoil the first."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device, self.seed = device, seed
        self.anew()

    def anew(self) -> None:
        self.generator, self.seed = torch.Generator(self.device).manual_seed(self.seed), self.seed + 1

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)


def recorded(run: Callable[[], None], dice: Dice) -> Callable[[], object]:
    """`run` as one launch, on a CUDA GPU and where it can be recorded; `run` itself elsewhere. Runs it a few times."""
    if dice.device.type != "cuda":
        return run
    began = time.monotonic()
    try:
        replay, _ = cuda_graph(run, [dice.generator])
        replay()
        torch.cuda.synchronize()
    except Exception as error:  # whatever cannot be recorded, on a GPU nobody has seen yet: the plain step is right too
        print(f"no CUDA graph, steps one by one ({type(error).__name__}: {str(error)[:300]})", flush=True)
        dice.anew()
        return run
    print(f"a step is recorded as a CUDA graph, in {time.monotonic() - began:.1f} s", flush=True)
    return replay
