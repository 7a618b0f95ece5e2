"""google/prompt-to-prompt as it was released, run from the user's folder on diffusers' UNet of today.

Its notebooks' cells with the controllers are executed as they stand. What they import to show pictures is left out, and
diffusers' attention layers get the names and the calling convention that they had then.
"""

from __future__ import annotations

import abc
import json
import sys
import typing
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as nnf
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from oracles import scheduler
from torch import Tensor

FIRST, LATER = "prompt-to-prompt_stable.ipynb", "null_text_w_ptp.ipynb"
SHOWING = {"cv2": (), "IPython": (), "IPython.display": ("display",), "tqdm.notebook": ("tqdm",)}


def modules(folder: str) -> tuple[ModuleType, ModuleType]:
    """ptp_utils and seq_aligner."""
    for name, held in SHOWING.items():
        if name not in sys.modules:
            sys.modules[name] = ModuleType(name)
            for each in held:
                setattr(sys.modules[name], each, None)
    sys.path.insert(0, folder)
    try:
        import ptp_utils
        import seq_aligner
    finally:
        sys.path.remove(folder)
    return ptp_utils, seq_aligner


def notebook(folder: str, name: str, tokenizer: object, steps: int) -> SimpleNamespace:
    """The names that the notebook's cell with the controllers defines."""
    ptp_utils, seq_aligner = modules(folder)
    cells = json.loads((Path(folder) / name).read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (cell,) = (each for each in code if "class LocalBlend" in each)
    held = {name: getattr(typing, name) for name in ("Callable", "Dict", "List", "Optional", "Tuple", "Union")}
    held |= {"abc": abc, "np": np, "torch": torch, "nnf": nnf}
    held |= {"ptp_utils": ptp_utils, "seq_aligner": seq_aligner, "tokenizer": tokenizer, "device": torch.device("cpu")}
    held |= {"LOW_RESOURCE": False, "MAX_NUM_WORDS": 77, "NUM_DIFFUSION_STEPS": steps, "NUM_DDIM_STEPS": steps}
    exec(compile(cell, name, "exec"), held)
    return SimpleNamespace(held=held, **{name: each for name, each in held.items() if name.isidentifier()})


class CrossAttention(Attention):
    """diffusers' attention by its name of then: the released code replaces `forward` of what is called so."""

    reshape_heads_to_batch_dim = Attention.head_to_batch_dim
    reshape_batch_dim_to_heads = Attention.batch_to_head_dim

    def __call__(self, x: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: None = None) -> Tensor:
        return self.forward(x, encoder_hidden_states, attention_mask)


@torch.no_grad()
def latents(
    code: SimpleNamespace, unet: UNet2DConditionModel, controller: object, noise: Tensor, context: Tensor, steps: int
) -> Tensor:
    """What the released step makes of the noise [1, 4, h, w], for context [4, 77, width]: [2, 4, h, w]."""
    for module in unet.modules():
        if type(module) is Attention:
            module.__class__ = CrossAttention
    model = SimpleNamespace(unet=unet, scheduler=scheduler())
    model.scheduler.set_timesteps(steps)
    code.ptp_utils.register_attention_control(model, controller)
    x = noise.expand(2, -1, -1, -1)
    code.held["x_t"] = x  # a global of the later notebook: its local blend reads the shape
    for t in model.scheduler.timesteps:
        x = code.ptp_utils.diffusion_step(model, controller, x, context, t, 7.5)
    return x
