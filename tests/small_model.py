"""A whole model with random weights that samples in a second: its pictures mean nothing, its algebra is real."""

from pathlib import Path

import torch
from seeded import fill

from minedit.attention.choose import backend
from minedit.config import Config, TextConfig, UNetConfig, VAEConfig
from minedit.files.checkpoint import Model
from minedit.stack.text import TextEncoder
from minedit.stack.tokens import Tokenizer
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

TOKENIZER = Path(__file__).parent.parent / "weights" / "tokenizer"
TOKENS = 16


def small_model(attention: str = "sdpa", dtype: torch.dtype = torch.float32, device: str = "cpu") -> Model:
    """Latents 8 x 8, cross-attention maps of 8 and 4, word statistics at 8, self-attention injected up to 4."""
    tokenizer = Tokenizer(TOKENIZER, TOKENS)
    size, bos, eos = tokenizer.size, tokenizer.bos, tokenizer.eos
    config = Config(
        "small",
        UNetConfig(channels=(16, 32), blocks=1, attention=(True, True), heads=2, context_dim=16, norm_groups=4),
        VAEConfig(channels=(8, 8, 8, 8), blocks=1, norm_groups=4),
        TextConfig(size, width=16, layers=2, heads=2, mlp=32, context_length=TOKENS, bos=bos, eos=eos),
        image_size=64,
        map_size=8,
        self_size=4,
    )
    parts = [fill(part) for part in (UNet(config.unet), VAE(config.vae), TextEncoder(config.text))]
    parts = [part.to(device, dtype).requires_grad_(False) for part in parts]
    return Model(*parts, tokenizer, config, backend(attention, device), attention, torch.device(device), dtype)
