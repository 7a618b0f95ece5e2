"""Latent consistency models: their times, and edits by a model that has no unconditional row.

tests/parity compares steps with diffusers.
"""

from dataclasses import replace

import pytest
import torch
from small_model import small_model

import minedit
from minedit.config import MineditError
from minedit.sampling import lcm
from minedit.stack.unet import UNet

BOY, SITTING = "a boy in the park", "a sitting boy in the park"


@pytest.fixture(scope="module")
def sd():
    model = small_model()
    config = replace(model.config, unet=replace(model.config.unet, guidance_dim=8))
    torch.manual_seed(0)
    unet = UNet(config.unet).eval().requires_grad_(False)
    unet.load_state_dict({**unet.state_dict(), **model.unet.state_dict()})
    return replace(model, unet=unet, config=config)


def test_times_are_the_papers():
    """Four steps of the fifty: 999, 759, 499, 259, as in arXiv:2310.04378's code."""
    assert lcm.schedule(4) == [(999, 759), (759, 499), (499, 259), (259, -1)]
    assert lcm.schedule(50)[0] == (999, 979) and lcm.schedule(50)[-1] == (19, -1)


def test_a_step_of_a_perfect_guess_is_that_guess_noised():
    """Oracle: the formula in float64."""
    x0, noise = torch.randn(2, 1, 4, 3, 3, dtype=torch.float64)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a, a_prev = torch.cumprod(1 - betas, 0)[[759, 499]].tolist()
    x = a**0.5 * x0 + (1 - a) ** 0.5 * noise
    fresh = torch.randn_like(x)
    found, guess = lcm.step(x, noise, 759, 499, fresh)
    torch.testing.assert_close(guess, x0, atol=1e-6, rtol=0)
    torch.testing.assert_close(found, a_prev**0.5 * guess + (1 - a_prev) ** 0.5 * fresh)


@pytest.mark.parametrize("method", ("adapedit", "p2p", "fixed-seed", "masactrl", "plug-and-play"))
def test_edits_take_two_rows_a_step(sd, method):
    rows = []
    handle = sd.unet.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    res = minedit.edit(sd, BOY, SITTING, method, steps=4, seed=3)
    handle.remove()
    passed = 4 if method == "adapedit" else 0  # its statistics, a row a step
    assert rows == [1] * passed + [2] * 4
    alone = minedit.generate(sd, BOY, steps=4, seed=3)
    torch.testing.assert_close(res.source_latent, alone.latents, atol=1e-3, rtol=1e-4)
    assert (res.edited_latent - res.source_latent).abs().max() > 0.01
    assert not torch.equal(alone.latents, minedit.generate(sd, BOY, steps=4, seed=3, guidance=2.0).latents)


def test_what_it_cannot_do_is_a_line(sd):
    photo = minedit.generate(sd, BOY, steps=1).images[0]
    wrong = {"expected 1 to 50": {"steps": 51}, "eta needs DDIM": {"eta": 0.5}, "photograph needs": {"image": photo}}
    for fault, more in wrong.items():
        with pytest.raises(MineditError, match=fault):
            minedit.edit(sd, BOY, SITTING, **{"steps": 4, **more})


def test_it_is_recorded_and_no_bit_changes(sd):
    """Rows without a prompt, which it does not draw, are NaN."""
    before = minedit.edit(sd, BOY, SITTING, "p2p", steps=3)
    with minedit.recorded(sd, ["*.attn2.columns", "x0"]) as tape:
        after = minedit.edit(sd, BOY, SITTING, "p2p", steps=3)
    assert torch.equal(before.edited_latent, after.edited_latent)
    name = "middle_block.1.transformer_blocks.0.attn2.columns"
    rows = {row: tape[name].at(row=row).tensor for row in tape[name].labels["row"]}
    assert rows["target.uncond"].isnan().all() and rows["target.cond"].isfinite().all()
    with minedit.patched(sd, {"x0": lambda value, at: tape["x0"].at(step=at.step, row=at.row).tensor}):
        again = minedit.edit(sd, BOY, SITTING, "p2p", steps=3)
    assert torch.equal(before.edited_latent, again.edited_latent)
