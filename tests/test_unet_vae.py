"""UNet and VAE: names and shapes against the original checkpoint's manifest, shapes, sites, training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from seeded import fill, normal

from minedit.attention.rules import Attn, Edit, Rule
from minedit.config import IP2P, PICTUREBOOK, SD14, Config, MineditError, UNetConfig, VAEConfig
from minedit.stack.times import timestep_embedding
from minedit.stack.unet import CrossAttention, UNet, Upsample
from minedit.stack.vae import VAE

MANIFEST = Path(__file__).parent / "fixtures" / "sd-v1-ldm.tsv"
SMALL = UNetConfig(channels=(32, 64), blocks=1, attention=(True, True), heads=4, context_dim=24, norm_groups=8)
SMALL_VAE = VAEConfig(channels=(16, 32, 32, 48), blocks=1, norm_groups=8)


def manifest(prefix: str) -> dict[str, tuple[int, ...]]:
    """Name after the prefix -> shape."""
    rows = (line.split("\t") for line in MANIFEST.read_text().splitlines() if not line.startswith("#"))
    return {row[0].removeprefix(prefix): tuple(json.loads(row[1])) for row in rows if row[0].startswith(prefix)}


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small_inputs(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return normal("x", rows, 4, 8, 8), torch.linspace(1, 981, rows).long(), normal("context", rows, 6, 24)


def test_unet_has_the_checkpoints_names_and_shapes():
    with torch.device("meta"):
        unet = UNet(SD14.unet)
    assert shapes(unet) == manifest("model.diffusion_model.")
    assert len(shapes(unet)) == 686
    assert parameters(unet) == 859_520_964


def test_vae_has_the_checkpoints_names_and_shapes():
    with torch.device("meta"):
        vae = VAE(SD14.vae)
    assert shapes(vae) == manifest("first_stage_model.")
    assert len(shapes(vae)) == 248
    assert parameters(vae) == 83_653_863


def test_instruct_pix2pix_differs_in_one_tensor():
    with torch.device("meta"):
        ours, plain = shapes(UNet(IP2P.unet)), shapes(UNet(SD14.unet))
    assert {name: shape for name, shape in ours.items() if plain[name] != shape} == {
        "input_blocks.0.0.weight": (320, 8, 3, 3)
    }
    assert ours.keys() == plain.keys()


@pytest.mark.parametrize("config", [SD14, PICTUREBOOK], ids=lambda config: config.name)
def test_sites_name_their_modules_and_scale(config: Config):
    with torch.device("meta"):
        unet = UNet(config.unet)
    assert len({site.name for site in unet.sites}) == len(unet.sites)
    for site in unet.sites:
        layer = unet.get_submodule(site.name)
        assert isinstance(layer, CrossAttention) and layer.site is site
        assert layer.to_q.weight.shape == (site.channels, site.channels)
        assert site.kind == {"attn1": "self", "attn2": "cross"}[site.name.rsplit(".", 1)[1]]
        assert site.place == {"input": "down", "middle": "mid", "output": "up"}[site.name.split("_", 1)[0]]


def test_sites_of_sd14():
    with torch.device("meta"):
        cross = [site for site in UNet(SD14.unet).sites if site.kind == "cross"]
    down, up = [1, 1, 2, 2, 4, 4], [4, 4, 4, 2, 2, 2, 1, 1, 1]
    assert [site.stride for site in cross] == [*down, 8, *up]
    assert [site.channels // site.heads for site in cross] == [40 * min(site.stride, 4) for site in cross]


def test_sites_run_in_the_order_they_are_listed_at_the_side_they_say():
    unet = fill(UNet(SMALL))
    ran = []
    for site in unet.sites:
        layer = unet.get_submodule(site.name)
        layer.register_forward_pre_hook(lambda module, inputs: ran.append((module.site, inputs[0].shape[1])))
    with torch.no_grad():
        unet(*small_inputs())
    assert ran == [(site, (8 // site.stride) ** 2) for site in unet.sites]


def test_timestep_embedding_by_hand():
    got = timestep_embedding(torch.tensor([0, 10]), 4)
    want = torch.tensor([[1, 1, 0, 0], [10, 0.1, 10, 0.1]], dtype=torch.float64)  # the angles, where t = 10
    want[1] = torch.cat([want[1, :2].cos(), want[1, 2:].sin()])
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (9, 8), (7, 13), (5, 6)])
def test_a_latent_of_any_shape(shape):
    """The bug: sides that cannot be halved at each level were refused. A map of 9 is halved to 5, and back to 9."""
    unet, (x, t, context) = fill(UNet(SMALL)), small_inputs()
    x = normal("odd", 2, 4, *shape)
    sides = {}
    for site in unet.sites:
        layer = unet.get_submodule(site.name)
        layer.register_forward_hook(lambda layer, given, _: sides.setdefault(layer.site.stride, given[0].shape[1]))
    eps = unet(x, t, context)
    assert eps.shape == x.shape and eps.isfinite().all()
    assert sides == {s: math.prod(math.ceil(side / s) for side in shape) for s in (1, 2)}


@torch.no_grad()
@pytest.mark.parametrize("size", [(6, 10), (5, 9), (6, 9), (5, 10)])
def test_upsampling_doubles_and_crops(size):
    layer = fill(Upsample(3)).double()
    x = normal("x", 2, 3, 3, 5).double()
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., : size[0], : size[1]]
    torch.testing.assert_close(layer(x, torch.Size(size)), layer.conv(doubled), rtol=0, atol=0)


@torch.no_grad()
def test_attention_data_reaches_the_layers_and_an_empty_one_changes_nothing():
    unet = fill(UNet(SMALL))
    x, t, context = small_inputs()
    plain = unet(x, t, context)
    names = [site.name for site in unet.sites]
    attn = Attn(rules={name: Rule() for name in names}, watch=dict.fromkeys(names, True))
    assert torch.equal(unet(x, t, context, attn), plain)
    assert [*attn.seen] == names
    for site in unet.sites:
        seen, pixels = attn.seen[site.name], (8 // site.stride) ** 2
        assert seen.hidden.shape == (2, pixels, site.channels)
        assert seen.columns.shape == (2, pixels, 6 if site.kind == "cross" else pixels)
        torch.testing.assert_close(seen.columns.sum(-1), torch.ones(2, pixels))


@torch.no_grad()
def test_seen_hidden_is_what_norm2_hands_to_cross_attention():
    unet = fill(UNet(SMALL))
    block = unet.middle_block[1].transformer_blocks[0]
    caught = []
    block.norm2.register_forward_hook(lambda _module, _inputs, out: caught.append(out))
    attn = Attn(watch={block.attn2.site.name: False})
    unet(*small_inputs(), attn)
    seen = attn.seen[block.attn2.site.name]
    assert torch.equal(seen.hidden, caught[0]) and seen.columns is None


@torch.no_grad()
def test_an_edit_everywhere_leaves_the_source_row_untouched():
    unet = fill(UNet(SMALL))
    x, t, context = small_inputs(3)
    pin = torch.tensor([1.0, 1, 0, 0, 1, 0])
    edit = Edit(row=2, source=1, columns=None, pin=pin, blend=torch.zeros(6), own=1 - pin)
    attn = Attn(rules={site.name: Rule(edits=(edit,)) for site in unet.sites if site.kind == "cross"})
    plain, edited = unet(x, t, context), unet(x, t, context, attn)
    assert torch.equal(edited[:2], plain[:2])
    assert not torch.allclose(edited[2], plain[2], atol=1e-3)


@torch.no_grad()
def test_vae_shapes_and_their_factor():
    vae = fill(VAE(SMALL_VAE))
    moments = vae.encode(normal("image", 2, 3, 32, 48))
    assert SMALL_VAE.factor == 8
    assert moments.shape == (2, 8, 4, 6)
    assert vae.decode(moments[:, :4]).shape == (2, 3, 32, 48)


def test_both_train_under_autocast_and_channels_last():
    unet, vae = fill(UNet(SMALL)).train(), fill(VAE(SMALL_VAE)).train()
    x, t, context = small_inputs()
    image = normal("image", 2, 3, 32, 32)
    for module in (unet, vae):
        module.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        eps = unet(x.contiguous(memory_format=torch.channels_last), t, context)
        decoded = vae.decode(vae.encode(image.contiguous(memory_format=torch.channels_last))[:, :4])
        loss = eps.float().square().mean() + decoded.float().square().mean()
    loss.backward()
    for module in (unet, vae):
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
        assert all(p.grad.abs().max() > 0 for p in module.parameters())


def test_config_survives_json_and_refuses_other_names():
    for config in (SD14, IP2P, PICTUREBOOK):
        assert Config.from_json(config.to_json()) == config
    assert SD14.latent_size == 64
    with pytest.raises(MineditError, match="expected.*Config.to_json"):
        Config.from_json("{")
    with pytest.raises(MineditError, match="UNetConfig has.*depth"):
        Config.from_json(SD14.to_json().replace('"blocks"', '"depth"', 1))
