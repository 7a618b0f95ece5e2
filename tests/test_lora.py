"""LoRA: every layout, every kind of layer, every key accounted for.

Oracles: what a LoRA is by definition, a second path beside the layer, computed on activations in float64; for the
names, diffusers' own (tests/fixtures).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from seeded import normal, relative
from torch import Tensor, nn
from weight_files import SLIM, diffusers_names, slim

from minedit.config import SD14, MineditError
from minedit.files import lora
from minedit.files.checkpoint import load, save
from minedit.files.lora import merge
from minedit.stack.model import Model
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet

RANK = 2
# kohya's name -> ours: every kind of layer there is
LAYERS = {
    "lora_unet_conv_in": "input_blocks.0.0",
    "lora_unet_time_embedding_linear_1": "time_embed.0",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    ),
    "lora_unet_down_blocks_1_attentions_1_proj_in": "input_blocks.5.1.proj_in",
    "lora_unet_down_blocks_1_resnets_0_conv_shortcut": "input_blocks.4.0.skip_connection",
    "lora_unet_down_blocks_0_downsamplers_0_conv": "input_blocks.3.0.op",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (
        "middle_block.1.transformer_blocks.0.attn2.to_k"
    ),
    "lora_unet_mid_block_resnets_1_conv1": "middle_block.2.in_layers.2",
    "lora_unet_up_blocks_0_upsamplers_0_conv": "output_blocks.2.1.conv",
    "lora_unet_up_blocks_1_upsamplers_0_conv": "output_blocks.5.2.conv",
    "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0": (
        "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0"
    ),
    "lora_unet_up_blocks_2_attentions_0_transformer_blocks_0_ff_net_0_proj": (
        "output_blocks.6.1.transformer_blocks.0.ff.net.0.proj"
    ),
    "lora_unet_up_blocks_3_attentions_0_proj_out": "output_blocks.9.1.proj_out",
    "lora_unet_up_blocks_1_resnets_2_time_emb_proj": "output_blocks.5.0.emb_layers.1",
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": "text.encoder.layers.0.self_attn.q_proj",
    "lora_te_text_model_encoder_layers_1_mlp_fc2": "text.encoder.layers.1.mlp.fc2",
}


def layer_of(model: Model, ours: str) -> nn.Module:
    if not ours.startswith("text."):
        return model.unet.get_submodule(ours)
    clip = model.text.clip
    return getattr(clip, "text_model", clip).get_submodule(ours.removeprefix("text."))


def pair(name: str, layer: nn.Module, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """(down, up) as kohya writes them for a layer: the kernel is the down's."""
    out, *shape = layer.weight.shape
    return normal(f"{name} down", rank, *shape), normal(f"{name} up", out, rank, *[1] * (len(shape) - 1))


def kohya(model: Model, names: dict[str, str] = LAYERS, alpha: float | None = 1.0) -> dict[str, Tensor]:
    tensors = {}
    for name, ours in names.items():
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = pair(ours, layer_of(model, ours))
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def saved(tensors: dict[str, Tensor], path: Path, header: dict | None = None) -> Path:
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(header)} if header else None)
    return path


def output(layer: nn.Module, x: Tensor, weight: Tensor, bias: bool = True) -> Tensor:
    bias = layer.bias.double() if bias and layer.bias is not None else None
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight.double(), bias)
    return F.conv2d(x, weight.double(), bias, layer.stride, layer.padding)


def beside(layer: nn.Module, x: Tensor, down: Tensor, up: Tensor, factor: float) -> Tensor:
    """The layer and a LoRA beside it, by definition: two layers in a row, the first as wide as the rank."""
    h = output(layer, x, down, bias=False)
    second = F.linear(h, up.double()) if isinstance(layer, nn.Linear) else F.conv2d(h, up.double())
    return output(layer, x, layer.weight) + factor * second


def given(layer: nn.Module) -> Tensor:
    return normal("x", 3, layer.weight.shape[1], *([6, 6] if isinstance(layer, nn.Conv2d) else [])).double()


def weights(model: Model) -> dict[str, Tensor]:
    parts = (("unet", model.unet), ("vae", model.vae), ("text", model.text))
    return {f"{part}.{name}": x for part, module in parts for name, x in module.state_dict().items()}


def assert_equal(a: Model, b: Model) -> None:
    ours, theirs = weights(a), weights(b)
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


# What is added.


@pytest.mark.parametrize("alpha, scale, factor", [(1.0, 0.8, 0.4), (None, 1.0, 1.0), (4.0, -0.5, -1.0)])
def test_every_kind_of_layer_acts_as_with_a_second_path_beside_it(tmp_path, alpha, scale, factor):
    merged = merge(slim(), saved(kohya(slim(), alpha=alpha), tmp_path / "file"), scale)
    for ours in LAYERS.values():
        before, after = layer_of(slim(), ours), layer_of(merged, ours)
        expected = beside(before, given(before), *pair(ours, before), factor)
        assert relative(output(after, given(before), after.weight), expected) < 1e-6, ours
        assert relative(output(before, given(before), before.weight), expected) > 1e-2, ours


def test_a_product_by_hand(tmp_path):
    name, ours = "lora_te_text_model_encoder_layers_0_mlp_fc1", "text.encoder.layers.0.mlp.fc1"
    weight = layer_of(slim(), ours).weight
    down, up = torch.zeros(2, weight.shape[1]), torch.zeros(weight.shape[0], 2)
    down[0, 3], down[1, 5], up[7, 0], up[7, 1] = 2, 3, 5, 7
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    after = layer_of(merge(slim(), saved(tensors, tmp_path / "file"), 0.5), ours).weight
    expected = weight.clone()
    expected[7, 3] += 0.5 / 2 * 5 * 2
    expected[7, 5] += 0.5 / 2 * 7 * 3
    assert torch.equal(after, expected)


def test_the_rest_is_shared_and_the_given_model_stays(tmp_path):
    before = {name: x.clone() for name, x in weights(slim()).items()}
    file = saved(kohya(slim()), tmp_path / "file")
    merged = merge(slim(), file, 0.5)
    now, after = weights(slim()), weights(merged)
    assert all(torch.equal(now[name], x) for name, x in before.items())
    changed = {name for name in now if not torch.equal(now[name], after[name])}
    assert len(changed) == len(LAYERS)
    assert all((now[name].data_ptr() == after[name].data_ptr()) == (name not in changed) for name in now)
    assert [each[:2] for each in merged.lora] == [(str(file), 0.5)] and slim().lora == ()
    assert not merged.unet.training
    for site in merged.unet.sites:  # an edit finds the copy's own layers
        assert merged.unet.get_submodule(site.name).site is site


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rounds_the_float32_sum_once(tmp_path, dtype):
    save(slim(), tmp_path / "model.safetensors", dtype)
    model, kind = load(tmp_path / "model.safetensors", dtype=dtype), getattr(torch, dtype)
    merged = merge(model, saved({n: x.to(kind) for n, x in kohya(slim()).items()}, tmp_path / "file"), 0.8)
    for ours in LAYERS.values():
        weight, (down, up) = layer_of(model, ours).weight, pair(ours, layer_of(slim(), ours))
        delta = (up.to(kind).double().flatten(1) @ down.to(kind).double().flatten(1)).view(weight.shape)
        expected = weight.double() + 0.4 * delta
        after = layer_of(merged, ours).weight
        assert after.dtype == kind
        # half a unit in the last place, and what float32 adds
        assert ((after.double() - expected).abs() <= torch.finfo(kind).eps * (0.51 * expected.abs() + 1e-4)).all()


def test_load_merges_in_order(tmp_path):
    save(slim(), tmp_path / "model.safetensors")
    file = saved(kohya(slim()), tmp_path / "file")
    loaded = load(tmp_path / "model.safetensors", lora=[(file, 0.8), (str(file), -0.3)])
    assert_equal(loaded, merge(merge(slim(), file, 0.8), file, -0.3))
    assert [each[:2] for each in loaded.lora] == [(str(file), 0.8), (str(file), -0.3)]
    assert_equal(merge(slim(), file, 0), slim())


# Layouts: one LoRA, the same weights bit for bit.


def dotted(kohyas: str) -> str:
    """diffusers' name of a layer."""
    part, ours = ("text_encoder", LAYERS[kohyas]) if "_te_" in kohyas else ("unet", LAYERS[kohyas])
    if part == "text_encoder":
        return ours.replace("text.", "text_encoder.text_model.", 1)
    return "unet." + diffusers_names()[f"model.diffusion_model.{ours}.weight"].split("/")[1].removesuffix(".weight")


def ldm(kohyas: str) -> str:
    return kohyas if "_te_" in kohyas else "lora_unet_" + LAYERS[kohyas].replace(".", "_")


STYLES = {  # layer by kohya's name -> names of (down, up)
    "LDM": lambda n: (f"{ldm(n)}.lora_down.weight", f"{ldm(n)}.lora_up.weight"),
    "kohya by diffusers": lambda n: tuple(
        f"{n.replace('lora_te_', 'lora_te1_')}.lora_{half}.weight" for half in ("down", "up")
    ),
    "peft": lambda n: (f"{dotted(n)}.lora_A.weight", f"{dotted(n)}.lora_B.weight"),
    "peft, transformers 5": lambda n: tuple(
        f"{dotted(n).replace('.text_model.', '.')}.lora_{half}.weight" for half in "AB"
    ),
    "diffusers": lambda n: (f"{dotted(n)}.lora.down.weight", f"{dotted(n)}.lora.up.weight"),
    "diffusers' text encoder": lambda n: tuple(
        f"{dotted(n)}.lora_linear_layer.{half}.weight" for half in ("down", "up")
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_layouts_agree(tmp_path, style):
    tensors, names = {}, LAYERS
    for name, ours in names.items():
        tensors.update(zip(STYLES[style](name), pair(ours, layer_of(slim(), ours)), strict=True))
    expected = merge(slim(), saved(kohya(slim(), alpha=None), tmp_path / "kohya"))
    assert_equal(merge(slim(), saved(tensors, tmp_path / "file")), expected)


def test_attention_processors_of_old_diffusers(tmp_path):
    """With and without the prefix of the UNet; "to_out" stands for "to_out.0"."""
    block, ours = "up_blocks.1.attentions.0.transformer_blocks.0.attn2", "output_blocks.3.1.transformer_blocks.0.attn2"
    te, text = "text_encoder.text_model.encoder.layers.1.self_attn", "text.encoder.layers.1.self_attn"
    old = {f"{block}.processor.to_{x}_lora": f"{ours}.to_{x}{'.0' * (x == 'out')}" for x in ("q", "k", "v", "out")}
    old_text = {f"{te}.to_{x}_lora": f"{text}.{x}_proj" for x in ("q", "k", "v", "out")}
    both = {f"unet.{name}": layer for name, layer in old.items()} | old_text
    for number, names in enumerate((old, both)):
        tensors = {}
        for name, layer in names.items():
            halves = zip(("down", "up"), pair(layer, layer_of(slim(), layer)), strict=True)
            tensors |= {f"{name}.{half}.weight": x for half, x in halves}
        merged = merge(slim(), saved(tensors, tmp_path / str(number)))
        for layer in names.values():
            before, after = layer_of(slim(), layer), layer_of(merged, layer)
            expected = beside(before, given(before), *pair(layer, before), 1.0)
            assert relative(output(after, given(before), after.weight), expected) < 1e-6


@pytest.mark.parametrize("config", [{"unet.lora_alpha": 8}, {"unet.alpha_pattern": {"attn1.to_q": 8}}])
def test_alpha_may_stand_in_the_header(tmp_path, config):
    """As diffusers keeps peft's LoraConfig; alpha 8 at rank 2 is four times the product."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    ours = {name: LAYERS[name]}
    tensors = dict(zip(STYLES["peft"](name), pair(LAYERS[name], layer_of(slim(), LAYERS[name])), strict=True))
    expected = merge(slim(), saved(kohya(slim(), ours, alpha=8.0), tmp_path / "kohya"))
    assert_equal(merge(slim(), saved(tensors, tmp_path / "file", config)), expected)
    root = {**config, "unet.use_rslora": True}
    expected = merge(slim(), saved(kohya(slim(), ours, alpha=8 * 2**0.5), tmp_path / "kohya"))
    found = merge(slim(), saved(tensors, tmp_path / "file", root))
    assert relative(layer_of(found, LAYERS[name]).weight, layer_of(expected, LAYERS[name]).weight) < 1e-6
    plain = {name.removeprefix("unet."): x for name, x in tensors.items()}
    plain_config = {name.removeprefix("unet."): x for name, x in config.items()}
    expected = merge(slim(), saved(kohya(slim(), ours, alpha=8.0), tmp_path / "kohya"))
    assert_equal(merge(slim(), saved(plain, tmp_path / "file", plain_config)), expected)


@pytest.mark.parametrize("style", ["diffusers", "LDM", "dots"])
def test_every_layer_of_sd14_is_found_by_every_name(style):
    with torch.device("meta"):
        layers = {"unet": lora._layers(UNet(SD14.unet)), "text": lora._layers(TextEncoder(SD14.text))}
    tensors, expected = {}, set()
    prefixes = {"unet": "model.diffusion_model.", "text": "cond_stage_model.transformer.text_model."}
    for part, held in layers.items():
        for plain, (name, _) in held.items():
            name = re.sub(r"^clip\.(text_model\.)?", "", name)
            theirs = diffusers_names()[f"{prefixes[part]}{name}.weight"].removesuffix(".weight").replace("/", ".", 1)
            kohyas = theirs.replace("text_encoder.", "lora_te.").replace("unet.", "lora_unet.").replace(".", "_")
            by = {"diffusers": kohyas, "dots": theirs, "LDM": f"lora_unet_{plain}" if part == "unet" else kohyas}
            tensors[f"{by[style]}.alpha"] = torch.zeros(())
            expected.add((part, plain))
    changes = lora._changes(Path("file"), tensors, {}, SD14.unet)
    assert {(change.part, change.layer) for change in changes} == expected
    # 16 transformer blocks with proj_in and proj_out, 22 ResBlocks, 14 shortcuts, 6 resampling, 2 time, first and last
    assert len(changes) == len(expected) == 16 * (2 + 8 + 2) + 22 * 3 + 14 + 6 + 2 + 2 + 12 * 6


# Files that are refused, in one line, before anything is changed.

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
LDM_Q = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
V = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"


def half(name: str = Q, rank: int = RANK, wide: int = 8, tall: int = 8) -> dict[str, Tensor]:
    return {f"{name}.lora_down.weight": torch.ones(rank, wide), f"{name}.lora_up.weight": torch.ones(tall, rank)}


REFUSED = {
    "DoRA": (half() | {f"{Q}.dora_scale": torch.ones(8, 1)}, r"looks like a DoRA.*1 tensor \(.*dora_scale\)"),
    "peft's DoRA": (half() | {"unet.a.lora_magnitude_vector.weight": torch.ones(8)}, "looks like a DoRA"),
    "LoHa": ({f"{Q}.hada_w1_a": torch.ones(8, 2)}, "looks like a LoHa"),
    "LoKr": ({f"{Q}.lokr_w1": torch.ones(2, 2)}, "looks like a LoKr"),
    "OFT": ({f"{Q}.oft_blocks": torch.ones(2, 2)}, "looks like an OFT"),
    "Tucker of no convolution": (half() | {f"{Q}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "the shapes differ of"),
    "Tucker without a half": ({f"{Q}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "one half only of 1 tensor"),
    "differences": ({f"{Q}.diff": torch.ones(8, 8)}, "whole differences"),
    "SDXL by its second text encoder": (half() | half("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "Diffusion XL"),
    "SDXL by its depth": (half(Q.replace("blocks_0_attn1", "blocks_1_attn1")), "Diffusion XL: slim lacks"),
    "SDXL by its width": (half(V, wide=2048, tall=24), r"Diffusion XL: .*\[24, 2\] x \[2, 2048\] for \[24, "),
    "SD 2 by its width": (half(V, wide=1024, tall=24), "looks like a LoRA of Stable Diffusion 2"),
    "Flux": (half("lora_unet_double_blocks_0_img_attn_proj"), "Flux"),
    "another width": (half(Q, wide=9), "LoRA of another model: the shapes differ of 1 tensor"),
    "another kernel": (half("lora_unet_conv_in", wide=4), "LoRA of another model: the shapes differ of 1 tensor"),
    "ranks that differ": (half() | {f"{Q}.lora_up.weight": torch.ones(8, 3)}, r"\[8, 3\] x \[2, 8\] for \[8, 8\]"),
    "no rank": (half(rank=0), r"\[8, 0\] x \[0, 8\]"),
    "whole numbers": ({name: x.to(torch.int8) for name, x in half().items()}, "LoRA of another model"),
    "one half": ({f"{Q}.lora_up.weight": torch.ones(8, 2)}, "one half only of 1 tensor"),
    "alpha alone": (half() | {f"{V}.alpha": torch.ones(())}, "one half only of 1 tensor"),
    "alpha of two": (half() | {f"{Q}.alpha": torch.ones(2)}, r"has 1 tensor \(.*alpha\) besides"),
    "a layer twice": (
        half() | half("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"),
        "names layers twice",
    ),
    "something besides": (half() | {"emb_params": torch.ones(1)}, r"has 1 tensor \(emb_params\) besides a LoRA"),
    "an unknown layer": (half() | half("lora_unet_attic"), r"model: slim lacks 1 tensor \(lora_unet_attic\)"),
    "a model": ({"model.diffusion_model.out.2.bias": torch.ones(4)}, "is no LoRA: it has 1 tensor"),
    "nothing": ({}, r"is no LoRA: it has 0 tensors"),
    "NaN": ({name: x * torch.nan for name, x in half().items()}, r"infinity in 1 tensor \(unet\..*\) in float32"),
}


@pytest.fixture(scope="module")
def before() -> dict[str, Tensor]:
    return {name: x.clone() for name, x in weights(slim()).items()}


@pytest.mark.parametrize("tensors, says", REFUSED.values(), ids=REFUSED)
def test_a_file_that_does_not_fit_is_refused(tmp_path, before, tensors, says):
    with pytest.raises(MineditError, match=says) as error:
        merge(slim(), saved(tensors, tmp_path / "file"))
    text = str(error.value)
    assert text.startswith(str(tmp_path / "file")) and "\n" not in text and len(text) < 700
    assert all(torch.equal(x, before[name]) for name, x in weights(slim()).items())


def test_files_that_are_none_and_scales_that_are_none(tmp_path):
    (tmp_path / "page").write_text("<html>")
    for name, says in (("absent", "absent does not exist; expected a LoRA of"), ("page", "is a web page")):
        with pytest.raises(MineditError, match=says):
            merge(slim(), tmp_path / name)
    for scale in (float("nan"), float("inf"), "1", None, True):
        with pytest.raises(MineditError, match="scale of .* expected a finite number"):
            merge(slim(), saved(half(), tmp_path / "file"), scale)
    (tmp_path / "header").write_bytes(b"")
    save_file(half(), tmp_path / "header", {"lora_adapter_metadata": "{"})
    with pytest.raises(MineditError, match="lora_adapter_metadata is not JSON"):
        merge(slim(), tmp_path / "header")


def test_sd14_names_what_a_lora_of_stable_diffusion_2_is():
    """By its text encoder too: 23 layers, 1024 wide."""
    with torch.device("meta"):
        layers = {"unet": lora._layers(UNet(SD14.unet)), "text": lora._layers(TextEncoder(SD14.text))}
    names = [f"lora_te_text_model_encoder_layers_{i}_mlp_fc1" for i in range(23)]
    tensors = {key: x for name in names for key, x in half(name, wide=1024, tall=4096).items()}
    changes = lora._changes(Path("file"), tensors, {}, SD14.unet)
    with pytest.raises(MineditError, match="LoRA of Stable Diffusion 2: sd-v1.4 lacks 11 tensors .* 12 tensors"):
        lora._check(Path("file"), changes, layers, SD14.name)


def test_slim_has_the_depth_of_sd14():
    """The tests above are about SD-v1's blocks."""
    assert (SLIM.unet.blocks, SLIM.unet.attention) == (SD14.unet.blocks, SD14.unet.attention)
