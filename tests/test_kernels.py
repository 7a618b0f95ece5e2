"""The fused kernel. Oracle: the formula of Edit in float64; the measure is eager's error in the same dtype.

Where there is no GPU it runs in Triton's interpreter: conftest.py asks for it.
Compilation for GPUs that are not here runs in processes of its own, without the interpreter.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from seeded import normal, relative
from torch import Tensor

from minedit.attention.eager import eager
from minedit.attention.rules import Edit, Mask, Rule
from minedit.config import MineditError

pytest.importorskip("triton")
from minedit.attention import triton as kernels  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def oracle(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """(out, columns) by Edit's docstring, in float64."""
    q, k, v = (
        x.double()[list(rows or range(len(x)))]
        for x, rows in zip((q, k, v), (rule.q_rows, rule.k_rows, rule.v_rows), strict=True)
    )
    p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
    m = p.clone()
    for e in rule.edits:
        mixed = p[e.source] if e.columns is None else p[e.source] @ e.columns.double()
        w = 1 if e.gate is None else e.gate.double()[:, None]
        pin, blend, own = (x.double() for x in (e.pin, e.blend, e.own))
        m[e.row] = pin * mixed + blend * ((1 - w) * mixed + w * p[e.row]) + own * p[e.row]
    return m @ v, p.mean(1)


def case(seed: int, b: int, h: int, n: int, t: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as a layer hands them: heads are a view of the channels, [b,n,h·d] split and transposed."""
    shapes = {"q": (n, 2.0), "k": (t, 2.0), "v": (t, 1.0)}
    return tuple(
        (normal(f"{name} {seed}", b, m, h * d) * scale).to(DEVICE, dtype).unflatten(-1, (h, d)).transpose(1, 2)
        for name, (m, scale) in shapes.items()
    )


def random_edit(rng: random.Random, row: int, source: int, n: int, t: int) -> Edit:
    shares = normal(f"shares {rng.random()}", 3, t).mul(2).softmax(0)
    if rng.random() < 0.3:
        shares = shares * torch.tensor([rng.uniform(0, 4) for _ in range(t)])
    mixes = (None, torch.eye(t)[:, rng.sample(range(t), t)], normal(f"mix {rng.random()}", t, t).softmax(0))
    bare = rng.random() < 0.3  # both or neither: each combination is a kernel of its own to compile
    gate, mix = (None, None) if bare else (normal(f"gate {rng.random()}", n).sigmoid(), rng.choice(mixes[1:]))
    place = [x if x is None else x.to(DEVICE) for x in (mix, *shares, gate)]
    return Edit(row, source, *place[:4], gate=place[4])


def random_rule(rng: random.Random, b: int, n: int, t: int) -> Rule:
    routed = rng.random() < 0.5
    rows = [tuple(rng.randrange(b) for _ in range(b)) if routed else None for _ in range(3)]
    edited = rng.sample(range(b), rng.randint(0, b))
    return Rule(*rows, edits=tuple(random_edit(rng, row, rng.randrange(b), n, t) for row in edited))


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


def assert_as_good_as_eager(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> None:
    """Twice eager's error, or what rounding the largest score to float32 does to a softmax: eager may be lucky."""
    largest = (q.double() @ k.double().mT).abs().max().item() / q.shape[-1] ** 0.5
    floor = max(4, largest / 2) * torch.finfo(torch.float32).eps
    ours, theirs, exact = (
        kernels.attend(q, k, v, rule, columns=True),
        eager(q, k, v, rule, columns=True),
        oracle(q, k, v, rule),
    )
    for found, reference, expected in zip(ours, theirs, exact, strict=True):
        assert found.dtype == reference.dtype
        assert error(found, expected) <= max(2 * error(reference, expected), floor)
    assert torch.equal(kernels.attend(q, k, v, rule), ours[0])


# N is never a multiple of the tile, T and D are powers of two in some and not in others; the last three are SD-v1.4's.
SHAPES = ((9, 7, 8), (33, 77, 16), (17, 16, 24), (35, 77, 40), (18, 77, 80), (5, 77, 160))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_rules(shape, dtype):
    for seed in range(2):
        rng, b, h = random.Random(f"{seed} {shape}"), 2 + seed, 1 + seed % 2
        n, t, d = shape
        assert_as_good_as_eager(*case(seed, b, h, n, t, d, dtype), random_rule(rng, b, n, t))


def test_large_scores_do_not_overflow():
    q, k, v = case(0, 2, 1, 9, 7, 8, torch.float16)
    rule = Rule(edits=(random_edit(random.Random(0), 1, 0, 9, 7),))
    assert_as_good_as_eager(q * 100, k * 100, v, rule)


def test_without_a_rule_it_is_attention():
    q, k, v = case(1, 2, 2, 40, 11, 16, torch.float32)
    assert_as_good_as_eager(q, k, v, Rule())
    assert torch.equal(kernels.attend(q, k, v), kernels.attend(q, k, v, Rule()))


def test_source_rows_are_untouched():
    q, k, v = case(2, 4, 2, 20, 7, 8, torch.float32)
    plain = kernels.attend(q, k, v)
    edited = kernels.attend(q, k, v, Rule(edits=(random_edit(random.Random(1), 3, 2, 20, 7),)))
    assert torch.equal(edited[:3], plain[:3]) and not torch.allclose(edited[3], plain[3])


def test_numbers_beyond_float16_are_mixed():
    """R of 1e5 was rounded to float16: infinite."""
    q, k, v = case(4, 2, 2, 20, 7, 16, torch.float16)
    share = torch.full((7,), 1e-5, device=DEVICE)
    rule = Rule(edits=(Edit(1, 0, torch.full((7, 7), 1e5, device=DEVICE), share, share, share),))
    assert_as_good_as_eager(q, k, v, rule)
    big = Rule(edits=(Edit(1, 0, torch.eye(7, device=DEVICE) * 1e-5, *(share * 1e10,) * 2, share),))
    assert_as_good_as_eager(q, k, v * 1e-3, big)


def test_written_in_place_a_rule_is_read_again():
    """As a recorded step does: nothing of a rule's numbers may be kept from one call to the next."""
    q, k, v = case(5, 2, 2, 20, 7, 16, torch.float32)
    edit, other = (random_edit(random.Random(seed), 1, 0, 20, 7) for seed in (3, 5))
    names = [name for name in ("pin", "blend", "own", "columns", "gate") if getattr(edit, name) is not None]
    assert_as_good_as_eager(q, k, v, Rule(edits=(edit,)))
    for name in names:
        getattr(edit, name).copy_(1 - getattr(other, name) if getattr(other, name) is not None else 0.5)
    assert_as_good_as_eager(q, k, v, Rule(edits=(edit,)))


def test_rules_that_lie_otherwise_are_converted():
    q, k, v = case(6, 2, 2, 20, 7, 16, torch.float32)
    edit = random_edit(random.Random(2), 1, 0, 20, 7)
    odd = Edit(1, 0, torch.eye(7).double(), *torch.rand(7, 3, generator=torch.Generator().manual_seed(0)).T, edit.gate)
    place = [x if x is None else x.to(DEVICE) for x in (odd.columns, odd.pin, odd.blend, odd.own, odd.gate)]
    assert_as_good_as_eager(q, k, v, Rule(edits=(Edit(1, 0, *place),)))
    wide = torch.cat([q, q], -1)[..., ::2]  # numbers of a head are not neighbours
    assert_as_good_as_eager(wide, k, v, Rule(edits=(edit,)))


def test_it_refuses_what_it_would_read_beyond():
    q, k, v = case(7, 2, 2, 20, 7, 16, torch.float32)
    share = torch.ones(7, device=DEVICE)
    with pytest.raises(MineditError, match="source is 2, expected a row of the batch, 0 to 1"):
        kernels.attend(q, k, v, Rule(edits=(Edit(1, 2, None, share, share, share),)))
    with pytest.raises(MineditError, match="attention of q"):
        kernels.attend(q, k[:1], v[:1])
    for other in (v[..., :8], v.half()):
        with pytest.raises(MineditError, match="expected one width, dtype and device"):
            kernels.attend(q, k, other)


def test_more_keys_than_a_tile_go_to_the_flash_kernel():
    q, k, v = case(3, 4, 2, 150, 150, 8, torch.float32)
    rule = Rule(q_rows=(0, 1, 2, 2), k_rows=(0, 1, 2, 2))
    assert error(kernels.attend(q, k, v, rule), oracle(q, k, v, rule)[0]) < 1e-6


def test_a_mask_is_obeyed():
    q, k, v = case(0, 4, 2, 40, 7, 16, torch.float32)
    keys = normal("keys", 40, 7).to(DEVICE) > 0
    keys[:, 3] = True
    out, columns = kernels.attend(q, k, v, Rule(v_rows=(0, 0, 2, 2), masks=(Mask(3, keys),)), columns=True)
    scores = (q[3] @ k[3].mT / 4).double().masked_fill(~keys, -torch.inf)
    assert relative(out[3], scores.softmax(-1) @ v[2].double()) < 1e-5
    assert relative(columns[3], scores.softmax(-1).mean(0)) < 1e-5


def test_gradients_pass():
    """By sdpa: the kernel has none."""
    q, k, v = (x.detach().requires_grad_() for x in case(0, 4, 2, 40, 7, 16, torch.float32))
    rule = Rule(edits=(random_edit(random.Random(0), 3, 2, 40, 7),))
    ours, plain = kernels.attend(q, k, v, rule), eager(q, k, v, rule)
    torch.testing.assert_close(ours, plain)
    found, expected = (torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (ours, plain))
    assert all(relative(a, b) < 1e-5 and b.abs().max() > 0 for a, b in zip(found, expected, strict=True))


def test_it_compiles_without_spilling(tmp_path):
    """For GPUs that need not be here; registers, shared memory and spills are printed (pytest -s)."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    verb = [sys.executable, "-m", "minedit", "kernels", "compiled", "triton", "--out", tmp_path]
    done = subprocess.run(
        [*verb, *("--quick", "--target", "sm_80,sm_90")], env=environment, capture_output=True, text=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("sm_")]
    assert {row[0] for row in rows} == {"sm_80", "sm_90"} and {row[-1] for row in rows} == {"0"}
