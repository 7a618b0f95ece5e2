"""Which weights and which version made a picture.

`python tests/test_versions.py` makes golden/defaults.json anew, once minedit.__version__ has moved.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_model import small_model

import minedit
from minedit import METHODS, cli, image
from minedit.cli import origin
from minedit.files.lora import merge
from minedit.inversion.choose import INVERSIONS
from minedit.sampling.numbers import Numbers

BOY = "a boy in the park"
PAIR = torch.ones(1, 32, 1, 1), torch.ones(32, 1, 1, 1)  # a LoRA's of rank 1, on a layer of the small model
GOLDEN = Path(__file__).parent / "golden" / "defaults.json"
MAKE = "make the table anew: python tests/test_versions.py"


def defaults() -> dict[str, dict[str, object]]:
    """Of the run, the model, each method and inversion: where they change, so do pictures of the same command."""
    inversions = {f"inversion {name}": kind for name, kind in INVERSIONS.items()}
    kinds = {"run": Numbers, **METHODS, **inversions}
    found = {name: {field.name: field.default for field in fields(kind)} for name, kind in kinds.items()}
    args = vars(origin.parse(["generate", BOY]))
    found["options"] = {name: args[name] for name in ("seed", "device", "dtype", "fast", "attention", "lora")}
    return json.loads(json.dumps(found))


def table() -> dict[str, object]:
    return {"version": minedit.__version__, "weights": minedit.load().weights, "defaults": defaults()}


def moved(kept: dict, now: dict) -> list[str]:
    """What changed though the version did not: another value, or one that is gone. A further setting is none."""
    if kept["version"] != now["version"]:
        return []
    pairs = [(f"{kind}.{name}", value) for kind, held in kept["defaults"].items() for name, value in held.items()]
    found = {f"{kind}.{name}": value for kind, held in now["defaults"].items() for name, value in held.items()}
    others = [name for name, value in pairs if name not in found or found[name] != value]
    return others + ["weights"] * (kept["weights"] != now["weights"])


def test_the_version_moves_with_defaults_and_embedded_weights():
    kept, now = json.loads(GOLDEN.read_text()), table()
    assert not moved(kept, now), f"move minedit.__version__, then {MAKE}"
    assert kept == now, MAKE


def test_a_default_that_moved_is_seen():
    now = table()
    other = json.loads(json.dumps(now))
    other["defaults"]["adapedit"]["rest"] += 0.1
    del other["defaults"]["p2p"]["spread"]
    other["defaults"]["new"] = {"strength": 1}
    assert moved(now, other | {"weights": ""}) == ["adapedit.rest", "p2p.spread", "weights"]
    assert moved(now, other | {"version": "9"}) == []


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


@pytest.mark.parametrize("verb", [("generate", BOY), ("edit", BOY, "a tall boy in the park", "--method", "fixed-seed")])
def test_another_file_in_the_place_of_a_lora_is_said(drawn, capsys, verb):
    layer, names = "lora_unet_mid_block_attentions_0_proj_out", ("down", "up")
    lora = {f"{layer}.lora_{half}.weight": x for half, x in zip(names, PAIR, strict=True)}
    save_file(lora, "style.safetensors")
    model = ("--model", "small.safetensors", "--steps", "1")
    assert cli.main([*verb, *model, "--lora", "style.safetensors:0.5", "--out", "with"]) == 0
    picture = next(Path("with").glob("0001-edited.png" if verb[0] == "edit" else "0001-image.png"))
    [[file, scale, hashed]] = image.settings(picture)["lora"]
    assert (file, scale, len(hashed)) == ("style.safetensors", 0.5, 12)
    assert cli.main([verb[0], "--from", str(picture), "--out", "same"]) == 0
    assert "was made" not in capsys.readouterr().out
    save_file({name: 2 * x for name, x in lora.items()}, "style.safetensors")
    assert cli.main([verb[0], "--from", str(picture), "--out", "other"]) == 0
    assert f"{picture} was made with other contents of style.safetensors ({hashed}; these " in capsys.readouterr().out
    old = image.settings(picture) | {"lora": [[file, scale]]}  # of a version that had no hash
    image.save("old.png", Image.new("RGB", (8, 8)), old)
    assert cli.main([verb[0], "--from", "old.png", "--out", "old"]) == 0
    assert "was made" not in capsys.readouterr().out


def test_a_loras_hash_tells_its_settings_of_alpha_apart(tmp_path):
    lora = {f"unet.mid_block.attentions.0.proj_out.lora_{half}.weight": x for half, x in zip("AB", PAIR, strict=True)}
    hashes = []
    for alpha in (1, 1, 2):
        save_file(lora, tmp_path / "file", {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": alpha})})
        hashes.append(merge(small_model(), tmp_path / "file").lora[0][2])
    assert hashes[0] == hashes[1] != hashes[2]


def test_edits_hold_it_too(drawn):
    sd = minedit.load("small.safetensors")
    assert minedit.edit(sd, BOY, "a tall boy in the park", steps=1).settings["weights"] == sd.weights


if __name__ == "__main__":
    now = table()
    if GOLDEN.exists() and (others := moved(json.loads(GOLDEN.read_text()), now)):
        raise SystemExit(f"{', '.join(others)} changed, and the version is {now['version']} still: move it first")
    GOLDEN.write_text(json.dumps(now, indent=1) + "\n")
