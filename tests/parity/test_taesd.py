"""TAESD against diffusers' AutoencoderTiny, on random weights that it saved."""

from __future__ import annotations

import pytest
import torch
from seeded import fill, normal

pytest.importorskip("diffusers", reason="only `make parity` installs diffusers")
from diffusers import AutoencoderTiny  # noqa: E402
from test_diffusers import check  # noqa: E402

from minedit.files.taesd import load_taesd  # noqa: E402


@torch.no_grad()
def test_taesd(tmp_path):
    theirs = fill(AutoencoderTiny())
    theirs.save_pretrained(tmp_path)
    ours = load_taesd(tmp_path / "diffusion_pytorch_model.safetensors")
    picture, latent = normal("picture", 2, 3, 64, 48).clamp(-1, 1), 2 * normal("latent", 2, 4, 8, 6)
    check("TAESD encoder", ours.encode(picture), theirs.encode(picture).latents)
    check("TAESD decoder", ours.decode(latent), theirs.decode(latent).sample)
