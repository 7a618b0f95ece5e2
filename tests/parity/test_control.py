"""A ControlNet and the UNet that it steers against diffusers' own, on shared random weights, in float32.

In a released run both see the same text; so do they here, with a prompt and without, row by row.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from seeded import normal
from tiny import TINY

pytest.importorskip("diffusers", reason="only `make parity` installs diffusers")
import oracles  # noqa: E402
from test_diffusers import NARROW, built, check  # noqa: E402

from minedit.config import Config, MineditError  # noqa: E402
from minedit.files.control import load_control  # noqa: E402
from minedit.sampling import ddim  # noqa: E402
from minedit.sampling.loop import sample  # noqa: E402
from minedit.stack.control import Controlled, ControlNet  # noqa: E402
from minedit.stack.unet import UNet  # noqa: E402

SCALE = 0.7


def model(config: Config, unet: UNet) -> SimpleNamespace:
    place = {"device": torch.device("cpu"), "dtype": torch.float32, "fast": False}
    return SimpleNamespace(unet=unet, config=config, attend=None, **place)


def both(config: Config, rows: int, sides: tuple[int, int]) -> tuple:
    """(ours, their ControlNet, their UNet, inputs)."""
    (unet, ours), (control, steers) = built(UNet, config.unet), built(ControlNet, config.unet)
    hint = normal("hint", 1, 3, *(8 * side for side in sides)).sigmoid()
    context = normal("context", rows, config.text.context_length, config.unet.context_dim)
    theirs = oracles.control(config.unet, steers), oracles.unet(config.unet, ours)
    return unet, control, *theirs, hint, context


@pytest.mark.parametrize("config", [TINY, NARROW], ids=lambda config: config.name)
@pytest.mark.parametrize("sides", [(16, 16), (9, 13)])
@torch.no_grad()
def test_residuals_and_what_they_steer(config: Config, sides: tuple[int, int]):
    unet, control, guide, theirs, hint, context = both(config, 3, sides)
    x, t = normal("x", 3, 4, *sides), torch.tensor([981, 21, 500])
    found = control(x, t, context, hint)
    downs, middle = guide(x, t, context, hint.expand(3, -1, -1, -1), conditioning_scale=SCALE, return_dict=False)
    for i, (mine, other) in enumerate(zip(found, (*downs, middle), strict=True)):
        check(f"residual {i} of {config.name}, {sides}", mine * SCALE, other)
    more = {"down_block_additional_residuals": downs, "mid_block_additional_residual": middle}
    exact, plain = theirs(x, t, context, **more).sample, unet(x, t, context)
    ours = Controlled(unet, control, hint, SCALE)(x, t, context)
    assert (ours - plain).std() > 0.05 * plain.std(), "the hint says nothing"
    check(f"steered UNet of {config.name}, {sides}", ours, exact)


@torch.no_grad()
def test_ten_guided_steps():
    """Both rows of guidance are steered, as the released code does and diffusers without guess mode."""
    unet, control, guide, theirs, hint, context = both(NARROW, 2, (16, 16))

    def steered(x, t, context):
        downs, middle = guide(x, t, context, hint.expand(2, -1, -1, -1), return_dict=False)
        return theirs(x, t, context, down_block_additional_residuals=downs, mid_block_additional_residual=middle)

    x = ddim.noise(5, 16, 16)
    *_, ours = sample(model(NARROW, Controlled(unet, control, hint, 1.0)), x, context, steps=10, guidance=3.0)
    check("10 steered DDIM steps", ours.latents, oracles.sample(steered, x, context, 10, 3.0), 1e-4)


@pytest.mark.parametrize("config", [TINY, NARROW], ids=lambda config: config.name)
def test_what_diffusers_saved_is_read_as_our_names(config: Config, tmp_path):
    unet, control, guide, *_ = both(config, 1, (8, 8))
    state, here = control.state_dict(), model(config, unet)
    guide.save_pretrained(tmp_path / "folder")
    guide.save_pretrained(tmp_path / "pipeline" / "controlnet")
    save_file(state, tmp_path / "bare.safetensors")
    file = tmp_path / "folder" / "diffusion_pytorch_model.safetensors"
    for path in (tmp_path / "folder", tmp_path / "pipeline", file, tmp_path / "bare.safetensors"):
        read = load_control(path, here).state_dict()
        assert read.keys() == state.keys() and all(torch.equal(read[name], x) for name, x in state.items())
    guide.register_to_config(global_pool_conditions=True)
    guide.save_pretrained(tmp_path / "pooled")
    with pytest.raises(MineditError, match="whose global_pool_conditions is True, expected False; choose another"):
        load_control(tmp_path / "pooled", here)
    other = replace(config, unet=replace(config.unet, context_dim=32))
    with pytest.raises(MineditError, match=f"reads text of width {config.unet.context_dim}, expected 32, as"):
        load_control(file, model(other, unet))
