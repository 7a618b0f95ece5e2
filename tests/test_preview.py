"""Previews. Oracles: a VAE whose colours are known, numpy's least squares in float64, the VAE's own pictures."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_model import small_model
from torch import Tensor, nn

import minedit
from minedit.cli import main
from minedit.config import MineditError
from minedit.stack.preview import coloured, fitted, painted

PAIR = "a boy in the park", "a sitting boy in the park"
SCALE = 0.5


class Known(nn.Module):
    """Colours that are linear in the latent, of which no channel follows from the others."""

    mix = torch.tensor([[0.5, 0.2, -0.1, 0.1], [0.1, 0.4, 0.2, -0.1], [-0.2, 0.1, 0.5, 0.1]])
    bias = torch.tensor([0.05, -0.1, 0.02])

    def encode(self, pictures: Tensor) -> Tensor:
        rgb = F.avg_pool2d(pictures, 8)
        z = torch.cat([rgb, rgb[:, :1] * rgb[:, 1:2]], 1)
        return torch.cat([z, z], 1)

    def decode(self, z: Tensor) -> Tensor:
        rgb = torch.einsum("ck,bkhw->bchw", self.mix, z.float()) + self.bias.view(1, 3, 1, 1)
        return rgb.repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.fixture(scope="module")
def sd():
    return minedit.load()


def test_colours_that_are_linear_are_found_exactly():
    found = fitted(Known(), 8, SCALE, torch.device("cpu"), torch.float32)
    expected = torch.zeros(3, 4, 3, 3)
    expected[:, :, 1, 1] = Known.mix / 2 / SCALE  # RGB from 0 to 1 of a latent times SCALE, none of its neighbours
    expected = torch.cat([expected.flatten(1), (Known.bias[:, None] + 1) / 2], 1)
    assert found.shape == (3, 37) and (found - expected).abs().max() < 1e-5
    x0 = torch.tensor([[0.1, 0.2], [-0.2, 0.0], [0.3, 0.1], [0.05, -0.1]]).view(1, 4, 1, 2)
    assert torch.allclose(coloured(found, x0), Known().decode(x0 / SCALE)[:, :, :1, ::8], atol=1e-5)


class Overflowing(Known):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z.float()) + (torch.inf if z.dtype == torch.float16 else 0)


class Damaged(Known):
    def encode(self, pictures: Tensor) -> Tensor:
        return super().encode(pictures) * torch.nan


def test_a_vae_that_overflows_is_asked_again_and_a_damaged_one_refused():
    expected = fitted(Known(), 8, SCALE, torch.device("cpu"), torch.float32)
    found = fitted(Overflowing(), 8, SCALE, torch.device("cpu"), torch.float16)
    assert found.dtype == torch.float32 and (found - expected).abs().max() < 1e-4
    for dtype in (torch.float16, torch.float32):
        with pytest.raises(MineditError, match="NaN or infinity from the VAE"):
            fitted(Damaged(), 8, SCALE, torch.device("cpu"), dtype)


def around(x: np.ndarray) -> np.ndarray:
    """[B, 4, h, w] -> [B·h·w, 4·9 + 1]: each latent with its neighbours, what lies beyond an edge as the edge."""
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    seen = [
        wide[:, c, dy : dy + x.shape[2], dx : dx + x.shape[3]] for c in range(4) for dy in (0, 1, 2) for dx in (0, 1, 2)
    ]
    return np.stack([each.reshape(-1) for each in seen] + [np.ones(x[:, 0].size)], 1)


def test_the_embedded_matrix_is_numpys(sd):
    with torch.no_grad():
        z = sd.vae.encode(painted(8)).chunk(2, 1)[0]
        colours = F.avg_pool2d(sd.vae.decode(z).clamp(-1, 1) / 2 + 0.5, 8)
    rows = around((z * sd.config.latent_scale).double().numpy())
    expected = np.linalg.lstsq(rows, colours.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 3), rcond=None)[0].T
    assert np.abs(sd.rgb.numpy() - expected).max() < 1e-5
    x0 = torch.randn(2, 4, 5, 9, generator=torch.Generator().manual_seed(1))
    shown = (around(x0.double().numpy()) @ expected.T).reshape(2, 5, 9, 3).transpose(0, 3, 1, 2).clip(0, 1)
    assert np.abs(coloured(sd.rgb, x0).numpy() / 2 + 0.5 - shown).max() < 1e-4
    assert sd.rgb is sd.rgb and torch.equal(replace(sd).rgb, sd.rgb)


def test_a_preview_resembles_what_the_vae_decodes(sd):
    """Nearer to it, by 2 dB or more, than each picture's own mean colour."""
    steps = []
    for seed, prompt in ((0, "a boy in the park"), (2, "a dog in the snow"), (4, "a horse on the grass at night")):
        minedit.generate(sd, [prompt], seed=seed, steps=8, on_step=steps.append)
    x0 = torch.cat([step.x0 for step in steps if step.index > 1])
    with torch.no_grad():
        decoded = F.avg_pool2d(sd.vae.decode(x0 / sd.config.latent_scale).clamp(-1, 1), 8)
    error = (coloured(sd.rgb, x0) - decoded).square().mean()
    flat = (decoded.mean((2, 3), keepdim=True) - decoded).square().mean()
    print(f"PSNR {10 * torch.log10(4 / error):.2f} dB, of the mean colour {10 * torch.log10(4 / flat):.2f} dB")
    assert error < flat / 10**0.2


def test_every_step_and_row_is_shown_and_nothing_changes():
    sd, shown = small_model(), []
    show = minedit.preview(sd, every=2, show=shown.append)
    res = minedit.edit(sd, *PAIR, steps=5, on_step=show)
    plain = minedit.edit(sd, *PAIR, steps=5)
    assert torch.equal(res.edited_latent, plain.edited_latent)
    assert list(show.frames) == [2, 4] and len(shown) == 2 and len(show.images) == 2
    assert shown[1].width > 2 * 64 and show.images[0].size == (64, 64)
    minedit.generate(sd, [PAIR[0]], steps=4, height=32, width=96, on_step=show)  # another run
    assert len(shown) == 4 and [each.size for each in show.images] == [(96, 32)]
    assert show.strip().width > 2 * 96 > show.strip(1).width


def test_latents_that_are_not_finite_are_left_to_the_run():
    shown = []
    show = minedit.preview(small_model(), show=shown.append)
    show(SimpleNamespace(index=0, x0=torch.full((1, 4, 8, 8), torch.nan)))
    assert not shown and not show.images
    with pytest.raises(MineditError, match="no step was shown yet"):
        show.strip()


def test_what_it_is_fitted_by_is_no_part_of_a_recording():
    name, tapes = "encoder.conv_in.in", []
    photo = Image.new("RGB", (64, 64), (200, 30, 90))
    for watched in (False, True):
        sd = small_model()
        with minedit.recorded(sd, name) as tape:
            more = {"on_step": minedit.preview(sd)} if watched else {}
            minedit.edit(sd, *PAIR, image=photo, steps=2, **more)
            if watched:
                replace(sd).rgb  # noqa: B018
        tapes.append(tape[name].tensor)
    assert torch.equal(*tapes)
    zeros = small_model()
    with minedit.patched(zeros, {"decoder.conv_in.out": lambda value, at: value * 0}):
        assert torch.equal(zeros.rgb, sd.rgb)
        minedit.generate(zeros, [PAIR[0]], steps=1)


class Handle:
    def __init__(self) -> None:
        self.updates = 0

    def update(self, picture: Image.Image) -> None:
        self.updates += 1


@pytest.mark.parametrize("kernel", [True, False])
def test_a_notebook_shows_one_picture_in_place(monkeypatch, kernel):
    handles = []

    def display(picture: Image.Image, display_id: bool) -> Handle:
        handles.append(Handle())
        return handles[-1]

    shell = SimpleNamespace(kernel=1) if kernel else None
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    sd = small_model()
    show = minedit.preview(sd)
    for _ in range(2):  # a run each, a picture each
        minedit.generate(sd, [PAIR[0]], steps=3, on_step=show)
    assert [handle.updates for handle in handles] == ([2, 2] if kernel else [])
    assert list(show.frames) == [1, 2, 3]


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": "2"}, {"show": 3}])
def test_mistakes_are_a_line(wrong):
    with pytest.raises(MineditError, match=f"^{next(iter(wrong))} is .*expected"):
        minedit.preview(small_model(), **wrong)
    with pytest.raises(MineditError, match="expected what minedit.load returns"):
        minedit.preview(None)


def test_command(tmp_path):
    out = tmp_path / "out"
    assert main(["generate", PAIR[0], "--steps", "5", "--preview", "linear", "--out", str(out)]) == 0
    with Image.open(out / "preview.png") as picture:
        assert picture.width > 128 and picture.getextrema()[0] != (0, 0)
