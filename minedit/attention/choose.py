"""The attention function that a name stands for: "eager", "sdpa", "triton", "auto", or a user's "module:function"."""

from __future__ import annotations

import importlib

import torch

from minedit.attention.eager import eager
from minedit.attention.rules import Attend, Edit, Rule
from minedit.attention.sdpa import sdpa
from minedit.config import MineditError


def resolve(name: str, device: torch.device | str = "cpu") -> str:
    """What "auto" stands for on `device`: "triton" on a GPU where it runs, else "sdpa". Other names: themselves."""
    if name != "auto":
        return name
    if torch.device(device).type != "cuda":
        return "sdpa"
    try:
        _triton(torch.device(device))
    except MineditError:
        return "sdpa"
    return "triton"


def backend(name: str, device: torch.device | str = "cpu") -> Attend:
    """The attention function for `device` called "eager", "sdpa", "triton", "auto" or, a user's own, "module:function".

    Raises MineditError for any other name, for a function that cannot be imported, and for triton where it cannot run.
    """
    name = resolve(name, device)
    known = {"eager": eager, "sdpa": sdpa}
    if name in known:
        return known[name]
    if name == "triton":
        return _triton(torch.device(device))
    module, colon, function = name.partition(":")
    if not colon:
        choices = ", ".join((*known, "triton"))
        raise MineditError(f"attention {name!r} is unknown; expected {choices}, auto or module:function")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever a module that is being written raises
        fault = f"cannot import {module!r} ({type(error).__name__}: {error})"
        raise MineditError(f"attention {name!r}: {fault}; expected module:function, its folder on the path") from error
    if not callable(found):
        raise MineditError(f"attention {name!r}: {module!r} has no function {function!r}; expected module:function")
    return found


def _triton(device: torch.device) -> Attend:
    """triton.py is imported only here: without the package triton it cannot be. It is tried, too."""
    try:
        kernels = importlib.import_module("minedit.attention.triton")
    except Exception as error:
        raise MineditError(f"attention 'triton': {error}; install the package triton, or use sdpa") from error
    if device.type != "cuda" and not kernels.INTERPRETED:
        hint = "use sdpa, or set TRITON_INTERPRET=1 to try the kernel slowly"
        raise MineditError(f"attention 'triton' needs a CUDA GPU, the device is {str(device)!r}; {hint}")
    x = torch.linspace(-1, 1, 2 * 16 * 16, device=device).reshape(2, 1, 16, 16)
    half = torch.full((16,), 0.5, device=device)
    rule = Rule(edits=(Edit(1, 0, None, half, torch.zeros_like(half), half),))
    try:
        calls = [kernels.attend(x, x, x, rule) for _ in range(2)]  # the second goes the short way to the kernel
        right = all(torch.allclose(found, eager(x, x, x, rule), atol=1e-4) for found in calls)
    except Exception as error:  # no C compiler, a GPU that this Triton does not know ...
        raise MineditError(f"attention 'triton' does not run here: {error}; use sdpa") from error
    if not right:
        raise MineditError(
            "attention 'triton' gives other numbers than eager here; use sdpa, see minedit kernels check"
        )
    return kernels.attend
