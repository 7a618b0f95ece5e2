"""Distilled models of Stable Diffusion v1 load by what their files hold. tests/parity compares them with diffusers."""

from dataclasses import replace

import pytest
import torch

from minedit.config import IP2P, SD14, Config, UNetConfig
from minedit.files.sizes import counted
from minedit.stack.unet import UNet

KNOWN = {
    "sd-v1": SD14.unet,
    "instruct-pix2pix": IP2P.unet,
    "lcm": replace(SD14.unet, guidance_dim=256),
    "bk-sdm-base": replace(SD14.unet, blocks=1),
    "bk-sdm-small": replace(SD14.unet, blocks=1, middle=False),
    "bk-sdm-tiny": replace(SD14.unet, blocks=1, middle=False, channels=(320, 640, 1280), attention=(True,) * 3),
}


@pytest.mark.parametrize("name", KNOWN)
def test_its_sizes_are_counted(name):
    with torch.device("meta"):
        tensors = UNet(KNOWN[name]).state_dict()
    found = counted(IP2P if name == "instruct-pix2pix" else SD14, tensors)
    assert found.unet == KNOWN[name]
    assert (found is SD14 or found is IP2P) == (KNOWN[name] in (SD14.unet, IP2P.unet))


def test_names_that_describe_no_model_leave_the_known_one():
    """The error is then about what stable-diffusion-v1 would have."""
    with torch.device("meta"):
        tensors = UNet(replace(SD14.unet, blocks=1)).state_dict()
    assert counted(SD14, {}) is SD14
    for lost in ("input_blocks.1.0.in_layers.2.weight", "input_blocks.2.0.op.weight"):
        assert counted(SD14, {name: x for name, x in tensors.items() if name != lost}) is SD14
    odd = dict(tensors, **{"input_blocks.1.0.in_layers.2.weight": torch.empty(33, 1, 1, 1)})
    assert counted(SD14, odd) is SD14
    odd["input_blocks.1.0.in_layers.2.weight"] = torch.empty(())
    assert counted(SD14, odd) is SD14


def test_without_a_middle_the_ways_meet():
    """Oracle: the same UNet whose middle, of zero weights, is the identity."""
    cfg = UNetConfig(channels=(16, 32), blocks=1, attention=(True, True), heads=2, context_dim=16, norm_groups=4)
    torch.manual_seed(0)
    whole, bare = UNet(cfg).eval(), UNet(replace(cfg, middle=False)).eval()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for name, parameter in whole.middle_block.named_parameters():
        if "out_layers.3" in name or "proj_out" in name:
            torch.nn.init.zeros_(parameter)
    state = {name: x for name, x in whole.state_dict().items() if not name.startswith("middle_block.")}
    bare.load_state_dict(state)
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    with torch.no_grad():
        found = bare(x, torch.tensor([9, 500]), context)
        assert found.abs().max() > 0.01
        torch.testing.assert_close(found, whole(x, torch.tensor([9, 500]), context))
    assert not [site for site in bare.sites if site.place == "mid"]


def test_a_config_without_the_word_has_a_middle():
    text = SD14.to_json().replace(', "middle": true', "")
    assert "middle" not in text and Config.from_json(text) == SD14
