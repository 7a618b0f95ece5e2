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
from weight_files import SLIM, as_folder, in_shards, slim, with_config

from minedit.config import MineditError
from minedit.files import checkpoint
from minedit.files.checkpoint import load, save


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
        ((UNET + "joint_blocks.0.x", "first_stage_model.encoder.x"), "Stable Diffusion 3 or Flux"),
        (("lora_unet_down_blocks_0.lora_up.weight",), "a LoRA"),
        (("unet.down_blocks.0.attentions.0.to_k.lora_A.weight",), "a LoRA"),
        (("unet.mid_block.attentions.0.processor.to_q_lora.down.weight",), "a LoRA"),
        (("lycoris_unet_mid_block.hada_w1_a",), "a LoRA"),
        (("first_stage_model.encoder.conv_in.weight", "first_stage_model.loss.logvar"), "a VAE alone"),
        (("decoder.conv_in.weight", "encoder.mid.attn_1.q.weight", "model_ema.decay"), "a VAE alone"),
        (("encoder.down_blocks.0.resnets.0.conv1.weight", "quant_conv.bias"), "a VAE alone"),
        (("text_model.final_layer_norm.bias",), "a text encoder alone"),
        (("encoder.layers.0.mlp.fc1.bias", "final_layer_norm.bias"), "a text encoder alone"),
        (("cond_stage_model.transformer.text_model.final_layer_norm.bias",), "a text encoder alone"),
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
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file, whose weights are quantised"),
        (b'{"error": "not found"}', "neither safetensors nor a torch file"),
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


@pytest.mark.parametrize(("width", "what"), [(1024, "Stable Diffusion 2"), (2048, "Stable Diffusion XL")])
def test_other_models_by_the_width_of_their_text(tmp_path, width, what):
    name = UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({name: torch.zeros(320, width)}, tmp_path / "file")
    assert f"looks like {what}: its UNet reads text of width {width}, expected 768" in message(tmp_path / "file")


def test_an_sdxl_folder(saved, tmp_path):
    folder = as_folder(load_file(saved), tmp_path / "folder")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    with_config(load_file(file) | {"add_embedding.linear_1.weight": torch.zeros(1)}, file)
    assert "looks like Stable Diffusion XL" in message(folder)


def test_shards_that_do_not_fit_their_index(saved, tmp_path):
    folder = as_folder(load_file(saved), tmp_path / "folder")
    index = in_shards(folder / "unet" / "diffusion_pytorch_model.safetensors")
    shard, good = index.with_name("diffusion_pytorch_model-00002-of-00002.safetensors"), json.loads(index.read_text())
    (tmp_path / "outside.safetensors").write_bytes(shard.read_bytes())

    def said(weight_map: object) -> str:
        index.write_text(json.dumps({"weight_map": weight_map}))
        return message(folder)

    named = good["weight_map"]
    for way in ("../../outside.safetensors", str(tmp_path / "outside.safetensors"), "..\\outside.safetensors", ".."):
        names = {name: way if file == shard.name else file for name, file in named.items()}
        assert f"names {way}, " in said(names)
    assert "names absent.safetensors, not there" in said(named | {"conv_in.bias": "absent.safetensors"})
    assert f"and {shard.name} differ in " in said(dict(list(named.items())[:-1]))
    assert "differ in new.weight" in said(named | {"new.weight": shard.name})
    for wrong in ([], {"a": 1}, {"a": None, "b": "c"}, "text", None, 7):
        assert "is no index of weights" in said(wrong), wrong
    for text in ("", "[]", "{}", "{", "[" * 100_000):
        index.write_text(text)
        assert "is no index of weights" in message(folder)
    index.write_text(json.dumps(good))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f"{shard.name} is damaged" in message(folder)
    shard.unlink()
    assert f"names {shard.name}, not there" in message(folder)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in message(tmp_path / "pipe")


def test_options(saved, tmp_path):
    assert "does not exist" in message(tmp_path / "absent")
    assert "dtype 'float8' is unknown; expected float32, float16, bfloat16" in message(saved, dtype="float8")
    assert "device 'tpu9' cannot be used here" in message(saved, device="tpu9")
    assert "attention 'flash' is unknown" in message(saved, attention="flash")
    if not torch.cuda.is_available():
        assert "device 'cuda' cannot be used here" in message(saved, device="cuda")


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("unet", {"channels": 3}, "channels is 3, expected something like (320, 640, 1280, 1280)"),
        ("unet", {"channels": []}, "channels is []"),
        ("unet", {"channels": [8, 16.0, 24, 24]}, "channels is 16.0"),
        ("unet", {"channels": [8] * 17}, "channels is [8, 8, "),
        ("unet", {"attention": [1, 1, 1, 0]}, "attention is 1"),
        ("unet", {"norm_groups": 7}, "describes no model"),
        ("unet", {"heads": 0}, "heads is 0"),
        ("unet", {"heads": -1}, "heads is -1"),
        ("unet", {"heads": True}, "heads is True"),
        ("unet", {"heads": "8"}, "heads is '8'"),
        ("unet", {"context_dim": 2**40}, "context_dim is 1099511627776"),
        ("unet", {"blocks": 10**6}, "layers, too many for "),
        ("text", {"layers": 1000}, "layers, too many for "),
        ("text", None, "TextConfig has NoneType"),
        ("name", 3, "name is 3"),
        ("name", "\x1b[2J", r"name is '\x1b[2J'"),
        ("latent_scale", 1, "latent_scale is 1"),
        ("latent_scale", float("nan"), "config is not JSON (it has NaN for a number)"),
    ],
)
def test_a_config_that_describes_no_model(saved, tmp_path, part, change, says):
    data = json.loads(SLIM.to_json())
    data[part] = data[part] | change if isinstance(change, dict) else change
    save_file(load_file(saved), tmp_path / "file", {"minedit.config": json.dumps(data)})
    said = message(tmp_path / "file")
    assert said.startswith(str(tmp_path / "file")) and says in said


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "config is not JSON"), ("[" * 100_000, "config is not JSON"), ("null", "Config has NoneType"), ("{}", "[]")],
)
def test_a_config_that_is_none(saved, tmp_path, text, says):
    save_file(load_file(saved), tmp_path / "file", {"minedit.config": text})
    assert says in message(tmp_path / "file")


def test_the_embedded_file_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "weights_folder", lambda: tmp_path)
    with pytest.raises(MineditError, match="embedded checkpoint .*picturebook.safetensors is not there; reinstall"):
        load()
