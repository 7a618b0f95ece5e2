"""What looks at a run or changes it, beside its rules: held for one model in one thread, and nowhere in the model.

In: each value that has a name, as it comes up. Out: that value, or another. record/ makes taps; without one, an
attention layer asks a single time whether there is one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

GATES = "S"  # the weights of pixels of every cross-attention layer


@dataclass(frozen=True)
class Begun:
    """A run that pictures are drawn by, as it begins."""

    rows: tuple[str, ...]  # names of the pictures; the UNet has each without its prompt, then each with it
    prompts: tuple[str, ...]  # theirs
    negative: str
    steps: range  # those that are drawn
    sides: tuple[int, int]  # height, width of the latents


class Tap(Protocol):
    def photo(self, sides: tuple[int, int]) -> None:
        """A photograph is about to be encoded; height, width of its latents."""

    def foresee(self, begun: Begun) -> None:
        """A run that will begin so, before what goes before it is computed."""

    def begin(self, begun: Begun) -> None: ...

    def step(self, index: int, timestep: int) -> bool:
        """Whether anything inside the UNet is looked at in this step."""

    def wants(self, name: str, step: int) -> bool:
        """Whether a value that a method makes, such as GATES, is to be kept of this step."""

    def value(self, name: str, x: Tensor) -> Tensor:
        """A value of the run's pictures, or of the UNet's rows, by what the name is of."""

    def attend(self, site: object, attn: object) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
        """The attention function of a layer, tapped: of a Site and an Attn (rules.py), an Attend."""


_HELD: ContextVar[Mapping[tuple[int, int], Tap]] = ContextVar("taps")  # by thread and UNet; what is held never changes


def _key(unet: nn.Module) -> tuple[int, int]:
    return threading.get_ident(), id(root(unet))


def root(unet: nn.Module) -> nn.Module:
    """The UNet itself, of one that a ControlNet steers."""
    return unet._modules.get("unet", unet)


def tap_of(unet: nn.Module) -> Tap | None:
    """The tap of this UNet here, in this thread."""
    held = _HELD.get({})
    return held.get(_key(unet)) if held else None


@contextmanager
def holding(unet: nn.Module, tap: Tap | None) -> Iterator[None]:
    """None: no tap here, while it lasts."""
    token = _HELD.set({**_HELD.get({}), _key(unet): tap})
    try:
        yield
    finally:
        _HELD.reset(token)


def any_held() -> bool:
    """Whether this thread holds a tap of any model."""
    return bool(_HELD.get({}))
