"""A file of TAESD's weights -> the network: diffusers' AutoencoderTiny, or the original files, one for each half.

The originals are those of github.com/madebyollin/taesd.
"""

import os
import re

import torch

from minedit.config import MineditError
from minedit.files.formats import named, read_other
from minedit.files.layouts import first
from minedit.files.stored import Stored
from minedit.stack.taesd import TAESD

EXPECTED = "expected a TAESD of Stable Diffusion v1: AutoencoderTiny's weights, or taesd_decoder or taesd_encoder"


def load_taesd(path: str | os.PathLike, device: str | torch.device = "cpu") -> TAESD:
    """The TAESD in a file, in float32 whatever the file's dtype (float8 too), without gradients.

    Raises MineditError for a file that is none. That of Stable Diffusion XL has the same names and shapes and cannot be
    told apart; its pictures are wrong.
    """
    path = named(path, EXPECTED)
    tensors = _our_names(read_other(path, EXPECTED)[0])
    module = TAESD({name.split(".")[0] for name in tensors})
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = sorted(wanted.keys() - tensors.keys())
    unlike = sorted(name for name, tensor in tensors.items() if tensor.shape != wanted.get(name))
    if missing or unlike or not tensors:
        faults = [f"lacks {first(missing)}"] if missing else []
        faults += [f"has by other names or of other shapes {first(unlike)}"] if unlike else []
        raise MineditError(f"{path} is no TAESD: it {'; it '.join(faults) or 'is empty'}; {EXPECTED}")
    cast = {name: stored.read(torch.float32).to(device) for name, stored in tensors.items()}
    module.load_state_dict(cast, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _our_names(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """The original halves count layers from 0; the decoder's are one further, behind the clamp of the latent."""
    if not all(re.match(r"\d+\.", name) for name in tensors):
        return tensors
    half, offset = ("encoder", 0) if "0.weight" in tensors else ("decoder", 1)
    numbered = ((*name.split(".", 1), tensor) for name, tensor in tensors.items())
    return {f"{half}.layers.{int(number) - offset}.{rest}": tensor for number, rest, tensor in numbered}
