"""Files of weights: every layout and container, every name accounted for; saving.

Oracles: the published names (tests/fixtures, with their sources in the first lines), and tensors bit for bit.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from seeded import fill, normal, relative
from torch import Tensor
from weight_files import SLIM, as_folder, diffusers_names, in_shards, rows, slim, with_config

from minedit.attention.eager import eager
from minedit.config import IP2P, PICTUREBOOK, SD14, Config, MineditError
from minedit.files import checkpoint
from minedit.files.checkpoint import Model, load, save
from minedit.files.layouts import recognise
from minedit.files.stored import Stored, contiguous
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet

FILE = Path("file")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "slim.safetensors"
    save(slim(), path)
    return path


def of_shape(*shape: int, dtype: torch.dtype = torch.float32) -> Stored:
    return Stored(FILE, 0, dtype, shape, contiguous(shape))


def published(name: str, shape: str) -> Stored:
    return of_shape(*json.loads(shape), dtype=torch.int64 if "position_ids" in name else torch.float32)


def fits(tensors: dict[str, Stored], config: Config) -> list[dict[str, Stored]]:
    """What `load` does with a file's tensors before it reads them."""
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
    tensors["model_ema.diffusion_modelinput_blocks00weight"] = of_shape(320, 4, 3, 3)
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
    tensors[stem] = of_shape(320, 8, 3, 3)
    assert checkpoint._config(FILE, recognise(FILE, tensors), {}) == IP2P
    assert [len(part) for part in fits(tensors, IP2P)] == [686, 248, 196]
    tensors[stem] = of_shape(320, 9, 3, 3)
    with pytest.raises(MineditError, match="an inpainting model: its UNet takes 9 channels, expected 4 .* or 8"):
        checkpoint._config(FILE, recognise(FILE, tensors), {})


# Containers: the same tensors come back, bit for bit.


def test_safetensors_round_trip(saved):
    again = load(saved, attention="eager")
    assert again.config == SLIM and again.attend is eager and again.attention == "eager"
    assert (again.device, again.dtype) == (torch.device("cpu"), torch.float32)
    assert_equal(again, slim())
    assert_same_pictures(again)
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
    from minedit.files.pickles import INERT

    assert {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"} <= set(INERT)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("end", [".safetensors", ".bin", ".fp16.safetensors"])
def test_diffusers_folder(saved, tmp_path, monkeypatch, old, end):
    without_config(monkeypatch)
    assert_equal(load(as_folder(load_file(saved), tmp_path / "folder", old, end)), slim())


@pytest.mark.parametrize(
    ("end", "index"),  # as diffusers 0.42 and transformers 5 name them, and diffusers before 0.32
    [
        (".safetensors", ""),
        (".bin", ""),
        (".fp16.safetensors", "{stem}.safetensors.index.fp16.json"),
        (".fp16.safetensors", "{stem}.fp16.safetensors.index.json"),
        (".fp16.bin", "{stem}.bin.index.fp16.json"),
    ],
)
def test_diffusers_folder_in_shards(saved, tmp_path, monkeypatch, end, index):
    without_config(monkeypatch)
    folder = as_folder(load_file(saved), tmp_path / "folder", end=end)
    for file in [path for part in folder.iterdir() for path in part.iterdir()]:
        in_shards(file, index.format(stem=file.name.removesuffix(end)), count=3)
    assert_equal(load(folder), slim())


def test_a_half_precision_ckpt(saved, tmp_path, monkeypatch):
    without_config(monkeypatch)
    torch.save({"state_dict": {name: x.half() for name, x in load_file(saved).items()}}, tmp_path / "model.ckpt")
    halves, back = states(load(tmp_path / "model.ckpt", dtype="float16")), states(load(tmp_path / "model.ckpt"))
    for name, x in states(slim()).items():
        assert torch.equal(halves[name], x.half()) and torch.equal(back[name], x.half().float()), name


def test_a_ckpt_of_views_and_parameters(saved, tmp_path, monkeypatch):
    """Merged and hand-made files hold transposed tensors, slices of larger ones, parameters and modules' metadata."""
    without_config(monkeypatch)
    tensors = load_file(saved)
    for i, (name, x) in enumerate(tensors.items()):
        if i % 3 == 0:
            tensors[name] = x.transpose(0, -1).contiguous().transpose(0, -1)
        elif i % 3 == 1:
            tensors[name] = torch.cat([x.new_ones(5), x.flatten(), x.new_ones(5)])[5:-5].view(x.shape)
        else:
            tensors[name] = torch.nn.Parameter(x)
    data = OrderedDict(tensors)
    data._metadata = OrderedDict({"": {"version": 1}})
    torch.save(data, tmp_path / "model.ckpt")
    assert_equal(load(tmp_path / "model.ckpt"), slim())


@pytest.mark.parametrize("spaces", range(4))
def test_weights_are_the_same_wherever_they_lie(saved, tmp_path, spaces):
    """Float32 stays in the file, at whatever byte its header puts it. Sums over it may round otherwise, no more."""
    data = saved.read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    path = tmp_path / "file"
    path.write_bytes((len(header) + spaces).to_bytes(8, "little") + header + b" " * spaces + data[8 + len(header) :])
    model = load(path)
    assert all(x.is_contiguous() for x in states(model).values())
    assert_equal(model, slim())
    assert_same_pictures(model)


def assert_same_pictures(model: Model) -> None:
    with torch.no_grad():
        ids = torch.tensor([model.tokenizer.encode("a boy in the park").ids])
        inputs = normal("x", 1, 4, 8, 8), torch.tensor([500])
        ours, expected = (each.unet(*inputs, each.text(ids)) for each in (model, slim()))
    assert relative(ours, expected) < 1e-6


def test_a_model_outlives_its_file_and_leaves_it_alone(saved, tmp_path):
    """Loaded weights are the file's pages: another file under its name, or writing to them, must not reach it."""
    path, before = tmp_path / "model.safetensors", saved.read_bytes()
    path.write_bytes(before)
    model = load(path)
    save(slim(), path, "float16")
    path.unlink()
    assert_equal(model, slim())
    path.write_bytes(before)
    again = load(path)
    with torch.no_grad():
        for x in states(again).values():
            x.zero_()
    assert path.read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure memory")
@pytest.mark.parametrize("container", ["safetensors", "ckpt"])
def test_a_load_takes_little_more_than_the_model(tmp_path, monkeypatch, container):
    config = replace(SLIM, text=replace(SLIM.text, width=512), unet=replace(SLIM.unet, context_dim=512))
    monkeypatch.setattr(checkpoint, "SD14", config)
    wide = replace(slim(), unet=fill(UNet(config.unet)), text=TextEncoder(config.text), config=config)
    save(wide, tmp_path / "model.safetensors")
    path = tmp_path / f"model.{container}"
    if container == "ckpt":
        torch.save(load_file(tmp_path / "model.safetensors"), path)
    size = path.stat().st_size
    assert size > 10**8
    for dtype, share in (("float32", 1.0), ("float16", 0.5)):
        before = memory("VmRSS")
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        except OSError:
            pytest.skip("this system does not let a process reset its peak")
        model = load(path, dtype=dtype)
        assert memory("VmHWM") - before < share * size * 1.15 + 2**25  # and what malloc keeps
        assert model.config == config


def memory(field: str) -> int:
    """Of this process, in bytes."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


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

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(MineditError, match="cannot write .*No space left on device"):
        save(slim(), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_save_says_where_it_cannot(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MineditError, match="cannot write .*choose another place"):
        save(slim(), tmp_path / "file" / "model.safetensors")
    with pytest.raises(MineditError, match="dtype 'float8' is unknown; expected float32, float16, bfloat16"):
        save(slim(), tmp_path / "model.safetensors", "float8")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


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
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "minedit" / "files" / "checkpoint.py"))
    assert checkpoint.weights_folder() == tmp_path / "weights"
    (tmp_path / "minedit" / "weights").mkdir(parents=True)
    assert checkpoint.weights_folder() == tmp_path / "minedit" / "weights"
