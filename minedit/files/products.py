"""The factors of a change to a layer -> the change itself: LoRA, and LyCORIS' LoHa and LoKr (Yeh et al., 2309.14859).

    LoRA   ΔW = up down                        Hu et al., 2021, arXiv:2106.09685
    LoHa   ΔW = (w1_a w1_b) ⊙ (w2_a w2_b)      Hyeon-Woo et al., 2022, arXiv:2108.06098
    LoKr   ΔW = w1 ⊗ w2                        w1 and w2 are whole, or products w_a w_b themselves

Of a convolution, a product may be Tucker's, with a core: t [r, r, k, k], a [r, out], b [r, in] -> Σ t_ij a_i b_j. That
of a LoRA, which LyCORIS calls LoCon there, is mid: a convolution between down and up.
Works on the meta device too, which tells the shape of a change before any of it is made.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

KINDS = {
    **dict.fromkeys(("down", "mid", "up"), "a LoRA"),
    "hada": "a LoHa",
    "lokr": "a LoKr",
}  # by how a factor's name begins


def kind_of(names: Collection[str]) -> str | None:
    """What a layer's factors are of, in words; None where they are of several."""
    kinds = {KINDS.get(name.partition("_")[0]) for name in names}
    return kinds.pop() if len(kinds) == 1 else None


def whole(names: Collection[str]) -> bool:
    """Whether these are all the factors of a change, and no others."""
    held = set(names)
    pairs = [{f"hada_w{i}_{x}" for i in (1, 2) for x in "ab"}]
    forms = [{"down", "up"}, {"down", "mid", "up"}, pairs[0], pairs[0] | {"hada_t1", "hada_t2"}]
    for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}):
        for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_t2", "lokr_w2_a", "lokr_w2_b"}):
            forms.append(first | second)
    return held in forms


def rank_of(factors: Mapping[str, Tensor]) -> int | None:
    """What alpha is divided by; None where both factors of a LoKr are whole, and alpha says nothing."""
    name = next((name for name in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in factors), None)
    return None if name is None else factors[name].shape[0]


def delta(factors: Mapping[str, Tensor]) -> Tensor:
    """ΔW [out, in], [out, in · k · k] or [out, in, k, k]. Raises RuntimeError for shapes that do not fit."""
    if "mid" in factors:
        up, down = factors["up"].flatten(1), factors["down"].flatten(1)
        return torch.einsum("ij...,pi,jr->pr...", factors["mid"], up, down)
    if "down" in factors:
        return factors["up"].flatten(1) @ factors["down"].flatten(1)
    if "hada_w1_a" in factors:
        return _product(factors, "hada_w1", "hada_t1") * _product(factors, "hada_w2", "hada_t2")
    w1, w2 = _product(factors, "lokr_w1"), _product(factors, "lokr_w2", "lokr_t2")
    return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - w1.ndim)), w2.contiguous())


def _product(factors: Mapping[str, Tensor], name: str, core: str = "") -> Tensor:
    if name in factors:
        return factors[name]
    a, b = factors[f"{name}_a"], factors[f"{name}_b"]
    return torch.einsum("ij...,ip,jr->pr...", factors[core], a, b) if core in factors else a @ b
