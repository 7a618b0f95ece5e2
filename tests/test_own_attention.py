"""An attention function of the user's own: a module, a file or the function itself; it cannot end minedit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from small_model import small_model

import minedit
from minedit import cli, image
from minedit.attention.choose import backend
from minedit.attention.eager import eager
from minedit.config import MineditError
from minedit.files import checkpoint

BOY = "a boy in the park"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """In an empty folder that is not on Python's path, as for the installed command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    checkpoint.save(small_model(), tmp_path / "small.safetensors")
    yield lambda *argv: cli.main([*argv, "--steps", "1", "--model", "small.safetensors"])
    for name in ("own_attention", "beside_attention", "attention_in_own_attention"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["own_attention:f", "./own_attention.py:f", "~/own_attention.py:f"])
def test_the_current_folder_and_a_file_are_found(run, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("beside_attention.py").write_text("from minedit.attention.eager import eager")
    Path("own_attention.py").write_text("from beside_attention import eager\ndef f(*a, **k): return eager(*a, **k)")
    assert run("generate", BOY, "--attention", name) == 0
    assert run("generate", BOY, "--attention", "eager", "--out", "eager") == 0
    assert Path("out/0001-image.png").read_bytes()[:8] == Path("eager/0001-image.png").read_bytes()[:8]
    assert image.settings("out/0001-image.png")["attention"] == name
    drawn = [image.to_tensor(image.Image.open(f"{out}/0001-image.png")) for out in ("out", "eager")]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    "code",
    ["import sys; sys.exit(0)", "import sys\ndef f(*a, **k): sys.exit(0)"],
    ids=["as it is imported", "as it is called"],
)
def test_a_function_cannot_end_minedit_as_if_all_were_well(run, capsys, code):
    Path("own_attention.py").write_text(code)
    for name in ("own_attention:f", "./own_attention.py:f"):
        assert run("generate", BOY, "--attention", name) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith(f"minedit: error: attention '{name}'") and not Path("out").exists()


def test_load_takes_a_function(run):
    def own(*args, **more):
        return eager(*args, **more)

    sd = minedit.load("small.safetensors", attention=own)
    assert sd.attention == f"{__name__}:test_load_takes_a_function.<locals>.own"
    res = minedit.edit(sd, BOY, "a tall boy in the park", steps=1)
    assert res.settings["attention"] == sd.attention
    plain = minedit.edit(minedit.load("small.safetensors", attention="eager"), BOY, "a tall boy in the park", steps=1)
    assert torch.equal(res.edited_latent, plain.edited_latent)


@pytest.mark.parametrize("wrong", [5, None, ["eager"], "", "x" * 5000], ids=lambda wrong: str(wrong)[:9])
def test_what_is_no_attention_is_a_line(wrong):
    with pytest.raises(MineditError, match="attention .* is unknown; expected eager, sdpa, triton") as error:
        backend(wrong)
    assert len(str(error.value)) < 400
