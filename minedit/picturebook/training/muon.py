"""Muon (Jordan et al., 2024): steepest descent for matrices, where no direction may move further than another.

A matrix's momentum U·S·Vᵀ becomes about U·Vᵀ. Steps have the size of AdamW's (Liu et al., arXiv:2502.16982), so both
serve side by side with one learning rate. Biases, norms, embeddings and the layers at either end are not for Muon.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minedit.picturebook.training.workers import add_up, worker, workers

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's: x ← ax + bx³ + cx⁵ takes (0, 1] to about 1 soonest
STEPS = 5  # after which singular values of 0.003 to 1 of the norm lie between 0.68 and 1.21


def orthogonalised(matrix: Tensor) -> Tensor:
    """U·f(S/‖S‖)·Vᵀ of a matrix, or a filter [out,in,...] taken as one of `out` rows, with f near 1: same shape.

    The quintic is iterated on the Gram matrix, whose sides are the shorter of the two: x·p(xᵀx) keeps its product p.
    """
    rows = matrix.flatten(1)
    tall = rows.shape[0] > rows.shape[1]
    x = rows.T if tall else rows
    x = _iterated(x / (x.norm() + 1e-12))
    return (x.T if tall else x).reshape(matrix.shape)


def all_orthogonalised(matrices: Tensor) -> Tensor:
    """`orthogonalised` of each of [n,rows,columns], all of them in the same few products."""
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = _iterated(x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-12))
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


def _iterated(x: Tensor) -> Tensor:
    """The quintic `STEPS` times on x [...,rows,columns] with at most as many rows as columns."""
    gram = x @ x.mT
    product = factor = _factor(gram)
    for _ in range(STEPS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    return product @ x


def _factor(gram: Tensor) -> Tensor:
    """What one step of the quintic multiplies x by, for gram = x·xᵀ."""
    a, b, c = QUINTIC
    return a * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) + b * gram + c * (gram @ gram)


class Muon(Optimizer):
    """Muon for matrices and filters. Workers share the work: each orthogonalises some of the matrices for all."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One step with Nesterov's momentum, from gradients that are the same for all workers."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            updates = []
            for i, p in enumerate(params):
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
                if i % workers() == worker():
                    ahead = p.grad.lerp(momentum, group["momentum"])
                    updates.append(orthogonalised(ahead) * 0.2 * max(p.flatten(1).shape) ** 0.5)
                else:
                    updates.append(torch.zeros_like(p))
            add_up(updates)
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, updates, alpha=-group["lr"])
