"""The model of the golden files: every kind of layer, a few thousand weights."""

from minedit.config import Config, TextConfig, UNetConfig, VAEConfig

TINY = Config(
    "tiny",
    UNetConfig(channels=(16, 32), blocks=1, attention=(True, False), heads=4, context_dim=24, norm_groups=8),
    VAEConfig(channels=(8, 16, 16, 24), blocks=1, norm_groups=8),
    TextConfig(vocab_size=40, width=24, layers=2, heads=4, mlp=48, context_length=8, bos=38, eos=39),
    image_size=64,
    map_size=8,
    self_size=4,
)
IDS = [[38, 3, 17, 5, 30, 39, 39, 39], [38, 3, 9, 39, 39, 39, 39, 39]]
STEPS, GUIDANCE = 5, 7.5
ODD = 9, 13  # sides of latents that cannot be halved
