"""Convolutions with fewer products. Oracle: torch's convolution, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from seeded import normal, relative
from torch import nn

from minedit.speed import winograd
from minedit.speed.winograd import TRANSFORMS, Winograd, convolve, filters, suits

ROUNDING = {2: 6e-7, 4: 6e-6}  # tiles of 4 weigh what cancels by up to 8


@pytest.mark.parametrize("m", TRANSFORMS)
@pytest.mark.parametrize(
    ("b", "c", "k", "h", "w"),
    [(1, 5, 3, 8, 8), (3, 4, 6, 17, 30), (2, 3, 4, 64, 64), (5, 2, 2, 7, 9), (1, 2, 3, 200, 131), (40, 3, 2, 4, 4)],
)  # the smallest, sides that tiles reach over, whole images at once, strips of one image, the last few images
def test_it_is_the_convolution(m, b, c, k, h, w):
    x, weight, bias = normal("x", b, c, h, w), normal("weight", k, c, 3, 3), normal("bias", k)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = convolve(x.contiguous(memory_format=layout), filters(weight, m), bias, m)
        assert ours.shape == expected.shape and relative(ours, expected) < ROUNDING[m]


@pytest.mark.parametrize("m", TRANSFORMS)
def test_the_border_is_zero(m):
    """A picture of ones under a filter of ones counts the pixels each filter covers."""
    ours = convolve(torch.ones(1, 1, 8, 8), filters(torch.ones(1, 1, 3, 3), m), torch.zeros(1), m)[0, 0]
    expected = torch.full((8, 8), 9.0)
    expected[[0, -1]] = expected[:, [0, -1]] = 6
    expected[[0, 0, -1, -1], [0, -1, 0, -1]] = 4
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_inference_mode_leaves_nothing_that_other_modes_cannot_use():
    layer = nn.Conv2d(8, 8, 3, padding=1)
    fast, x = Winograd(layer), normal("x", 1, 8, 16, 16)
    winograd._kept.size = 0  # what another test left
    with torch.inference_mode():
        first = fast(x)
    with torch.no_grad():
        assert torch.equal(fast(x), first)


def test_results_do_not_share_the_memory_that_is_kept():
    x, f, bias = normal("x", 1, 4, 16, 16), filters(normal("weight", 4, 4, 3, 3), 4), torch.zeros(4)
    first = convolve(x, f, bias, 4)
    kept = first.clone()
    convolve(-x, f, bias, 4)
    assert torch.equal(first, kept)


def test_which_layers_it_suits(monkeypatch):
    monkeypatch.setattr(winograd, "NARROW", 8)
    assert suits(nn.Conv2d(8, 16, 3, padding=1))
    assert not suits(nn.Conv2d(4, 16, 3, padding=1)) and not suits(nn.Conv2d(16, 4, 3, padding=1))
    assert not suits(nn.Conv2d(8, 8, 3, padding=1, stride=2)) and not suits(nn.Conv2d(8, 8, 1))
    assert not suits(nn.Conv2d(8, 8, 3)) and not suits(nn.Conv2d(8, 8, 3, padding=2, dilation=2))
    assert not suits(nn.Conv2d(8, 8, 3, padding=1, groups=2)) and not suits(nn.Linear(8, 8))
    assert not suits(nn.Conv2d(8, 8, 3, padding=1, dtype=torch.bfloat16))
    assert not suits(nn.Conv2d(8, 8, 3, padding=1, bias=False))


def test_other_borders_are_the_layers_own():
    layer, x = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), normal("x", 1, 8, 16, 16)
    with torch.no_grad():
        assert torch.equal(Winograd(layer)(x), layer(x))


def test_tiles_follow_the_map():
    """Of 2 below 32 × 32 pixels, of 4 from there on; smaller maps, and gradients, are the layer's own."""
    layer = nn.Conv2d(8, 8, 3, padding=1)
    fast = Winograd(layer)
    with torch.no_grad():
        assert torch.equal(fast(normal("x", 1, 8, 4, 4)), layer(normal("x", 1, 8, 4, 4))) and not fast.filters
        for side, made in ((16, {2}), (32, {2, 4})):
            x = normal("x", 2, 8, side, side)
            assert relative(fast(x), layer(x)) < ROUNDING[4] and set(fast.filters) == made
        made = fast.filters[2]
        fast(normal("x", 1, 8, 16, 16))
        assert fast.filters[2] is made
    x = normal("x", 1, 8, 16, 16).requires_grad_(True)
    fast(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
