"""What a file or folder says of how its model was trained, beside its weights: honoured, or refused by name.

Its shapes cannot tell: a model that predicts v, or that learned another noise schedule, has Stable Diffusion v1's own.
In: the texts and tensors in which that is said. Out: the Config they leave.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from minedit.config import Config, MineditError, foreign_json, shown
from minedit.files.layouts import Tensors

KIND = "expected a model that predicts noise on Stable Diffusion v1's schedule, as its layers are; choose another"
# Products of 1 - beta at some steps, rounded, as Stable Diffusion v1's files have them; halves may be 0.005 off.
SCHEDULE = {0: 0.9991, 250: 0.6738, 500: 0.2763, 750: 0.0562, 999: 0.0047}
# In the header of a safetensors file: what it may say, in small letters.
HEADER = {
    "modelspec.prediction_type": ("epsilon", "eps"),
    "ss_v_parameterization": ("false", "none", "0"),
    "ss_zero_terminal_snr": ("false", "none", "0"),
}


def check_header(path: Path, metadata: Mapping[str, str]) -> None:
    """Raises MineditError for another kind of model than Stable Diffusion v1, by the words of its trainer."""
    for key, allowed in HEADER.items():
        if key in metadata and metadata[key].strip().lower() not in allowed:
            raise MineditError(f"{path} says {key} is {shown(repr(metadata[key]), 40)}; {KIND}")


def honoured(path: Path, config: Config, metadata: Mapping[str, str], extras: Tensors) -> Config:
    """`config` with what is said beside the tensors. Raises MineditError for what is not Stable Diffusion v1's."""
    check_header(path, metadata)
    beside = path.with_suffix(".yaml") if path.is_file() else path
    if beside != path and beside.is_file():  # LDM's configuration, under the model's own name
        with beside.open("rb") as file:
            said = re.search(rb"""^\s*parameterization:\s*["']?(\w{1,20})""", file.read(2**16), re.M)
        if said and said[1] not in (b"eps", b"epsilon"):
            raise MineditError(f"{beside} says parameterization is {said[1].decode()!r}; {KIND}")
    for file, wanted in _expected(config).items():
        if file in metadata:
            _check(path, file, _settings(path, file, metadata), wanted)
    _check_schedule(path, extras)
    scale = scaling(path, metadata, "vae/config.json") or _scale_factor(path, extras)
    return replace(config, latent_scale=scale) if scale else config


def _expected(config: Config) -> dict[str, dict[str, object]]:
    """Of a diffusers folder: what its files must say where they say it."""
    heads = config.unet.heads
    return {
        "scheduler/scheduler_config.json": {
            **{"prediction_type": "epsilon", "beta_schedule": "scaled_linear", "beta_start": 0.00085},
            **{"beta_end": 0.012, "num_train_timesteps": 1000, "trained_betas": None, "rescale_betas_zero_snr": False},
        },
        "unet/config.json": {
            **{"attention_head_dim": heads, "num_attention_heads": heads, "norm_num_groups": config.unet.norm_groups},
            **{
                "flip_sin_to_cos": True,
                "freq_shift": 0,
                "norm_eps": 1e-5,
                "act_fn": "silu",
                "attention_type": "default",
            },
            **{"center_input_sample": False, "time_embedding_type": "positional", "dual_cross_attention": False},
            **{"attention_type": "default", "resnet_time_scale_shift": "default"},
            **{"resnet_out_scale_factor": 1.0, "mid_block_scale_factor": 1},
        },
        "vae/config.json": {
            **{"norm_num_groups": config.vae.norm_groups, "act_fn": "silu", "latents_mean": None, "latents_std": None},
            "shift_factor": 0,
        },
        "text_encoder/config.json": {
            **{"num_attention_heads": config.text.heads, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
        },
    }


def _settings(path: Path, file: str, metadata: Mapping[str, str]) -> dict:
    try:
        said = foreign_json(metadata[file])
        if not isinstance(said, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise MineditError(f"{path / file} is no JSON of diffusers ({error}); download it again") from error
    return said


def _check(path: Path, file: str, said: dict, wanted: dict[str, object]) -> None:
    kind = str(said.get("_class_name", ""))
    if re.match(r"FlowMatch|EDM", kind):
        raise MineditError(f"{path / file} is of a {shown(kind)}; {KIND}")
    for key, right in wanted.items():
        found = said.get(key)
        values = found if isinstance(found, list) and key == "attention_head_dim" else [found]
        if found is not None and not all(_same(value, right) for value in values):
            raise MineditError(f"{path / file} says {key} is {shown(repr(found), 40)}, expected {right!r}; {KIND}")


def _same(value: object, right: object) -> bool:
    if isinstance(value, int | float) and isinstance(right, int | float):
        return math.isclose(value, right, rel_tol=1e-6)
    return value == right


def scaling(path: Path, metadata: Mapping[str, str], file: str) -> float | None:
    """The scaling_factor in a VAE's config, if it says one."""
    if file not in metadata:
        return None
    return _positive(path / file, "scaling_factor", _settings(path, file, metadata).get("scaling_factor"))


def _scale_factor(path: Path, extras: Tensors) -> float | None:
    """That of an LDM file that was trained to latents of unit variance."""
    stored = extras.get("scale_factor")
    if stored is None or math.prod(stored.shape) != 1:
        return None
    return _positive(path, "scale_factor", round(stored.read(torch.float64).item(), 7))


def _positive(path: Path, name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise MineditError(f"{path} says {name} is {shown(repr(value), 40)}, expected a number above 0")
    return float(value)


def _check_schedule(path: Path, extras: Tensors) -> None:
    """The schedule in an LDM file, where there is one: some tools leave zeros in its place."""
    stored = extras.get("alphas_cumprod")
    if stored is None or stored.shape != (1000,):
        return
    found = stored.read(torch.float32)
    unlike = [t for t, value in SCHEDULE.items() if not abs(found[t].item() - value) < 0.01]
    if unlike and found[0] > 0:
        t = unlike[0]
        raise MineditError(f"{path} has {found[t].item():.4f} in alphas_cumprod[{t}], expected {SCHEDULE[t]}; {KIND}")
