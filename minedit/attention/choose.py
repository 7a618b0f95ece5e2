"""The attention function that a name stands for: "eager", "sdpa", "triton", "auto", or a user's own."""

import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import torch

from minedit.attention.eager import eager
from minedit.attention.rules import Attend, Edit, Rule
from minedit.attention.sdpa import sdpa
from minedit.config import MineditError, shown


def resolve(name: str, device: torch.device | str = "cpu") -> str:
    """What "auto" stands for on `device`: "triton" on a GPU where it runs, else "sdpa". Other names: themselves."""
    if not isinstance(name, str) or name != "auto":
        return name
    if torch.device(device).type != "cuda":
        return "sdpa"
    try:
        _triton(torch.device(device))
    except MineditError:
        return "sdpa"
    return "triton"


def backend(name: str | Attend, device: torch.device | str = "cpu") -> Attend:
    """The attention function for `device` called "eager", "sdpa", "triton" or "auto".

    Or a user's own: a function, "module:function" or "file.py:function".

    Raises MineditError for any other name, for a function that cannot be imported, and for triton where it cannot run.
    """
    name = resolve(name, device)
    known = {"eager": eager, "sdpa": sdpa}
    if isinstance(name, str) and name in known:
        return known[name]
    if isinstance(name, str) and name == "triton":
        return _triton(torch.device(device))
    if callable(name):
        return _kept(name, name_of(name))
    if not isinstance(name, str) or ":" not in name:
        choices = ", ".join((*known, "triton"))
        what = f"attention {shown(repr(name))} is unknown"
        raise MineditError(f"{what}; expected {choices}, auto, module:function, file.py:function, or a function")
    place, _, function = name.rpartition(":")
    try:
        found = getattr(_module(place), function, None)
    except (Exception, SystemExit) as error:  # whatever a module that is being written raises
        fault = f"cannot import {place!r} ({type(error).__name__}: {error})"
        expected = "expected module:function, its folder the current one or on the path, or file.py:function"
        raise MineditError(f"attention {name!r}: {fault}; {expected}") from error
    if not callable(found):
        raise MineditError(f"attention {name!r}: {place!r} has no function {function!r}; expected module:function")
    return found if place.split(".")[0] == "minedit" else _kept(found, name)


def name_of(attention: str | Attend) -> str:
    """The name by which settings keep an attention function."""
    if isinstance(attention, str) or not callable(attention):
        return attention
    kind = attention if hasattr(attention, "__qualname__") else type(attention)
    return f"{kind.__module__}:{kind.__qualname__}"


def _module(place: str) -> ModuleType:
    """A module by its name, in the current folder too, or by its file."""
    if not place.endswith(".py"):
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.append(os.getcwd())  # last, so that nothing in it hides what is installed
        return importlib.import_module(place)
    path = Path(place).expanduser().resolve()
    spec = importlib.util.spec_from_file_location(f"attention_in_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # what lies beside it
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _kept(function: Attend, name: str) -> Attend:
    """A user's function, which cannot end the program: sys.exit(0) in it would look like success."""

    @functools.wraps(function)
    def call(*args: object, **more: object) -> object:
        try:
            return function(*args, **more)
        except SystemExit as error:
            raise MineditError(f"attention {name!r} ended the program ({error.code!r}); it must return") from error

    return call


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
