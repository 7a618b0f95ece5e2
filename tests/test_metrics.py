"""Metrics of pictures. Oracles: their formulas in float64, pixel by pixel; the lpips package's figures."""

import numpy as np
import pytest
import torch
from seeded import normal

from minedit.config import MineditError
from minedit.image import to_tensor
from minedit.metrics.asked import decoded
from minedit.metrics.lpips import LPIPS, load_lpips
from minedit.metrics.pixels import blackened, mse, psnr, ssim, ssim_map
from minedit.picturebook.score import rendered
from minedit.picturebook.world.edits import pairs

# lpips 0.1.4, alex, of the tuning pairs 0, 57 and 114 as the renderer draws them, with its own float32 weights
LPIPS_OF_PAIRS = (0.0412454, 0.1104839, 0.3094853)


def two(*shape):
    """Pictures in [0,1] that resemble one another."""
    a = normal("a picture", *shape).sigmoid()
    return a, (a + 0.1 * normal("another", *shape)).clamp(0, 1)


def ssim_by_formula(a, b, y, x):
    """Wang et al., eq. 13, of one channel [H,W] at one pixel: weighed means, variances and covariance."""
    at = np.arange(11) - 5
    bell = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    bell /= bell.sum()
    a, b = (np.pad(each, 5, mode="reflect")[y : y + 11, x : x + 11] for each in (a, b))
    m, n = (bell * a).sum(), (bell * b).sum()
    v, w, cov = (bell * (a - m) ** 2).sum(), (bell * (b - n) ** 2).sum(), (bell * (a - m) * (b - n)).sum()
    return (2 * m * n + 0.01**2) * (2 * cov + 0.03**2) / ((m * m + n * n + 0.01**2) * (v + w + 0.03**2))


def test_ssim():
    a, b = two(2, 3, 20, 17)
    found = ssim_map(a, b)
    for where in ((0, 0, 0, 0), (1, 2, 19, 16), (0, 1, 9, 8), (1, 0, 3, 15)):
        image, channel, y, x = where
        wanted = ssim_by_formula(*(each[image, channel].double().numpy() for each in (a, b)), y, x)
        assert found[where].item() == pytest.approx(wanted, abs=1e-12)
    assert ssim(a, a).tolist() == [1, 1] and ssim(a, b)[1].item() == pytest.approx(found[1].mean().item())


def test_errors_of_pixels_are_of_a_part():
    a, b = two(2, 3, 16, 16)
    squares = (a.double() - b.double()).numpy() ** 2
    inside = torch.zeros(1, 1, 16, 16)
    inside[..., 2:9, 5:] = 1
    part = squares[..., 2:9, 5:].mean((1, 2, 3))
    assert np.allclose(mse(a, b), squares.mean((1, 2, 3)), rtol=1e-5)
    assert np.allclose(mse(a, b, inside), part, rtol=1e-5)
    assert np.allclose(psnr(a, b, inside), -10 * np.log10(part), rtol=1e-5)
    assert torch.isnan(mse(a, b, torch.zeros(1, 1, 16, 16))).all() and torch.isinf(psnr(a, a)).all()
    assert ssim(a, b, inside)[0].item() == pytest.approx(ssim_map(a, b)[0, :, 2:9, 5:].mean().item())


def test_published_background_flatters():
    """By 10·log10(pixels / pixels of the background) dB."""
    a, b = two(1, 3, 16, 16)
    background = torch.zeros(1, 1, 16, 16)
    background[..., :4] = 1
    published = psnr(blackened(a, background), blackened(b, background))
    assert (published - psnr(a, b, background)).item() == pytest.approx(10 * np.log10(4), abs=1e-4)


def test_masks_are_runs():
    wanted = np.zeros((6, 6))
    wanted[2, 3:] = wanted[3, :4] = wanted[[0, -1]] = wanted[:, [0, -1]] = 1
    assert np.array_equal(decoded([15, 7], 6), wanted)
    assert np.array_equal(decoded([15, 7, 35, 900, 1000, 5], 6), wanted)  # what is beyond the picture is cut off


def test_lpips_is_the_packages():
    lpips = load_lpips()
    picked = [rendered(each) for each in pairs("tune")[:115:57]]
    a, b = (torch.cat([to_tensor(pair[at]) for pair in picked]) / 2 + 0.5 for at in (0, 1))
    assert np.allclose(lpips(a, b), LPIPS_OF_PAIRS, atol=1e-4)
    assert lpips(a, a).abs().max() == 0 and lpips(a[..., :32, :32], b[..., :32, :32]).isfinite().all()
    with pytest.raises(MineditError, match="31 x 128"):
        lpips(a[..., :31], b[..., :31])
    left = torch.zeros(1, 1, 128, 128)
    left[..., :64] = 1
    halves = torch.stack([lpips(a, b, left), lpips(a, b, 1 - left)])
    assert torch.allclose(halves.mean(0), lpips(a, b, torch.ones_like(left)), atol=1e-6)
    assert (halves - lpips(a, b)).abs().max() > 1e-3


def test_lpips_takes_a_file(tmp_path):
    torch.manual_seed(0)
    own = LPIPS("squeeze")
    state = {name: weight for name, weight in own.state_dict().items() if name.startswith("features")}
    torch.save(state, tmp_path / "squeezenet1_1.pth")
    found = load_lpips(tmp_path / "squeezenet1_1.pth")
    assert found.net == "squeeze" and torch.equal(found.features[0].weight, own.features[0].weight)
    assert found.heads[6].abs().sum() > 0  # the package's
    torch.save({name: state[name] for name in list(state)[:-1]}, tmp_path / "part.pth")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    for name, said in (("part.pth", "lacks features.12"), ("other.pth", "no network of LPIPS"), ("none", "not exist")):
        with pytest.raises(MineditError, match=said):
            load_lpips(tmp_path / name)
