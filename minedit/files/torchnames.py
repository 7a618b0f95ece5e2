"""The names of number types and devices -> torch's, where this machine has them."""

from collections.abc import Mapping

import torch

from minedit.config import MineditError, shown

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def torch_dtype(name: str | torch.dtype, known: Mapping[str, torch.dtype] = DTYPES) -> torch.dtype:
    """By its name, or torch's own. Raises MineditError for one that is not known."""
    if isinstance(name, torch.dtype) and name in known.values():
        return name
    if not isinstance(name, str) or name not in known:
        raise MineditError(f"dtype {shown(repr(name), 60)} is unknown; expected {', '.join(known)}")
    return known[name]


def torch_device(name: str | torch.device) -> torch.device:
    """Raises MineditError for a device that is no name, or that cannot compute here."""
    try:
        if not isinstance(name, str | torch.device):
            raise TypeError("no name")
        torch.zeros(1, device=name).cpu()
        return torch.device(name)
    # AssertionError: a torch built without CUDA; the others: what a device that is not installed raises
    except (RuntimeError, AssertionError, TypeError, ImportError, AttributeError, ValueError) as error:
        reason = shown((str(error).splitlines() or [type(error).__name__])[0], 80)
        what = f"device {shown(repr(name) if isinstance(name, str) else name)!s}"
        raise MineditError(f'{what} cannot be used here ({reason}); expected "cpu" or one present') from error
