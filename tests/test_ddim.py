"""DDIM and guidance against numpy and published constants. Oracle: the papers' formulas in float64."""

import math

import numpy as np
import pytest
import torch

from minedit.config import MineditError
from minedit.sampling import ddim
from minedit.sampling.guidance import three_way, two_way


def numpy_alphas():
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2)


def test_schedule_is_numpys_and_ends_where_sd_does():
    assert np.allclose(ddim.alphas_cumprod().numpy(), numpy_alphas(), rtol=1e-12, atol=0)
    # the first and last entry of `alphas_cumprod` in published SD v1 checkpoints
    assert ddim.alpha(0) == pytest.approx(0.99915, abs=1e-9)
    assert ddim.alpha(999) == pytest.approx(0.0046601, abs=1e-6)
    assert ddim.alpha(-19) == ddim.alpha(0)


@pytest.mark.parametrize("steps", [1, 2, 10, 25, 50, 300, 999])
def test_timesteps_are_the_leading_spacing(steps):
    expected = (np.arange(steps) * (1000 // steps) + 1)[::-1].tolist()
    assert ddim.timesteps(steps) == expected


def test_timesteps_of_fifty_and_of_a_thousand():
    times = ddim.timesteps(50)
    assert (times[0], times[1], times[-1], len(times)) == (981, 961, 1, 50)
    assert ddim.timesteps(1000) == list(range(999, -1, -1))
    assert ddim.schedule(50)[0] == (981, 961) and ddim.schedule(50)[-1] == (1, -19)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True, None, "50", math.nan])
def test_bad_steps_are_one_line_errors(steps):
    with pytest.raises(MineditError) as error:
        ddim.timesteps(steps)
    assert "\n" not in str(error.value) and "1 to 1000" in str(error.value)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("t, t_prev", [(981, 961), (1, -19), (501, 1)])
def test_step_is_equation_12(eta, t, t_prev):
    rng = np.random.default_rng(0)
    x, eps, z = rng.standard_normal((3, 2, 4, 3, 3))
    a = numpy_alphas()
    a_t, a_prev = a[t], a[max(t_prev, 0)]
    sigma = eta * np.sqrt((1 - a_prev) / (1 - a_t)) * np.sqrt(1 - a_t / a_prev)
    x0 = (x - np.sqrt(1 - a_t) * eps) / np.sqrt(a_t)
    expected = np.sqrt(a_prev) * x0 + np.sqrt(1 - a_prev - sigma**2) * eps + sigma * z
    out, out_x0 = ddim.step(*map(torch.from_numpy, (x, eps)), t, t_prev, eta, torch.from_numpy(z))
    assert np.allclose(out.numpy(), expected, rtol=1e-10, atol=1e-10)
    assert np.allclose(out_x0.numpy(), x0, rtol=1e-10, atol=1e-10)


def test_step_undoes_inverse_step_at_every_time():
    x, eps = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t, t_prev in ddim.schedule(50):
        there = ddim.inverse_step(x, eps, t, t_prev)
        assert torch.allclose(ddim.step(there, eps, t, t_prev)[0], x, rtol=1e-11, atol=1e-11)


def test_true_noise_leads_back_to_the_clean_latent():
    """With eps the exact noise of one x0, every step stays on its line, so the last prediction is x0 itself."""
    x0, eps = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = ddim.diffuse(x0, eps, 981)
    for t, t_prev in ddim.schedule(50):
        x, predicted = ddim.step(x, eps, t, t_prev)
    assert torch.allclose(predicted, x0, atol=1e-10)


def test_diffuse_takes_one_time_per_row():
    x0, eps = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    both = ddim.diffuse(x0, eps, torch.tensor([0, 500, 999]))
    for row, t in enumerate([0, 500, 999]):
        assert torch.allclose(both[row], ddim.diffuse(x0[row], eps[row], t), atol=1e-6)


def test_step_keeps_the_dtype_and_its_inputs():
    x, eps = torch.randn(2, 1, 4, 2, 2)
    before = x.clone()
    out, _ = ddim.step(x, eps, 981, 961)
    assert out.dtype == torch.float32 and torch.equal(x, before)
    with pytest.raises(ValueError, match="noise"):
        ddim.step(x, eps, 981, 961, eta=1.0)


def test_noise_is_prompt_to_prompts():
    expected = torch.randn(1, 4, 16, 16, generator=torch.Generator("cpu").manual_seed(7))
    assert torch.equal(ddim.noise(7, 16, 16), expected)
    assert not torch.equal(ddim.noise(8, 16, 16), expected)


def test_guidance_formulas():
    uncond, image, full = torch.randn(3, 2, 4, 2, 2, dtype=torch.float64)
    assert torch.allclose(two_way(uncond, full, 7.5), 7.5 * full - 6.5 * uncond)
    assert torch.equal(two_way(uncond, full, 0.0), uncond)
    expected = (1 - 1.5) * uncond + (1.5 - 7.5) * image + 7.5 * full
    assert torch.allclose(three_way(uncond, image, full, 7.5, 1.5), expected)
    assert torch.allclose(three_way(uncond, uncond, full, 7.5, 1.5), two_way(uncond, full, 7.5))
