"""What a file says beside its weights: how its model was trained, what it lacks, what lies beside; and another VAE.

Oracles: the published configs of Stable Diffusion v1-4's folder, and tensors bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from weight_files import SLIM, as_folder, in_shards, slim, with_config

from minedit import cli
from minedit.config import LIMIT, MineditError
from minedit.files import checkpoint
from minedit.files.checkpoint import load, save
from minedit.stack.model import Model

EMA = "model_ema.diffusion_model"
UNET, VAE = "model.diffusion_model.", "first_stage_model."
# As published with Stable Diffusion v1-4, where it says something; the heads are SLIM's.
SCHEDULER = {
    **{"_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085},
    **{"num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1},
    **{"trained_betas": None, "clip_sample": False},
}
UNET_SAYS = {"_class_name": "UNet2DConditionModel", "attention_head_dim": 2, "act_fn": "silu", "norm_num_groups": 4}
UNET_SAYS |= {"center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-05}
FILES = {
    "scheduler/scheduler_config.json": SCHEDULER,
    "unet/config.json": UNET_SAYS,
    "vae/config.json": {"_class_name": "AutoencoderKL", "act_fn": "silu", "norm_num_groups": 4, "latent_channels": 4},
    "text_encoder/config.json": {"hidden_act": "quick_gelu", "num_attention_heads": 2, "layer_norm_eps": 1e-05},
}


@pytest.fixture(scope="module")
def tensors(tmp_path_factory) -> dict[str, torch.Tensor]:
    path = tmp_path_factory.mktemp("saved") / "slim.safetensors"
    save(slim(), path)
    return load_file(path)


@pytest.fixture(scope="module")
def folder(tensors, tmp_path_factory) -> Path:
    return as_folder(tensors, tmp_path_factory.mktemp("folder") / "model")


@pytest.fixture(autouse=True)
def without_config(monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "SD14", SLIM)


def say(folder: Path, file: str = "", **change: object) -> None:
    """The folder's settings, one of them changed."""
    for name, said in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(said | (change if name == file else {})))


def message(path: Path, **options: object) -> str:
    with pytest.raises(MineditError) as error:
        load(path, **options)
    text = str(error.value)
    assert text.isprintable() and len(text) < 700
    return text


def states(model: Model) -> dict[str, torch.Tensor]:
    parts = (("unet", model.unet), ("vae", model.vae), ("text", model.text))
    return {f"{part}.{name}": x for part, module in parts for name, x in module.state_dict().items()}


def assert_slim(model: Model) -> None:
    ours, expected = states(model), states(slim())
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)


# How the model was trained.


def test_the_published_settings_are_taken(folder):
    say(folder)
    model = load(folder)
    assert_slim(model)
    assert model.config == SLIM


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 500}),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}),
        ("unet/config.json", {"attention_head_dim": [2, 4, 8, 8]}),
        ("unet/config.json", {"flip_sin_to_cos": False}),
        ("vae/config.json", {"shift_factor": 0.1159}),
        ("vae/config.json", {"scaling_factor": -1}),
        ("text_encoder/config.json", {"hidden_act": "gelu"}),
    ],
)
def test_a_folder_that_says_it_is_of_another_kind_is_refused_by_name(folder, file, change):
    say(folder, file, **change)
    said = message(folder)
    (key, value) = next(iter(change.items()))
    assert file.split("/")[1] in said and (key in said or str(value) in said) and "expected" in said


def test_a_folders_scaling_factor_is_honoured(folder):
    say(folder, "vae/config.json", scaling_factor=0.13025)
    assert load(folder).config.latent_scale == 0.13025


@pytest.mark.parametrize("text", ["", "[]", "{", '{"scaling_factor": NaN}', "[" * 10**5, '{"a": ' + "9" * 5000 + "}"])
def test_settings_that_are_none(folder, text):
    say(folder)
    (folder / "vae" / "config.json").write_text(text)
    assert "vae/config.json is no JSON" in message(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("modelspec.prediction_type", "v"), ("ss_v_parameterization", "True"), ("ss_zero_terminal_snr", "true")],
)
def test_a_header_that_says_v(tensors, tmp_path, key, value):
    save_file(tensors, tmp_path / "file", {key: value})
    said = message(tmp_path / "file")
    assert f"says {key} is '{value}'; expected a model that predicts noise" in said
    save_file(tensors, tmp_path / "file", {"modelspec.prediction_type": "epsilon", "ss_zero_terminal_snr": "False"})
    assert_slim(load(tmp_path / "file"))


@pytest.mark.parametrize("name", ["v_pred", "ztsnr", "edm_vpred.sigma_max"])
def test_a_tensor_that_says_v(tensors, tmp_path, name):
    save_file(tensors | {name: torch.zeros(0)}, tmp_path / "file")
    assert "looks like a model of v-prediction" in message(tmp_path / "file")


def test_a_yaml_beside_that_says_v(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "model.yaml").write_text('model:\n  params:\n    parameterization: "v"\n    timesteps: 1000\n')
    assert "model.yaml says parameterization is 'v'; expected" in message(tmp_path / "model.safetensors")
    (tmp_path / "model.yaml").write_text('    parameterization: "eps"\n')
    assert_slim(load(tmp_path / "model.safetensors"))


def test_the_schedule_in_an_ldm_file(tensors, tmp_path):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    rescaled = (root - root[-1]) * root[0] / (root[0] - root[-1])  # zero terminal SNR, arXiv:2305.08891
    for right in ((root**2).float(), (root**2).half(), (root**2).bfloat16(), torch.zeros(1000)):
        save_file(tensors | {"alphas_cumprod": right}, tmp_path / "file")
        assert_slim(load(tmp_path / "file"))
    for wrong in (rescaled**2, (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)):
        save_file(tensors | {"alphas_cumprod": wrong.float()}, tmp_path / "file")
        assert "in alphas_cumprod[250], expected 0.6738" in message(tmp_path / "file")


def test_the_scale_factor_of_an_ldm_file_is_honoured(tensors, tmp_path):
    save_file(tensors | {"scale_factor": torch.tensor(0.25)}, tmp_path / "file")
    assert load(tmp_path / "file").config.latent_scale == 0.25


# What lies beside the weights.


def test_a_header_of_thumbnails_and_tags(tensors, tmp_path):
    """The format allows 100 MB of it; only text may be long."""
    about = {
        "modelspec.thumbnail": "data:image/jpeg;base64," + "A" * (2 * LIMIT),
        "ss_tag_frequency": '{"a": 1}' * 99999,
    }
    save_file(tensors, tmp_path / "file", about)
    assert_slim(load(tmp_path / "file"))


def test_numbers_and_text_beside_a_state_dict(tensors, tmp_path):
    """Trainers' own; a pickle of any protocol that torch.save takes."""
    beside = {"epoch": 3, "lr": 1e-5, "name": "run", "none": None, "hyper": {"betas": [0.9, 0.999], "on": True}}
    for protocol in (2, 3, 4, 5):
        torch.save({"state_dict": tensors, **beside}, tmp_path / "file", pickle_protocol=protocol)
        assert_slim(load(tmp_path / "file"))
    torch.save({**tensors, "epoch": 3}, tmp_path / "file")
    assert_slim(load(tmp_path / "file"))
    torch.save({"state_dict": tensors, "ema": [{"a": torch.zeros(1)}]}, tmp_path / "file")
    assert "has ema beside its state_dict, which hold tensors too" in message(tmp_path / "file")


def test_tensors_that_are_no_part_of_a_model(tensors, tmp_path):
    names = ("cond_stage_model.logit_scale", "cond_stage_model.text_projection", "embedding_manager.string_to_param.*")
    names += ("cond_stage_model.transformer.text_projection.weight", "first_stage_model.loss.logvar", "logvar")
    save_file(tensors | {name: torch.zeros(2) for name in names}, tmp_path / "file")
    assert_slim(load(tmp_path / "file"))


def test_an_ldm_file_with_diffusers_attention_in_its_vae(tensors, tmp_path):
    renamed = {}
    for name, x in tensors.items():
        for ours, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
            if f".mid.attn_1.{ours}." in name and name.startswith(VAE):
                name, x = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}."), x.flatten(1) if x.ndim == 4 else x
                break
        renamed[name] = x.contiguous()
    assert sum("attn_1.to_" in name for name in renamed) == 16
    save_file(renamed, tmp_path / "file")
    assert_slim(load(tmp_path / "file"))


def test_a_file_with_the_average_of_its_unet_alone(tensors, tmp_path, capsys):
    only = {EMA + n.removeprefix(UNET).replace(".", "") if n.startswith(UNET) else n: x for n, x in tensors.items()}
    save_file(only | {"model_ema.decay": torch.ones(())}, tmp_path / "file")
    model = load(tmp_path / "file")
    assert_slim(model)
    assert len(model.notes) == 1 and "average over training only; that one is read" in model.notes[0]
    assert cli.main(["weights", "verify", str(tmp_path / "file")]) == 0
    assert "note: " in capsys.readouterr().out
    both = {EMA + name.removeprefix(UNET).replace(".", ""): x + 1 for name, x in tensors.items() if UNET in name}
    save_file(tensors | both, tmp_path / "file")
    assert_slim(load(tmp_path / "file"))


def test_every_name_of_the_unet_is_told_without_its_dots(tensors):
    names = [name for name in tensors if name.startswith(UNET)]
    assert len({name.replace(".", "") for name in names}) == len(names)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ((VAE + "encoder.conv_in.weight", "cond_stage_model.transformer.text_model.x"), "a VAE without a UNet"),
        (("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",), "a motion module of AnimateDiff"),
        (("module.up_blocks.0.motion_modules.0.x",), "a motion module of AnimateDiff"),
        (("image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"), "an IP-Adapter"),
        (("emb_params",), "an embedding of textual inversion"),
    ],
)
def test_a_file_is_called_what_it_is(tmp_path, names, what):
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "file")
    assert what in message(tmp_path / "file")


# Another VAE, or the only one.


def test_a_file_without_a_vae(tensors, folder, tmp_path, capsys):
    bare, alone = tmp_path / "bare", {n.removeprefix(VAE): x for n, x in tensors.items() if n.startswith(VAE)}
    save_file({name: x for name, x in tensors.items() if not name.startswith(VAE)}, bare)
    assert message(bare) == f"{bare} has no VAE; name one: --vae FILE, or load(vae=...)"
    save_file(alone | {"loss.logvar": torch.zeros(())}, tmp_path / "ldm")
    torch.save({"state_dict": alone}, tmp_path / "ckpt")
    say(folder, "vae/config.json", scaling_factor=0.25)
    diffusers = folder / "vae" / "diffusion_pytorch_model.safetensors"
    whole = with_config(tensors, tmp_path / "whole")
    for vae in (tmp_path / "ldm", tmp_path / "ckpt", diffusers, whole, folder / "vae", folder):
        model = load(bare, vae=vae)
        assert_slim(model)
        assert model.config.latent_scale == (0.25 if vae.is_dir() else SLIM.latent_scale)
    for vae, says in ((bare, "holds no VAE"), (tmp_path / "absent", "does not exist; expected a VAE"), (5, "no path")):
        assert says in message(bare, vae=vae)
    assert "none of diffusion_pytorch_model.safetensors" in message(bare, vae=folder / "text_encoder")
    say(folder)
    argv = ["generate", "a", "--model", str(bare), "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 2 and "--vae FILE" in capsys.readouterr().err


def test_a_vae_in_shards(tensors, folder, tmp_path):
    """Of a folder, of that of a whole model, and by its index."""
    bare = tmp_path / "bare"
    save_file({name: x for name, x in tensors.items() if not name.startswith(VAE)}, bare)
    shutil.copytree(folder / "vae", tmp_path / "model" / "vae")
    index = in_shards(tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors")
    for vae in (tmp_path / "model", index.parent, index):
        assert_slim(load(bare, vae=vae))
    index.with_name("diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    assert "not there; download every file" in message(bare, vae=index.parent)


def test_weights_are_verified_and_converted_with_another_vae(tensors, tmp_path, capsys):
    bare, vae, out = tmp_path / "bare", tmp_path / "vae", tmp_path / "out.safetensors"
    save_file({name: x for name, x in tensors.items() if not name.startswith(VAE)}, bare)
    save_file({name: x for name, x in tensors.items() if name.startswith(VAE)}, vae)
    assert cli.main(["weights", "convert", str(bare), str(out)]) == 2 and "--vae FILE" in capsys.readouterr().err
    assert cli.main(["weights", "convert", str(bare), str(out), "--vae", str(vae)]) == 0
    assert_slim(load(out))
    capsys.readouterr()
    assert cli.main(["weights", "verify", str(bare), "--vae", str(vae)]) == 0
    said = capsys.readouterr().out
    digest = hashlib.sha256(vae.read_bytes()).hexdigest()
    assert f"{bare}: slim" in said and f"sha256 {vae}  {digest}: not one of" in said


def test_a_folder_without_a_vae(tensors, tmp_path):
    folder = as_folder(tensors, tmp_path / "model")
    (folder / "vae").rename(tmp_path / "vae")
    assert "without vae" in message(folder) and "--vae FILE" in message(folder)
    assert_slim(load(folder, vae=tmp_path / "vae"))


def test_a_vae_takes_the_place_of_the_models_own(tensors, tmp_path):
    save_file({name: x + 1 for name, x in tensors.items() if name.startswith(VAE)}, tmp_path / "vae")
    save_file(tensors, tmp_path / "file")
    ours, before = states(load(tmp_path / "file", vae=str(tmp_path / "vae"))), states(slim())
    assert all(torch.equal(x, before[name] + name.startswith("vae.")) for name, x in ours.items())


# What is no path, no device, no scale.


def test_arguments_that_are_none(tmp_path, capsys):
    for path in (5, b"file", 1.5, True):
        assert "is no path; expected an LDM" in message(path)
    for name in ("~nobody-of-that-name/x", "a\0b", "n" * 300):
        assert "cannot be read" in message(name) or "does not exist" in message(name)
    for device in (None, 5, "hpu", "xpu", "cpu:x", ""):
        assert "cannot be used here" in message(tmp_path, device=device), device
    assert "dtype 5 is unknown" in message(tmp_path, dtype=5)
    for scale in ("nan", "inf"):
        assert cli.main(["generate", "a", "--lora", f"good:{scale}"]) == 2
        assert f"found 'good:{scale}', expected a finite scale" in capsys.readouterr().err
