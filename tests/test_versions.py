"""Which weights and which version made a picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_model import small_model

import minedit
from minedit import cli, image

BOY = "a boy in the park"
# The embedded weights of a version: where they change, so do the pictures, and so must the version.
EMBEDDED = {"0.2.0": "972cee8c8f7b"}


def test_the_version_moves_with_the_embedded_weights():
    assert {minedit.__version__: minedit.load().weights}.items() <= EMBEDDED.items()


def test_a_hash_tells_weights_apart(tmp_path):
    sd = small_model()
    minedit.save(sd, tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    first = minedit.load(tmp_path / "a.safetensors").weights
    assert len(first) == 12 and first == minedit.load(tmp_path / "b.safetensors", dtype="bfloat16").weights
    with torch.no_grad():
        sd.unet.out[2].weight.mul_(1.01)
    minedit.save(sd, tmp_path / "c.safetensors")
    assert minedit.load(tmp_path / "c.safetensors").weights != first


@pytest.fixture
def drawn(tmp_path, monkeypatch) -> dict:
    """The settings of a picture by the small model."""
    monkeypatch.chdir(tmp_path)
    minedit.save(small_model(), "small.safetensors")
    assert cli.main(["generate", BOY, "--steps", "1", "--model", "small.safetensors"]) == 0
    return image.settings("out/0001-image.png")


def test_from_a_picture_of_others_says_so(drawn, capsys):
    assert drawn["weights"] == minedit.load("small.safetensors").weights and drawn["minedit"] == minedit.__version__
    assert cli.main(["generate", "--from", "out/0001-image.png", "--out", "same"]) == 0
    assert "was made" not in capsys.readouterr().out
    changes = {"weights": "0" * 12, "minedit": "0.1.0"}
    image.save("other.png", Image.new("RGB", (8, 8)), drawn | changes)
    assert cli.main(["generate", "--from", "other.png", "--out", "other"]) == 0
    said = capsys.readouterr().out
    assert "note: other.png was made with other weights (000000000000; these are " in said
    assert "note: other.png was made by minedit 0.1.0; this is " in said
    assert image.settings("other/0001-image.png") == drawn  # of what made it, not of what it was made from
    assert Path("same/0001-image.png").read_bytes() == Path("out/0001-image.png").read_bytes()


def test_edits_hold_it_too(drawn):
    sd = minedit.load("small.safetensors")
    assert minedit.edit(sd, BOY, "a tall boy in the park", steps=1).settings["weights"] == sd.weights
