"""Files of weights: every layout and container, every name accounted for; saving.

Oracles: the published names (tests/fixtures, with their sources in the first lines), and tensors bit for bit.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from seeded import normal
from torch import Tensor
from weight_files import SLIM, as_folder, diffusers_names, rows, slim, with_config

from minedit import checkpoint
from minedit.attention import eager
from minedit.checkpoint import Model, load, save
from minedit.config import IP2P, PICTUREBOOK, SD14, Config, MineditError
from minedit.layouts import recognise

FILE = Path("file")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "slim.safetensors"
    save(slim(), path)
    return path


def published(name: str, shape: str) -> Tensor:
    return torch.empty(json.loads(shape), dtype=torch.int64 if "position_ids" in name else None, device="meta")


def fits(tensors: dict[str, Tensor], config: Config) -> list[dict[str, Tensor]]:
    """What `load` does with a file's tensors, without their memory."""
    return checkpoint._fitted(FILE, recognise(FILE, tensors), config, checkpoint._build(FILE, config))


def states(model: Model) -> dict[str, Tensor]:
    parts = (("unet", model.unet), ("vae", model.vae), ("text", model.text))
    return {f"{part}.{name}": tensor for part, module in parts for name, tensor in module.state_dict().items()}


def assert_equal(a: Model, b: Model) -> None:
    found, expected = states(a), states(b)
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]


# Names and shapes of the published files.


def test_every_tensor_of_the_published_ldm_file_is_accounted_for():
    tensors = {row[0]: published(*row[:2]) for row in rows("sd-v1-ldm.tsv")}
    tensors["model_ema.diffusion_modelinput_blocks00weight"] = torch.empty(320, 4, 3, 3, device="meta")
    fitted = fits(tensors, SD14)
    assert [len(part) for part in fitted] == [686, 248, 196]


def test_every_tensor_of_a_diffusers_folder_goes_where_diffusers_own_script_puts_it():
    tensors = {row[0]: published(*row[:2]) for row in rows("diffusers-names.tsv")}
    parts = recognise(FILE, tensors).parts
    prefixes = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model.transformer."}
    ours = {prefixes[part] + name: tensor for part, held in parts.items() for name, tensor in held.items()}
    expected = {ldm: tensors[name] for ldm, name in diffusers_names().items()}
    assert ours.keys() == expected.keys()
    changed = [name for name in ours if ours[name] is not expected[name]]
    assert len(changed) == 8 and all(re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight", name) for name in changed)
    assert [len(part) for part in fits(tensors, SD14)] == [686, 248, 196]


def test_eight_input_channels_are_instruct_pix2pix():
    tensors = {row[0]: published(*row[:2]) for row in rows("sd-v1-ldm.tsv")}
    stem = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[stem] = torch.empty(320, 8, 3, 3, device="meta")
    assert checkpoint._config(FILE, recognise(FILE, tensors), {}) == IP2P
    assert [len(part) for part in fits(tensors, IP2P)] == [686, 248, 196]
    tensors[stem] = torch.empty(320, 9, 3, 3, device="meta")
    with pytest.raises(MineditError, match="UNet takes 9 channels, expected 4 .* or 8"):
        checkpoint._config(FILE, recognise(FILE, tensors), {})


# Containers: the same tensors come back, bit for bit.


def test_safetensors_round_trip(saved):
    again = load(saved, attention="eager")
    assert again.config == SLIM and again.attend is eager and again.attention == "eager"
    assert (again.device, again.dtype) == (torch.device("cpu"), torch.float32)
    assert_equal(again, slim())
    with torch.no_grad():
        ids = torch.tensor([again.tokenizer.encode("a boy in the park").ids])
        inputs = normal("x", 1, 4, 8, 8), torch.tensor([500])
        assert torch.equal(again.unet(*inputs, again.text(ids)), slim().unet(*inputs, slim().text(ids)))
    for module in (again.unet, again.vae, again.text):
        assert not module.training
        assert not [name for name, p in module.named_parameters() if p.requires_grad or p.is_meta]
        assert not [name for name, x in module.named_buffers() if x.is_meta]


def test_a_saved_file_has_the_published_names(saved):
    names = set(diffusers_names()) - {
        name for name in diffusers_names() if re.search(r"encoder\.layers\.[2-9]|1[01]\.", name)
    }
    with safe_open(saved, "pt") as file:
        assert names <= set(file.keys())
        assert Config.from_json(file.metadata()["minedit.config"]) == SLIM


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_in_memory_and_on_disk(saved, tmp_path, dtype):
    kind = getattr(torch, dtype)
    model = load(saved, dtype=dtype)
    assert model.dtype == kind
    cast = {name: x.to(kind) for name, x in states(slim()).items()}
    assert all(torch.equal(x, cast[name]) for name, x in states(model).items())
    save(slim(), tmp_path / "cast.safetensors", dtype)
    assert {x.dtype for x in load_file(tmp_path / "cast.safetensors").values()} == {kind}
    assert_equal(load(tmp_path / "cast.safetensors", dtype=dtype), model)


def lightning(tensors: dict[str, Tensor], monkeypatch) -> dict:
    """What Stable Diffusion's own .ckpt holds, Lightning's ModelCheckpoint and numpy's scalars among it."""
    import numpy as np

    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    extras = {row[0]: torch.zeros(2) for row in rows("sd-v1-ldm.tsv") if row[-1] == "optional"}
    return {
        "state_dict": tensors | extras | {"model_ema.decay": torch.tensor(0.9999)},
        "epoch": 3,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {module.ModelCheckpoint: {"best_model_score": np.float64(0.5), "dirpath": "logs"}},
        "optimizer_states": [],
        "lr_schedulers": [{"last_epoch": np.int64(7)}],
    }


def without_config(monkeypatch) -> None:
    """Files without metadata are taken for SD-v1 by their shapes; here for SLIM."""
    monkeypatch.setattr(checkpoint, "SD14", SLIM)


@pytest.mark.parametrize("zipped", [True, False])
def test_ckpt(saved, tmp_path, monkeypatch, zipped):
    without_config(monkeypatch)
    tensors = load_file(saved)
    for i, data in enumerate((lightning(tensors, monkeypatch), {"state_dict": tensors}, tensors)):
        path = tmp_path / f"{i}.anything"
        torch.save(data, path, _use_new_zipfile_serialization=zipped)
        assert_equal(load(path), slim())


def test_numpys_old_names_are_known():
    """Files from before numpy 2 say numpy.core, those pickled today numpy._core."""
    from minedit.formats import INERT

    assert {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"} <= set(INERT)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("end", [".safetensors", ".bin", ".fp16.safetensors"])
def test_diffusers_folder(saved, tmp_path, monkeypatch, old, end):
    without_config(monkeypatch)
    assert_equal(load(as_folder(load_file(saved), tmp_path / "folder", old, end)), slim())


def test_of_two_files_in_a_folder_the_full_safetensors_is_read(saved, tmp_path):
    folder = as_folder(load_file(saved), tmp_path / "folder")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not read")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    assert_equal(load(str(folder)), slim())


def test_ldm_file_without_clips_text_model_level(saved, tmp_path):
    tensors = {name.replace(".text_model.", "."): x for name, x in load_file(saved).items()}
    assert_equal(load(with_config(tensors, tmp_path / "file")), slim())


def test_a_dreambooth_file_of_several_dtypes(saved, tmp_path, monkeypatch):
    """As trainers write them: float16 for the UNet, bfloat16 for the text encoder, float32 for the VAE, and extras."""
    without_config(monkeypatch)
    kinds = {"model.diffusion_model": torch.float16, "cond_stage_model": torch.bfloat16}
    kind = {name: next((k for part, k in kinds.items() if name.startswith(part)), None) for name in load_file(saved)}
    tensors = {name: x.to(kind[name]) for name, x in load_file(saved).items()}
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["alphas_cumprod"] = torch.zeros(1000)
    tensors["model_ema.num_updates"] = torch.tensor(800)
    save_file(tensors, tmp_path / "dreambooth.safetensors")
    model = load(tmp_path / "dreambooth.safetensors")
    expected = {"unet": torch.float16, "text": torch.bfloat16, "vae": torch.float32}
    for name, x in states(model).items():
        assert x.dtype == torch.float32
        assert torch.equal(x, states(slim())[name].to(expected[name.split(".")[0]]).float())


def test_the_name_of_a_file_means_nothing(saved, tmp_path):
    shutil.copy(saved, tmp_path / "model.ckpt")
    assert_equal(load(tmp_path / "model.ckpt"), slim())


# Saving.


def test_a_failed_save_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "replace", fail)
    with pytest.raises(MineditError, match="cannot be written .*No space left on device"):
        save(slim(), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_save_says_where_it_cannot(tmp_path):
    with pytest.raises(MineditError, match="cannot be written"):
        save(slim(), tmp_path / "absent" / "model.safetensors")
    with pytest.raises(MineditError, match="dtype 'float8' is unknown; expected float32, float16, bfloat16"):
        save(slim(), tmp_path / "model.safetensors", "float8")
    assert not list(tmp_path.iterdir())


def test_a_saved_file_is_as_readable_as_any_other(saved, tmp_path):
    (tmp_path / "other").touch()
    assert saved.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_saving_over_the_file_a_model_was_read_from(saved, tmp_path):
    """Tensors may be views of the file's pages."""
    path = tmp_path / "model.safetensors"
    shutil.copy(saved, path)
    save(load(path), path)
    assert_equal(load(path), slim())


# The embedded model.


def test_the_embedded_model():
    if not (checkpoint.weights_folder() / "picturebook.safetensors").is_file():
        pytest.skip("weights/picturebook.safetensors is not there")
    model = load()
    assert model.config == PICTUREBOOK and model.dtype == torch.float32
    assert model.tokenizer.unknown(model.tokenizer.encode("a boy in the park")) == ()


def test_weights_lie_inside_the_installed_package_or_beside_it(monkeypatch, tmp_path):
    assert (checkpoint.weights_folder() / "tokenizer" / "vocab.json").is_file()
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "minedit" / "checkpoint.py"))
    assert checkpoint.weights_folder() == tmp_path / "weights"
    (tmp_path / "minedit" / "weights").mkdir(parents=True)
    assert checkpoint.weights_folder() == tmp_path / "minedit" / "weights"
