"""Ours against answers of diffusers and transformers, kept in tests/golden; tests/parity/make_golden.py wrote them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from seeded import fill, normal, relative
from tiny import GUIDANCE, IDS, ODD, STEPS, TINY

from minedit.attention.eager import eager
from minedit.attention.sdpa import sdpa
from minedit.sampling.loop import sample
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

GOLDEN = load_file(Path(__file__).parent / "golden" / "diffusers.safetensors")
SIDE = TINY.latent_size


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@cache
def unet() -> UNet:
    return fill(UNet(TINY.unet))


def test_text():
    # transformers 5.23 builds the encoder without the level "text_model", older versions with it
    text = fill(TextEncoder(TINY.text), lambda name: name.removeprefix("clip.").removeprefix("text_model."))
    assert relative(text(torch.tensor(IDS)), GOLDEN["text"]) < 1e-5


def test_unet():
    eps = unet()(normal("x", 2, 4, SIDE, SIDE), torch.tensor([981, 21]), GOLDEN["text"])
    assert relative(eps, GOLDEN["unet"]) < 1e-5


def test_unet_of_odd_sides():
    """diffusers upsamples to the size of the skip connection where the sides are not multiples of 2^levels."""
    eps = unet()(normal("odd", 2, 4, *ODD), torch.tensor([981, 21]), GOLDEN["text"])
    assert relative(eps, GOLDEN["unet of odd sides"]) < 1e-5


def test_vae():
    vae = fill(VAE(TINY.vae))
    assert relative(vae.encode(normal("image", 1, 3, 64, 64).clamp(-1, 1)), GOLDEN["moments"]) < 1e-5
    assert relative(vae.decode(normal("z", 1, 4, 4, 4)), GOLDEN["image"]) < 1e-5


@pytest.mark.parametrize("attend", [eager, sdpa])
def test_guided_ddim(attend):
    latents = normal("latents", 1, 4, SIDE, SIDE)
    model = SimpleNamespace(unet=unet(), attend=attend, config=TINY, device=latents.device, dtype=latents.dtype)
    *_, last = sample(model, latents, GOLDEN["text"], STEPS, GUIDANCE)
    assert relative(last.latents, GOLDEN["latents"]) < 1e-4
