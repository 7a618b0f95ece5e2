"""The model of Prompt-to-Prompt's golden file and of its parity test: maps of 16 x 16 where its code wants them.

Latents of 32 x 32; the released local blend takes the third and fourth cross-attention layer of the way down and the
first three of the way up for 16 x 16, of 77 tokens.
"""

from __future__ import annotations

import torch
from seeded import weight
from small_model import TOKENIZER
from torch import Tensor, nn

from minedit.attention.sdpa import sdpa
from minedit.config import Config, TextConfig, UNetConfig, VAEConfig
from minedit.stack.model import Model
from minedit.stack.text import TextEncoder
from minedit.stack.tokens import Tokenizer
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

SHARP = 12.0  # on queries: random ones attend to all tokens and pixels alike, and a mask would be the whole picture
BOY, DOG, SITTING = "a boy in the park", "a dog in the park", "a sitting boy in the park"
TWICE = "a red cat and a red dog", "a red cat and a red bird"
# name → source, target, settings of ours; the parity test has the released controller of each
CASES = {
    "replace": (BOY, DOG, {}),
    "replace in windows": (BOY, DOG, {"cross_steps": (0.1, 0.7), "self_steps": (0.2, 0.6)}),
    "a word's own windows": (BOY, DOG, {"cross_steps": 1.0, "cross_words": {"dog": 0.4, "park": (0.3, 0.9)}}),
    "refine where words are as many": (BOY, DOG, {"controller": "refine", "cross_steps": 0.5}),
    "reweight": (BOY, BOY, {"reweight": {"park": 5.0, "boy": -1.0}}),
    "reweight on replace, every one": (*TWICE, {"reweight": {"every red": 3.0}, "cross_words": {"every red": 0.5}}),
    "blend from the start": (BOY, DOG, {"blend": ["boy", "dog"], "blend_start": 0.0, "cross_words": {"dog": 0.4}}),
    "blend at another threshold": (
        BOY,
        DOG,
        {"blend": ["park", "boy", "dog"], "blend_start": 0.0, "blend_threshold": 0.7},
    ),
    "blend on refine, every one": (*TWICE, {"controller": "refine", "blend": ["red"], "blend_threshold": 0.8}),
    "blend less words on reweight": (
        BOY,
        DOG,
        {
            "blend": ["boy", "dog"],
            "blend_subtract": ["park"],
            "subtract_threshold": 0.75,
            "reweight": {"dog": 2.0, "park": 0.5},
            "cross_words": {"dog": 0.4},
        },
    ),
}
GOLDEN = "blend at another threshold", "blend less words on reweight"
GOLDEN_STEPS = 6
CONFIG = Config(
    "blended",
    UNetConfig(channels=(16, 16, 16), blocks=2, attention=(True, True, False), heads=2, context_dim=16, norm_groups=4),
    VAEConfig(channels=(8, 8, 8, 8), blocks=1, norm_groups=4),
    TextConfig(width=16, layers=2, heads=2, mlp=32),
    image_size=256,
    map_size=16,
    self_size=16,
)


def state(module: nn.Module) -> dict[str, Tensor]:
    """Weights by name, with sharp cross-attention."""
    made = {name: weight(name, *x.shape) for name, x in module.state_dict().items()}
    return {name: x * SHARP if name.endswith("attn2.to_q.weight") else x for name, x in made.items()}


def model(config: Config = CONFIG) -> Model:
    parts = []
    for kind, cfg in ((UNet, config.unet), (VAE, config.vae), (TextEncoder, config.text)):
        with torch.device("meta"):
            part = kind(cfg)
        part.load_state_dict(state(part), strict=True, assign=True)
        parts.append(part.eval().requires_grad_(False))
    tokenizer = Tokenizer(TOKENIZER, config.text.context_length)
    return Model(*parts, tokenizer, config, sdpa, "sdpa", torch.device("cpu"), torch.float32)
