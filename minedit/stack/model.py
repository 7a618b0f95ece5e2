"""What a loaded model is: its modules, its tokenizer, and where and how they compute. files/checkpoint.py makes one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from minedit.attention.tap import holding
from minedit.config import Config
from minedit.stack.preview import fitted
from minedit.stack.text import TextEncoder
from minedit.stack.tokens import Tokenizer
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE


@dataclass(frozen=True)
class Model:
    """A loaded model: in eval mode, its parameters without gradients."""

    unet: UNet
    vae: VAE
    text: TextEncoder
    tokenizer: Tokenizer
    config: Config
    attend: Callable  # what every attention layer of the UNet calls; see attention/
    attention: str  # the name it was asked for by
    device: torch.device
    dtype: torch.dtype
    lora: tuple[tuple[str, float, str], ...] = ()  # merged into it: file, scale, a short hash; see files/lora.py
    notes: tuple[str, ...] = ()  # what was chosen while loading it that its user should know, a line each

    weights: str = ""  # a short hash of those it was loaded with, LoRAs aside; empty where it was not loaded
    kept: tuple = ()  # files that its weights stay in, which must not change: files/stored.py's Kept

    def __repr__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"<{self.config.name}, {kind} on {self.device}, attention {self.attention}{', fast' * self.fast}>"

    def check_files(self) -> None:
        """Raises MineditError where a file that its weights stay in was written to since it was loaded."""
        for file in self.kept:
            file.check()

    @cached_property
    def rgb(self) -> Tensor:
        """matrix [3, 37]: clean latents and 1 -> RGB, fitted when it is first asked for; see stack/preview.py."""
        self.check_files()
        with holding(self.unet, None):  # what looks at a run, or changes it, has no part in this
            config = self.config
            return fitted(self.vae, config.vae.factor, config.latent_scale, self.device, self.dtype)

    @property
    def fast(self) -> bool:
        """Whether its modules were made for speed; see speed/fast.py."""
        return self.unet.fast
