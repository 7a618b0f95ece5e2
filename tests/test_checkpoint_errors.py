"""What `load` says of files that are no model: one line, with what was found and what was expected."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from weight_files import SLIM, as_folder, slim, with_config

from minedit import checkpoint
from minedit.checkpoint import load, save
from minedit.config import MineditError


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "slim.safetensors"
    save(slim(), path)
    return path


def message(path: Path, **options: str) -> str:
    with pytest.raises(MineditError) as error:
        load(path, **options)
    text = str(error.value)
    assert "\n" not in text and len(text) < 700
    return text


UNET = "model.diffusion_model."


def test_missing_and_further_names_and_other_shapes(saved, tmp_path):
    tensors = load_file(saved)
    del tensors[UNET + "out.2.bias"], tensors["first_stage_model.quant_conv.weight"]
    tensors[UNET + "out.3.bias"] = torch.zeros(3)
    tensors[UNET + "out.0.bias"] = torch.zeros(3)
    tensors[UNET + "out.0.weight"] = torch.zeros(8, dtype=torch.int8)
    said = message(with_config(tensors, tmp_path / "file"))
    assert "looks like an LDM file but is not slim" in said
    assert "lacks 2 tensors (unet.out.2.bias, vae.quant_conv.weight)" in said
    assert "has besides 1 tensor (unet.out.3.bias)" in said
    assert "unet.out.0.bias [3] float32 for [8]" in said and "unet.out.0.weight [8] int8 for [8]" in said


def test_a_name_of_no_part(saved, tmp_path):
    tensors = load_file(saved) | {"my.tensor": torch.zeros(1), "model_ema": torch.zeros(1)}
    said = message(with_config(tensors, tmp_path / "file"))
    assert "looks like an LDM file, but has 2 tensors (model_ema, my.tensor) besides" in said


def test_the_same_tensor_twice(saved, tmp_path):
    tensors = load_file(saved)
    name = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    tensors[name.replace(".text_model.", ".")] = tensors[name].clone()
    assert "names tensors of its text twice" in message(with_config(tensors, tmp_path / "file"))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ((UNET + "input_blocks.0.0.weight", "cond_stage_model.model.ln_final.weight"), "Stable Diffusion 2"),
        ((UNET + "input_blocks.0.0.weight", "conditioner.embedders.0.x"), "Stable Diffusion XL"),
        (("lora_unet_down_blocks_0.lora_up.weight",), "a LoRA"),
        (("control_model.input_blocks.0.0.weight",), "a ControlNet"),
        (("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"), "the UNet of a diffusers folder alone"),
        (("a", "b", "c", "d"), r"unknown here: 4 tensors \(a, b, c, \.\.\.\)"),
        ((), r"unknown here: 0 tensors"),
    ],
)
def test_layouts_that_are_not_ours(tmp_path, names, what):
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "file")
    assert re.search(what, message(tmp_path / "file"))


def test_damaged_files(saved, tmp_path, monkeypatch):
    whole, path = saved.read_bytes(), tmp_path / "file"
    for size in (100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "damaged or cut short" in message(path)
    for zipped in (True, False):
        torch.save(load_file(saved), path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for size in (100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            assert "damaged or cut short" in message(path), (zipped, size)
    path.write_bytes(b"\x80\x02" + bytes(range(256)))
    assert "damaged or cut short" in message(path)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b"\n <html lang=en>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"", "begins with b''"),
        (b"GIF89a..", "neither safetensors nor a torch file"),
    ],
)
def test_files_that_are_no_weights(tmp_path, head, what):
    (tmp_path / "model.safetensors").write_bytes(head)
    assert what in message(tmp_path / "model.safetensors")


def test_a_pickle_may_not_run_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for zipped in (True, False):
        torch.save({"state_dict": {"a": Bomb()}}, tmp_path / "file", _use_new_zipfile_serialization=zipped)
        assert "mkdir, and only tensors are loaded" in message(tmp_path / "file")
    (tmp_path / "file").write_bytes(pickle.dumps(Bomb(), protocol=2))
    message(tmp_path / "file")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ([torch.zeros(1)], "other things than named tensors"),
        ({"a": 1}, "other things than named tensors"),
        ({"state_dict": {"a": [1]}}, "other things than named tensors"),
        ({"state_dict": {}, "surprise": 1}, "has surprise beside its state_dict"),
    ],
)
def test_torch_files_of_other_things(tmp_path, data, what):
    torch.save(data, tmp_path / "file")
    assert what in message(tmp_path / "file")


def test_folders_that_are_none(saved, tmp_path):
    assert "without unet, vae, text_encoder (it has nothing)" in message(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert "(it has model.safetensors)" in message(tmp_path)
    folder = as_folder(load_file(saved), tmp_path / "folder")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "vae has none of diffusion_pytorch_model.safetensors, " in message(folder)
    shutil.rmtree(folder / "vae")
    assert "without vae" in message(folder)


def test_options(saved, tmp_path):
    assert "does not exist" in message(tmp_path / "absent")
    assert "dtype 'float8' is unknown; expected float32, float16, bfloat16" in message(saved, dtype="float8")
    assert "device 'tpu9' cannot be used here" in message(saved, device="tpu9")
    assert "attention 'flash' is unknown" in message(saved, attention="flash")
    if not torch.cuda.is_available():
        assert "device 'cuda' cannot be used here" in message(saved, device="cuda")


@pytest.mark.parametrize("change", [{"channels": 3}, {"norm_groups": 7}])
def test_a_config_that_describes_no_model(saved, tmp_path, change):
    data = json.loads(SLIM.to_json())
    data["unet"] |= change
    save_file(load_file(saved), tmp_path / "file", {"minedit.config": json.dumps(data)})
    assert str(tmp_path / "file") in message(tmp_path / "file")
    save_file(load_file(saved), tmp_path / "file", {"minedit.config": "{"})
    assert "config is not JSON" in message(tmp_path / "file")


def test_the_embedded_file_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "weights_folder", lambda: tmp_path)
    with pytest.raises(MineditError, match="embedded checkpoint .*picturebook.safetensors is not there; reinstall"):
        load()
