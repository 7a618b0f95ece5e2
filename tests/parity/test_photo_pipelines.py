"""SDEdit and InstructPix2Pix against diffusers' pipelines, on random weights that diffusers itself saved.

Ours reads the folder that `save_pretrained` wrote. Latents are compared after the last step.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from seeded import normal

pytest.importorskip("diffusers", reason="only `make parity` installs diffusers")
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInstructPix2PixPipeline  # noqa: E402
from test_diffusers import NARROW, check  # noqa: E402
from test_pipeline import theirs  # noqa: E402

import minedit  # noqa: E402
from minedit.config import IP2P, SD14, Config  # noqa: E402
from minedit.files import checkpoint  # noqa: E402
from minedit.sampling import ddim  # noqa: E402

LIMIT = 1e-4
SOURCE, TARGET = "a boy in the park", "a sitting boy in the park"
EIGHT = replace(NARROW, name="narrow instruct-pix2pix", unet=replace(NARROW.unet, in_channels=8))
full = pytest.mark.full
each_strength = pytest.mark.parametrize("strength", [0.8, 0.58, 1.0])  # int(50 · .58) is 28, in floats too


def pair(config: Config, kind: type, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """Our model and their pipeline of a kind, with the same weights."""
    pipeline = theirs(config)
    pipeline.unet.register_to_config(sample_size=64)  # what their pipelines take for granted
    pipeline = kind(**pipeline.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    monkeypatch.setattr(checkpoint, "IP2P" if config.unet.in_channels == 8 else "SD14", config)  # what a folder is
    return minedit.load(folder), pipeline


def sdedit(config: Config, side: int, steps: int, strength: float, folder: Path, monkeypatch) -> None:
    model, pipeline = pair(config, StableDiffusionImg2ImgPipeline, folder, monkeypatch)
    picture = normal("a photograph", 1, 4, side, side)
    how = {"image": picture / SD14.latent_scale, "strength": strength, "seed": 7, "steps": steps, "guidance": 7.5}
    ours = minedit.edit(model, SOURCE, TARGET, "sdedit", **how).edited_latent * SD14.latent_scale
    said = {"prompt": TARGET, "image": picture, "strength": strength, "num_inference_steps": steps}
    said |= {"guidance_scale": 7.5, "generator": torch.Generator("cpu").manual_seed(7), "output_type": "latent"}
    check(f"SDEdit {config.name}, {strength} of {steps} steps", ours, pipeline(**said).images, LIMIT)


def instructed(config: Config, side: int, steps: int, folder: Path, monkeypatch) -> None:
    model, pipeline = pair(config, StableDiffusionInstructPix2PixPipeline, folder, monkeypatch)
    pixels = (128 + 60 * normal("pixels", 8 * side, 8 * side, 3)).clamp(0, 255).byte().numpy()
    picture, how = Image.fromarray(pixels), {"seed": 7, "steps": steps, "guidance": 7.5, "image_guidance": 1.5}
    how |= {"height": 8 * side, "width": 8 * side}
    ours = minedit.edit(model, SOURCE, TARGET, "instruct-pix2pix", image=picture, **how).edited_latent
    said = {"prompt": TARGET, "image": picture, "num_inference_steps": steps, "guidance_scale": 7.5}
    said |= {"image_guidance_scale": 1.5, "latents": ddim.noise(7, side, side), "output_type": "latent"}
    latents = pipeline(**said).images
    check(f"InstructPix2Pix {config.name}, {steps} steps", ours * SD14.latent_scale, latents, LIMIT)


@each_strength
@torch.no_grad()
def test_sdedit(strength, tmp_path, monkeypatch):
    sdedit(NARROW, 16, 50, strength, tmp_path, monkeypatch)


@torch.no_grad()
def test_instructpix2pix(tmp_path, monkeypatch):
    instructed(EIGHT, 16, 50, tmp_path, monkeypatch)


@full
@torch.no_grad()
def test_sdedit_at_full_width(tmp_path, monkeypatch):
    sdedit(SD14, 16, 5, 0.8, tmp_path, monkeypatch)


@full
@torch.no_grad()
def test_instructpix2pix_at_full_width(tmp_path, monkeypatch):
    instructed(IP2P, 16, 5, tmp_path, monkeypatch)
