"""InstructPix2Pix of the picture book: its training on a network of a few hundred weights, and the variant's file.

Oracles: the matrix product written out, the trained modules, the embedded model.
"""

import copy
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from seeded import fill, normal
from test_picturebook_training import SMALL, log
from torch import nn

from minedit.attention.sdpa import sdpa
from minedit.config import MineditError
from minedit.files.checkpoint import Model, tokenizer
from minedit.files.variant import vary
from minedit.files.written import CONFIG_KEY
from minedit.picturebook.training import train_instruct
from minedit.picturebook.training.fit import Training
from minedit.picturebook.training.lowrank import factors, learnt_by, lower
from minedit.picturebook.world.dataset import factors_of
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

SCENES = 6


@pytest.fixture
def model():
    parts = UNet(SMALL.unet), VAE(SMALL.vae), TextEncoder(SMALL.text)
    parts = (fill(module).requires_grad_(False) for module in parts)
    return Model(*parts, tokenizer(SMALL), SMALL, sdpa, "sdpa", torch.device("cpu"), torch.float32, weights="abc")


def draw(vae, folder):
    return train_instruct.pairs(vae, folder, SCENES, SMALL.image_size, SMALL.latent_scale, Training(folder, 1))


@pytest.fixture
def pairs(model, tmp_path):
    return draw(model.vae, tmp_path)


def predict(unet, text, x, ids):
    with torch.no_grad():
        return unet(x, torch.full((len(x),), 500), text(ids))


def test_a_low_rank_change_is_a_product(model):
    unet = lower(copy.deepcopy(model.unet).requires_grad_(True), 3, ("input_blocks.0.0",))
    layer, plain = unet.input_blocks[1][0].in_layers[2], model.unet.input_blocks[1][0].in_layers[2]
    assert torch.equal(layer.weight, plain.weight)
    nn.init.normal_(layer.parametrizations.weight[0].up)
    learnt = learnt_by(unet)
    up, down = (learnt[f"input_blocks.1.0.in_layers.2.weight.{half}"] for half in ("up", "down"))
    expected = plain.weight + torch.einsum("or,ri->oi", up, down).view_as(plain.weight)
    assert torch.allclose(layer.weight, expected, atol=1e-5) and not torch.equal(layer.weight, plain.weight)
    assert {"input_blocks.1.0.in_layers.2.weight.up", "input_blocks.0.0.weight"} <= learnt.keys()
    assert "input_blocks.0.0.weight.up" not in learnt and "input_blocks.1.0.in_layers.2.weight" not in learnt
    assert sum(map(factors, dict(unet.named_parameters()))) == sum(name.endswith((".up", ".down")) for name in learnt)


def test_a_widened_unet_without_a_picture_draws_as_before(model):
    x, ids = normal("x", 2, 8, 4, 4), torch.tensor([model.tokenizer.encode("make it night").ids] * 2)
    wide, alone = train_instruct.widened(model.unet).eval(), x.clone()
    alone[:, 4:] = 0
    before = predict(model.unet, model.text, x[:, :4], ids)
    assert torch.allclose(predict(wide, model.text, alone, ids), before, atol=1e-5)
    assert not torch.allclose(predict(wide, model.text, x, ids), before, atol=1e-2)


def test_a_picture_comes_in_where_the_noise_does_not():
    unet = fill(UNet(replace(SMALL.unet, channels=(64, 64))))
    wide = train_instruct.widened(unet).input_blocks[0][0].weight
    noise, photo = wide[:, :4].flatten(1), wide[:, 4:].flatten(1)
    assert (noise.T @ photo).abs().max() < 1e-5 and torch.linalg.matrix_rank(photo) == 4


def test_pairs_are_the_scenes_and_their_changes(pairs, model, tmp_path, monkeypatch):
    assert pairs.means.shape == pairs.stds.shape == (SCENES, 3, 4, 4, 4) and pairs.moved.shape == (SCENES, 2, 4, 4)
    assert [group[0] for group in pairs.factors] == [factors_of(0, i) for i in range(SCENES)]
    assert pairs.moved.flatten(2).any(2).all()
    assert len(list(tmp_path.glob("pairs-*"))) == 1
    monkeypatch.setattr(train_instruct, "_encoded", None)
    assert torch.equal(draw(model.vae, tmp_path).means, pairs.means)


def test_rows_lose_text_or_picture_as_often_as_in_the_paper(pairs):
    rng = random.Random(0)
    rows = [train_instruct._row(pairs, rng) for _ in range(20000)]
    lost = Counter((said == "", blank) for said, *_, blank in rows)
    for which in ((True, False), (False, True), (True, True)):
        assert lost[which] / len(rows) == pytest.approx(0.05, abs=0.006)
    for said, _, given, asked, blank in rows[:2000]:
        assert (given != asked and 0 in (given, asked)) or (said == "" and not blank)
    alone = [given == asked for said, _, given, asked, blank in rows if said == "" and not blank]
    assert sum(alone) / len(alone) == pytest.approx(0.5, abs=0.06)


def test_what_was_learned_is_what_loads(model, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(train_instruct, "RANK", 2)
    run = Training(tmp_path / "instruct", 3, warmup=1)
    wide, tower = train_instruct.widened(model.unet), copy.deepcopy(model.text)
    learnt = train_instruct.train_instruct(wide, tower, model.tokenizer, pairs, SMALL.latent_scale, run, batch=4)
    assert log(run)["mse"] > 0
    file = tmp_path / "variant.safetensors"
    train_instruct.write_variant(learnt, model, file)
    varied = vary(model, file)
    x, ids = normal("x", 2, 8, 4, 4), torch.tensor([model.tokenizer.encode("make the boy sit").ids] * 2)
    expected, found = (predict(m["unet"], m["text"], x, ids) for m in (learnt.eval(), vars(varied)))
    before = predict(model.unet, model.text, x[:, :4], ids)
    assert (found - expected).abs().max() < 0.05 * (expected - before).abs().max()
    assert varied.config.unet.in_channels == 8 and varied.weights not in ("", model.weights)
    assert model.tokenizer.unknown(model.tokenizer.encode("make it night")) == ("make", "it")
    assert varied.tokenizer.unknown(varied.tokenizer.encode("make it night")) == ()
    assert varied.vae is model.vae


def saved(tensors, file, **metadata):
    save_file(tensors, file, metadata)
    return file


def test_a_variant_is_what_its_file_says(model, tmp_path):
    """By hand: one tensor in the place of another, one product added, the rest shared."""
    prefix, mine = "model.diffusion_model.", "out.2.weight"
    layer = "input_blocks.1.0.in_layers.2.weight"
    up, down, whole = normal("up", 16, 2), normal("down", 2, 16 * 9), normal("whole", *model.unet.out[2].weight.shape)
    tensors = {f"{prefix}{layer}.up": up, f"{prefix}{layer}.down": down, prefix + mine: whole}
    before = {name: p.clone() for name, p in model.unet.state_dict().items()}
    varied = vary(model, saved(tensors, tmp_path / "v.safetensors", **{CONFIG_KEY: SMALL.to_json()}))
    expected = before[layer].double() + (up.double() @ down.double()).view(before[layer].shape)
    state = varied.unet.state_dict()
    assert torch.allclose(state[layer].double(), expected, atol=1e-5) and torch.equal(state[mine], whole)
    assert all(torch.equal(p, before[name]) for name, p in model.unet.state_dict().items())
    rest = before.keys() - {layer, mine}
    assert all(state[name].data_ptr() == model.unet.state_dict()[name].data_ptr() for name in rest)
    assert varied.tokenizer.words == model.tokenizer.words


def wrong():
    ours, layer = {CONFIG_KEY: SMALL.to_json()}, "model.diffusion_model.out.2.weight"
    wide = replace(SMALL, unet=replace(SMALL.unet, in_channels=8)).to_json()
    yield {layer: torch.zeros(1)}, {}, "has no config in its metadata"
    yield {layer: torch.zeros(1)}, ours, "the shapes differ of 1 tensor .unet.out.2.weight"
    yield {f"{layer}.up": torch.zeros(4, 1)}, ours, "has 1 tensor .*out.2.weight.up.*which small lacks"
    yield {f"{layer}.up": torch.zeros(4, 1), f"{layer}.down": torch.zeros(2, 144)}, ours, "out.2.weight.*do not fit"
    yield (
        {layer: torch.zeros(4, 16, 3, 3)},
        {CONFIG_KEY: wide},
        "the shapes differ of 1 tensor .unet.input_blocks.0.0.weight",
    )
    yield {layer: torch.zeros(1)}, {**ours, "minedit.weights": "other"}, "changes the weights other, found abc"
    yield {layer: torch.zeros(1)}, {CONFIG_KEY: "{"}, "config is not JSON"


@pytest.mark.parametrize(("tensors", "metadata", "says"), list(wrong()))
def test_a_file_that_is_no_variant_says_why(model, tmp_path, tensors, metadata, says):
    file = saved(tensors, tmp_path / "v.safetensors", **metadata)
    with pytest.raises(MineditError, match=f"v.safetensors.*{says}"):
        vary(model, file)
