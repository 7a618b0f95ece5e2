"""DDIM (Song, Meng, Ermon 2020, eq. 12): the noise schedule of Stable Diffusion v1, one step, its inverse. Pure.

A time t is an index into the 1000 training steps, 0 (almost clean) ... 999 (almost noise). Times below 0 mean
"past the last step" and use alphas_cumprod[0], as SD v1 does. The schedule is float64; a latent keeps its own dtype.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from minedit.sampling.numbers import STEPS, TRAIN_STEPS

BETA_FIRST, BETA_LAST = 0.00085, 0.012


def betas() -> Tensor:
    """[1000] float64, "scaled linear": the square roots are equally spaced."""
    return torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2


def alphas_cumprod() -> Tensor:
    """[1000] float64, the share of the signal's variance left at each time: 0.99915 ... 0.0047."""
    return torch.cumprod(1 - betas(), 0)


@lru_cache(maxsize=1)
def _alphas() -> tuple[float, ...]:
    return tuple(alphas_cumprod().tolist())


def alpha(t: int) -> float:
    """alphas_cumprod at time t; alphas_cumprod[0] for t < 0."""
    return _alphas()[max(int(t), 0)]


def timesteps(steps: int) -> list[int]:
    """The times of a run of 1 ... 1000 steps, descending: 981, 961 ... 1 for 50 steps.

    SD v1's "leading" spacing with offset 1: k * (1000 // steps) + 1. It starts at (steps - 1) * (1000 // steps) + 1,
    which is far from pure noise for very few steps (1 for one step) and for counts just above a divisor of 1000 (501
    for 501 steps): prefer 10, 20, 25, 40, 50, 100. At 1000 steps there is no offset: 1000 would be past the end.

    Raises:
        MineditError: steps is not a whole number from 1 to 1000.
    """
    steps = STEPS.check("steps", steps)
    offset = 0 if steps == TRAIN_STEPS else 1
    return [k * (TRAIN_STEPS // steps) + offset for k in reversed(range(steps))]


def schedule(steps: int) -> list[tuple[int, int]]:
    """The pairs (t, t_prev) of a run; the last t_prev is at most 0."""
    times = timesteps(steps)
    return [(t, t - TRAIN_STEPS // steps) for t in times]


def predict_x0(x: Tensor, eps: Tensor, t: int) -> Tensor:
    """The clean latent that x at time t would be if eps were exactly its noise."""
    a = alpha(t)
    return (x - math.sqrt(1 - a) * eps) / math.sqrt(a)


def predict_eps(x: Tensor, x0: Tensor, t: int) -> Tensor:
    """The noise of x at time t if x0 were exactly its clean latent."""
    a = alpha(t)
    return (x - math.sqrt(a) * x0) / math.sqrt(1 - a)


def step(
    x: Tensor, eps: Tensor, t: int, t_prev: int, eta: float = 0.0, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step from t to t_prev.

    Args:
        x, eps: latent and predicted noise, any equal shape.
        t, t_prev: times, t_prev < t (with eta = 0 any two times).
        eta: 0 is deterministic DDIM, 1 has the variance of ancestral DDPM sampling.
        noise: like x, standard normal; needed when eta > 0.

    Returns:
        (x at t_prev, predicted clean latent).
    """
    x0 = predict_x0(x, eps, t)
    found, sigma = mean(x0, eps, t, t_prev, eta)
    if eta == 0:
        return found, x0
    if noise is None:
        raise ValueError(f"eta is {eta}, expected noise to go with it")
    return found + sigma * noise, x0


def mean(x0: Tensor, eps: Tensor, t: int, t_prev: int, eta: float = 0.0) -> tuple[Tensor, float]:
    """(what a step from t to t_prev adds its noise to, the standard deviation of that noise)."""
    a, a_prev = alpha(t), alpha(t_prev)
    sigma = eta and eta * math.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
    return math.sqrt(a_prev) * x0 + math.sqrt(max(1 - a_prev - sigma**2, 0)) * eps, sigma


def inverse_step(x: Tensor, eps: Tensor, t: int, t_prev: int) -> Tensor:
    """From t_prev back up to t along the same eps: `step(inverse_step(x, eps, t, t_prev), eps, t, t_prev)[0]` is x."""
    return step(x, eps, t_prev, t)[0]


def noise_between(x: Tensor, x_prev: Tensor, t: int, t_prev: int) -> Tensor:
    """The eps along which a step leads from x at t to x_prev at t_prev; 0 where every eps leads to x itself."""
    a, a_prev = alpha(t), alpha(t_prev)
    if a == a_prev:  # the last of 1000 steps
        return torch.zeros_like(x)
    scale = math.sqrt(a_prev / a)
    return (x_prev - scale * x) / (math.sqrt(1 - a_prev) - scale * math.sqrt(1 - a))


def diffuse(x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
    """x0 [B, ...] noised to time t (int, or int tensor [B]): sqrt(a) x0 + sqrt(1 - a) noise."""
    if isinstance(t, int):
        return noised(x0, noise, alpha(t))
    return noised(x0, noise, alphas_cumprod()[t.cpu()].view(-1, *[1] * (x0.ndim - 1)))


def noised(x0: Tensor, noise: Tensor, a: float | Tensor) -> Tensor:
    """`diffuse` by alphas_cumprod itself, a number or a tensor that goes with x0."""
    if isinstance(a, float):
        return math.sqrt(a) * x0 + math.sqrt(1 - a) * noise
    return a.sqrt().to(x0) * x0 + (1 - a).sqrt().to(x0) * noise


def noise(seed: int, h: int, w: int) -> Tensor:
    """The starting noise [1, 4, h, w] of a seed, drawn on the CPU: Prompt-to-Prompt's convention."""
    return torch.randn(1, 4, h, w, generator=torch.Generator("cpu").manual_seed(seed))
