"""Our merged weights against diffusers' and peft's LoRA layers beside theirs, on shared random weights, in float32.

The files are written by diffusers' own functions, in its layout and, by its converter, in kohya's.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from seeded import fill, normal
from tiny import TINY
from torch import Tensor, nn
from weight_files import SLIM

pytest.importorskip("diffusers", reason="only `make parity` installs diffusers")
pytest.importorskip("peft", reason="only `make parity` installs peft")
import oracles  # noqa: E402
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader  # noqa: E402
from diffusers.utils import convert_state_dict_to_kohya  # noqa: E402
from peft import LoraConfig  # noqa: E402
from peft.utils import get_peft_model_state_dict  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from test_diffusers import check  # noqa: E402

from minedit.attention.sdpa import sdpa  # noqa: E402
from minedit.config import Config  # noqa: E402
from minedit.files.lora import merge  # noqa: E402
from minedit.stack.model import Model  # noqa: E402
from minedit.stack.text import TextEncoder  # noqa: E402
from minedit.stack.unet import UNet  # noqa: E402

RANK, ALPHA, SCALE = 4, 6, 0.7
# Every kind of layer of the UNet; the names' ends are diffusers'.
UNET = [
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"),
    *("conv_in", "conv_out", "linear_1", "linear_2"),
]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
each_config = pytest.mark.parametrize("config", [TINY, SLIM], ids=lambda config: config.name)


@cache
def ours(config: Config) -> Model:
    parts = fill(UNet(config.unet)), None, fill(TextEncoder(config.text))
    return Model(*parts, None, config, sdpa, "sdpa", torch.device("cpu"), torch.float32)


def theirs(config: Config) -> tuple[nn.Module, nn.Module]:
    text = oracles.text(config.text)
    text.load_state_dict({n.removeprefix("clip."): x for n, x in ours(config).text.state_dict().items()}, strict=True)
    state = {name: x.clone() for name, x in ours(config).unet.state_dict().items()}
    return oracles.unet(config.unet, state), text


@torch.no_grad()
def adapter(module: nn.Module, targets: list[str]) -> tuple[dict[str, Tensor], dict]:
    """(random LoRA of a module, its LoraConfig) as their training scripts hand them to save_lora_weights."""
    module.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    for name, p in module.named_parameters():
        if ".lora_" in name:
            p.copy_(normal(name, *p.shape) / p[0].numel() ** 0.5)
    state = get_peft_model_state_dict(module, adapter_name="default")
    return {name: x.clone() for name, x in state.items()}, module.peft_config["default"].to_dict()


def inputs(config: Config) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    side = config.latent_size
    ids = torch.randint(config.text.bos, (2, config.text.context_length), generator=torch.Generator().manual_seed(0))
    context = normal("context", 2, config.text.context_length, config.unet.context_dim)
    return normal("x", 2, config.unet.in_channels, side, side), torch.tensor([981, 21]), context, ids


def loaded(config: Config, file: Path) -> tuple[nn.Module, nn.Module]:
    """Their modules with the file as their pipelines load it, at SCALE."""
    unet, text = theirs(config)
    tensors, alphas, metadata = Loader.lora_state_dict(file, unet_config=unet.config, return_lora_metadata=True)
    Loader.load_lora_into_unet(tensors, alphas, unet, adapter_name="lora", metadata=metadata)
    unet.set_adapters(["lora"], [SCALE])
    if any(name.startswith("text_encoder.") for name in tensors):
        Loader.load_lora_into_text_encoder(
            tensors, alphas, text, prefix="text_encoder", lora_scale=SCALE, adapter_name="lora", metadata=metadata
        )
        for module in text.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("lora", SCALE)
    return unet.eval(), text.eval()


@torch.no_grad()
def compare(what: str, config: Config, file: Path) -> None:
    x, t, context, ids = inputs(config)
    merged = merge(ours(config), file, SCALE)
    unet, text = loaded(config, file)
    plain, changed = ours(config).unet(x, t, context), merged.unet(x, t, context)
    assert (plain - changed).abs().max() > 0.01 * plain.abs().max(), "the LoRA changes nothing"
    check(f"UNet {config.name}, {what}", changed, unet(x, t, context).sample)
    plain, changed = ours(config).text(ids), merged.text(ids)
    assert (plain - changed).abs().max() > 0.01 * plain.abs().max(), "the LoRA changes nothing"
    check(f"text encoder {config.name}, {what}", changed, text(input_ids=ids).last_hidden_state)


@each_config
@pytest.mark.parametrize("header", [True, False], ids=["alpha in the header", "no alpha"])
def test_diffusers_layout(config: Config, tmp_path, header):
    unet, text = theirs(config)
    (unet_lora, unet_config), (text_lora, text_config) = adapter(unet, UNET), adapter(text, TEXT)
    about = {"unet_lora_adapter_metadata": unet_config, "text_encoder_lora_adapter_metadata": text_config}
    Loader.save_lora_weights(tmp_path, unet_lora, text_lora, **(about if header else {}))
    (file,) = tmp_path.iterdir()
    compare(f"diffusers' layout{', alpha 6 of 4' * header}", config, file)


@each_config
def test_kohya_layout(config: Config, tmp_path):
    """By diffusers' converter; alpha is then set to another than the rank."""
    unet, text = theirs(config)
    tensors = {f"unet.{name}": x for name, x in adapter(unet, UNET)[0].items()}
    tensors |= {f"text_encoder.{name}": x for name, x in adapter(text, TEXT)[0].items()}
    held = convert_state_dict_to_kohya(tensors)
    for name in [name for name in held if name.endswith(".alpha")]:
        held[name] = torch.tensor(float(ALPHA))
    held = {name.replace("lora_te1_", "lora_te_"): x.contiguous() for name, x in held.items()}
    assert all(name.startswith(("lora_unet_", "lora_te_")) for name in held)
    save_file(held, tmp_path / "kohya.safetensors")
    compare("kohya's layout", config, tmp_path / "kohya.safetensors")


@each_config
def test_attention_layers_alone_saved_without_prefix(config: Config, tmp_path):
    """As a UNet's own save_lora_adapter writes them, with peft's LoraConfig in the header."""
    unet, _ = theirs(config)
    adapter(unet, ATTENTION)
    unet.save_lora_adapter(tmp_path)
    (file,) = tmp_path.iterdir()
    assert all(name.split(".")[0] in ("down_blocks", "mid_block", "up_blocks") for name in load_file(file))
    unet.set_adapters(["default"], [SCALE])
    x, t, context, _ = inputs(config)
    with torch.no_grad():
        merged = merge(ours(config), file, SCALE)
        check(f"UNet {config.name}, no prefix", merged.unet(x, t, context), unet(x, t, context).sample)
