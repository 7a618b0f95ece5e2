"""Muon. Oracles: the quintic applied to the singular values in float64, and torch's own Muon for plain matrices."""

import pytest
import torch
from seeded import normal, relative

from minedit.picturebook.training.muon import QUINTIC, STEPS, Muon, orthogonalised

SHAPES = ((6, 20), (20, 6), (8, 8), (12, 4, 3, 3), (40, 4, 3, 3))


def graded(name, *shape):
    """A matrix whose singular values fall over two decades, as a gradient's do."""
    u, s, v = torch.linalg.svd(normal(name, *shape).flatten(1), full_matrices=False)
    return (u * torch.logspace(0, -2, len(s)) @ v).reshape(shape)


@pytest.mark.parametrize(("dtype", "tolerance"), ((torch.float64, 1e-10), (torch.float32, 1e-3)))
@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalised_applies_the_quintic_to_singular_values(shape, dtype, tolerance):
    """The Gram matrix squares the singular values: float32 keeps half of its digits of the least of them."""
    matrix = graded("muon", *shape)
    u, s, v = torch.linalg.svd(matrix.double().flatten(1), full_matrices=False)
    s, (a, b, c) = s / s.norm(), QUINTIC
    for _ in range(STEPS):
        s = a * s + b * s**3 + c * s**5
    assert relative(orthogonalised(matrix.to(dtype)), (u * s @ v).reshape(shape)) <= tolerance
    assert 0.6 < s.min() and s.max() < 1.25


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
def test_muon_is_torchs():
    """Torch's iterates in bfloat16, hence the tolerance; the momentum and the size of a step are exact."""
    params = [torch.nn.Parameter(normal(f"p{shape}", *shape)) for shape in SHAPES[:3]]
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours = Muon(params, lr=0.01, weight_decay=0.1)
    theirs = torch.optim.Muon(twins, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        before = [p.detach().clone() for p in params]
        for p, twin, old in zip(params, twins, before, strict=True):
            twin.data.copy_(old)
            p.grad = twin.grad = normal(f"{step}{tuple(p.shape)}", *p.shape)
        ours.step(), theirs.step()
        for p, twin, old in zip(params, twins, before, strict=True):
            assert (p - twin).norm() <= 0.03 * (twin - old).norm()


def test_a_step_is_as_large_as_adamws():
    """0.2 a step, root mean square, as AdamW's steps are in practice (Liu et al., section 2.2)."""
    for shape in SHAPES:
        p = torch.nn.Parameter(torch.zeros(shape))
        p.grad = normal("gradient", *shape)
        Muon([p], lr=1.0).step()
        assert 0.1 <= p.detach().square().mean().sqrt() <= 0.25
