"""Edits against the authors' released code (released.py), 50 steps, on shared random weights a tenth as wide."""

from __future__ import annotations

import pytest
import torch
from seeded import normal

pytest.importorskip("diffusers", reason="only `make parity` installs diffusers")
import released  # noqa: E402
from test_diffusers import NARROW, check  # noqa: E402
from test_pipeline import pair  # noqa: E402

import minedit  # noqa: E402
from minedit.config import SD14  # noqa: E402
from minedit.sampling import ddim  # noqa: E402
from minedit.sampling.loop import context  # noqa: E402

CAT, DOG, SITTING = "a cat in the park", "a dog in the park", "a sitting cat in the park"
STEPS, GUIDANCE, LIMIT = 50, 7.5, 1e-4
needs = {
    name: pytest.mark.skipif(not folder, reason=f"{name.upper()} names no checkout, see released.py")
    for name, folder in released.FOLDERS.items()
}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Ours and diffusers' pipeline with the same weights."""
    return pair(NARROW, tmp_path / "model", monkeypatch)


def edited(model, source, target, method, **settings):
    res = minedit.edit(model, source, target, method, seed=1, steps=STEPS, guidance=GUIDANCE, **settings)
    return torch.cat([res.source_latent, res.edited_latent]) * SD14.latent_scale


@needs["masactrl"]
@pytest.mark.parametrize("target, tokens", [(DOG, None), (DOG, ([2], [2])), (SITTING, ([2], [3]))])
def test_released_masactrl(models, target, tokens):
    model, pipeline = models
    word = {"foreground": target.split()[tokens[1][0] - 1]} if tokens else {}
    ours = edited(model, CAT, target, "masactrl", **word)
    rows = context(model, [CAT, target])
    how = {"start_step": 4, "start_layer": 10, "tokens": tokens}
    theirs = released.masactrl(pipeline.unet, ddim.noise(1, 16, 16), rows, STEPS, GUIDANCE, **how)
    check(f"masactrl, {target}, {word}", ours, theirs, LIMIT)


@needs["freeprompt"]
def test_released_freeprompt(models):
    model, pipeline = models
    ours = edited(model, CAT, DOG, "freeprompt")
    rows = context(model, [CAT, DOG])
    theirs = released.freeprompt(pipeline.unet, ddim.noise(1, 16, 16), rows, STEPS, GUIDANCE, share=0.4, side=8)
    check("freeprompt", ours, theirs, LIMIT)


@needs["pnp"]
def test_released_plug_and_play(models, tmp_path):
    model, pipeline = models
    photo = normal("photo", 1, 4, 16, 16)
    ours = edited(model, CAT, DOG, "plug-and-play", image=photo / SD14.latent_scale)
    rows, folder = context(model, [CAT, DOG]), tmp_path / "photo"
    folder.mkdir()
    released.inverted(pipeline.unet, photo, rows[2:3], STEPS, folder)
    theirs = released.pnp(pipeline.unet, rows, STEPS, GUIDANCE, folder, maps=25, features=40)
    check("plug-and-play", ours[1:], theirs, LIMIT)
