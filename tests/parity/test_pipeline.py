"""A prompt to a picture against diffusers' StableDiffusionPipeline, on random weights that diffusers itself saved.

Ours reads the folder that `save_pretrained` wrote, as a user's would be read. Latents are compared after the last step,
pictures before they are clamped.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from seeded import fill, normal, weight
from torch import Tensor

pytest.importorskip("diffusers", reason="only `make parity` installs diffusers")
import oracles  # noqa: E402
from diffusers import StableDiffusionPipeline  # noqa: E402
from test_diffusers import NARROW, check  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

import minedit  # noqa: E402
from minedit.config import SD14, Config  # noqa: E402
from minedit.files import checkpoint  # noqa: E402
from minedit.files.checkpoint import weights_folder  # noqa: E402
from minedit.sampling import ddim  # noqa: E402
from minedit.sampling.loop import embed  # noqa: E402
from minedit.stack.model import Model  # noqa: E402
from minedit.stack.unet import UNet  # noqa: E402
from minedit.stack.vae import VAE  # noqa: E402

LIMIT = 1e-4
BOY = "a boy in the park"
ODD = {
    "empty": "",
    "as long as it may be": " ".join(["a boy in the park"] * 15),
    "emoji": "a 🐶 in the park 🏞️",
    "repeated words": "a red red car by a red house, a red car",
    "capitals, accents, digits": "Ein Café in 1984, ÜBER dem Fluß",
}


def theirs(config: Config) -> StableDiffusionPipeline:
    states = []
    for kind, cfg in ((UNet, config.unet), (VAE, config.vae)):
        with torch.device("meta"):
            shapes = kind(cfg).state_dict()
        states.append({name: weight(name, *x.shape) for name, x in shapes.items()})
    pipeline = StableDiffusionPipeline(
        unet=oracles.unet(config.unet, states[0]),
        vae=oracles.vae(config.vae, states[1]),
        text_encoder=fill(oracles.text(config.text)),
        tokenizer=CLIPTokenizer.from_pretrained(
            weights_folder() / "tokenizer", model_max_length=77, pad_token_id=49407
        ),
        scheduler=oracles.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pair(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, StableDiffusionPipeline]:
    pipeline = theirs(config)
    pipeline.save_pretrained(folder)
    monkeypatch.setattr(checkpoint, "SD14", config)  # what a folder without our metadata is taken for
    return minedit.load(folder), pipeline


@torch.no_grad()
def compare(
    model: Model, pipeline: StableDiffusionPipeline, prompts: list[str], steps: int, height: int, width: int
) -> None:
    seeds = list(range(len(prompts)))
    ours = minedit.generate(model, prompts, seed=seeds, steps=steps, height=height, width=width)
    noise = torch.cat([ddim.noise(seed, height // 8, width // 8) for seed in seeds])
    said = {"prompt": prompts, "latents": noise, "num_inference_steps": steps, "guidance_scale": 7.5}
    latents: Tensor = pipeline(**said, height=height, width=width, output_type="latent").images
    what = f"{model.config.name} {height} x {width}, {len(prompts)} prompts, {steps} steps"
    check(f"latents, {what}", ours.latents * SD14.latent_scale, latents, LIMIT)
    decoded = pipeline.vae.decode(latents / SD14.latent_scale).sample
    check(f"pictures, {what}", model.vae.decode(ours.latents), decoded, LIMIT)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 192), (192, 128), (72, 104), (200, 8)])
def test_pictures_of_a_narrow_model(height, width, tmp_path, monkeypatch):
    compare(*pair(NARROW, tmp_path, monkeypatch), [BOY, "a dog", BOY], 10, height, width)


@torch.no_grad()
def test_odd_prompts(tmp_path, monkeypatch):
    model, pipeline = pair(replace(NARROW, name="narrow"), tmp_path, monkeypatch)
    assert model.tokenizer.encode(ODD["as long as it may be"]).length == 77
    for what, prompt in ODD.items():
        expected = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
        check(f"embeddings, {what}", embed(model, [prompt]), expected, 1e-5)


@pytest.mark.full
def test_a_picture_at_full_size(tmp_path, monkeypatch):
    model, pipeline = pair(SD14, tmp_path, monkeypatch)
    compare(model, pipeline, [BOY], 3, 512, 512)
    x, context = normal("x", 2, 4, 64, 96), normal("context", 2, 77, 768)
    with torch.no_grad():
        ours, expected = (
            model.unet(x, torch.tensor([981, 21]), context),
            pipeline.unet(x, torch.tensor([981, 21]), context),
        )
    check("UNet sd-v1.4, two of 512 x 768", ours, expected.sample, 1e-5)
