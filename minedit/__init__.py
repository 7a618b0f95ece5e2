"""minedit: text-driven image editing with Stable Diffusion v1.4 and AdapEdit.

sd = minedit.load()
res = minedit.edit(sd, "a boy in the park", "a sitting boy in the park", seed=0)
"""

import importlib
from typing import TYPE_CHECKING

from minedit.config import IP2P, PICTUREBOOK, SD14, MineditError
from minedit.inversion.choose import INVERSIONS
from minedit.methods.choose import METHODS

if TYPE_CHECKING:
    from minedit.files.checkpoint import load, save
    from minedit.files.control import load_control
    from minedit.record.patches import patched
    from minedit.record.recorder import Tape, recorded
    from minedit.record.sweeps import sweep
    from minedit.record.words import word_maps
    from minedit.stack.unet import UNet
    from minedit.stack.vae import VAE
    from minedit.verbs.edit import edit, edits
    from minedit.verbs.generate import generate

__all__ = ["INVERSIONS", "IP2P", "METHODS", "PICTUREBOOK", "SD14", "VAE", "MineditError", "Tape", "UNet"]
__all__ += ["edit", "edits", "generate", "load", "load_control", "patched", "recorded", "save", "sweep"]
__all__ += ["word_maps"]
__version__ = "0.3.0"
# What takes torch is imported when it is first asked for, so that --help need not wait: its file, by name.
_LATER = {
    **{"VAE": "stack.vae", "UNet": "stack.unet", "load": "files.checkpoint", "save": "files.checkpoint"},
    **{"edit": "verbs.edit", "edits": "verbs.edit", "generate": "verbs.generate", "load_control": "files.control"},
    **{"patched": "record.patches", "recorded": "record.recorder", "word_maps": "record.words"},
    **{"Tape": "record.recorder", "sweep": "record.sweeps"},
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
