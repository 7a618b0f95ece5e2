"""What a loaded model is: its modules, its tokenizer, and where and how they compute. checkpoint.py makes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from minedit.config import Config
from minedit.text import TextEncoder
from minedit.tokens import Tokenizer
from minedit.unet import UNet
from minedit.vae import VAE


@dataclass(frozen=True)
class Model:
    """A loaded model: in eval mode, its parameters without gradients."""

    unet: UNet
    vae: VAE
    text: TextEncoder
    tokenizer: Tokenizer
    config: Config
    attend: Callable  # what every attention layer of the UNet calls; see attention.py
    attention: str  # the name it was asked for by
    device: torch.device
    dtype: torch.dtype
    lora: tuple[tuple[str, float], ...] = ()  # the files merged into it, each with its scale; see lora.py

    @property
    def fast(self) -> bool:
        """Whether its modules were made for speed; see fast.py."""
        return self.unet.fast
