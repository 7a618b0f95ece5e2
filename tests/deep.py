"""The model of tests/golden/methods.safetensors: as many layers as Stable Diffusion v1, of a few channels each."""

import torch
from seeded import normal
from torch import Tensor

from minedit.config import Config, TextConfig, UNetConfig, VAEConfig

TOKENS = 16
DEEP = Config(
    "deep",
    UNetConfig(channels=(8, 8, 16, 16), attention=(True, True, True, False), heads=2, context_dim=16, norm_groups=4),
    VAEConfig(channels=(8, 8, 8, 8), blocks=1, norm_groups=4),
    TextConfig(vocab_size=40, width=16, layers=2, heads=2, mlp=32, context_length=TOKENS, bos=38, eos=39),
    image_size=128,
    map_size=16,
    self_size=16,
)
CAT, DOG = "a cat in the park", "a dog in the park"
FOREGROUND = ([2], [2])  # tokens of "cat" and "dog"
STEPS, GUIDANCE = 10, 3.0


def context() -> Tensor:
    """[4,T,width]: unconditional twice, source, target."""
    return torch.cat([normal("empty", 1, TOKENS, 16).expand(2, -1, -1), normal("texts", 2, TOKENS, 16)])


def course() -> Tensor:
    """[steps + 1, 1, 4, h, w], latents that a source is put on."""
    return normal("course", STEPS + 1, 1, 4, 16, 16)
