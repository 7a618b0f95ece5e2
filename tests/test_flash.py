"""The flash kernel for heads of odd widths. Oracle: softmax attention in float64; the measure is eager's error.

Where there is no GPU it runs in Triton's interpreter: conftest.py asks for it. It is compiled for GPUs that are not
here in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from seeded import normal
from torch import Tensor

from minedit.attention.eager import eager
from minedit.attention.rules import Edit, Mask, Rule
from minedit.attention.sdpa import sdpa
from minedit.config import MineditError

pytest.importorskip("triton")
from minedit.attention import flash  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUTES = Rule(q_rows=(0, 1, 1, 0), k_rows=(3, 2, 1, 0), v_rows=(0, 0, 2, 2))


def case(b: int, h: int, n: int, t: int, d: int, dtype: torch.dtype, scale: float = 2) -> tuple[Tensor, ...]:
    """q, k, v as a layer hands them: heads are a view of the channels, [b,n,h·d] split and transposed."""
    return tuple(
        (normal(f"{name} {n} {d}", b, m, h * d) * s).to(DEVICE, dtype).unflatten(-1, (h, d)).transpose(1, 2)
        for name, m, s in (("q", n, scale), ("k", t, scale), ("v", t, 1.0))
    )


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


def assert_as_good_as_eager(q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None) -> None:
    routes = (rule.q_rows, rule.k_rows, rule.v_rows) if rule else (None,) * 3
    wide = [x.double()[list(rows or range(len(x)))] for x, rows in zip((q, k, v), routes, strict=True)]
    exact = torch.softmax(wide[0] @ wide[1].mT / q.shape[-1] ** 0.5, dim=-1) @ wide[2]
    with mock.patch.object(flash, "sdpa", side_effect=AssertionError("handed on")):
        found = flash.attend(q, k, v, rule)
        again = flash.attend(q, k, v, rule)  # goes the short way to the kernel
    assert found.dtype == q.dtype and torch.equal(found, again)
    assert found.transpose(1, 2).is_contiguous()  # merging heads is a view
    assert error(found, exact) <= 2 * error(eager(q, k, v, rule), exact)


# (B, H, N, T, D): tiles full and not, one pixel, other keys than pixels, widths that are split and not
SHAPES = ((1, 2, 128, 128, 40), (2, 1, 150, 150, 40), (4, 1, 1, 1, 40), (2, 2, 70, 9, 40), (1, 1, 65, 130, 80),
          (2, 1, 33, 64, 24), (1, 1, 20, 70, 16))  # fmt: skip


@pytest.mark.parametrize("dtype", flash.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_attention(shape, dtype):
    assert_as_good_as_eager(*case(*shape, dtype))


@pytest.mark.parametrize("name", ["q_rows", "k_rows", "v_rows", "all"])
def test_rows_read_others(name):
    rule = ROUTES if name == "all" else Rule(**{name: getattr(ROUTES, name)})
    q, k, v = case(4, 2, 40, 70, 40, torch.float16)
    assert_as_good_as_eager(q, k, v, rule)
    assert not torch.equal(flash.attend(q, k, v, rule), flash.attend(q, k, v))


def test_more_rows_than_a_number_has_room_for():
    q, k, v = case(17, 1, 5, 5, 40, torch.float16)
    assert_as_good_as_eager(q, k, v, Rule(k_rows=tuple(reversed(range(17)))))


def test_large_scores_do_not_overflow():
    assert_as_good_as_eager(*case(1, 2, 70, 140, 40, torch.float16, scale=60))


WIDTHS = {"split": (32, 16, 32, 16), "whole": (64, 0, 64, 0), "v whole": (32, 16, 64, 0),
          "v split": (64, 0, 32, 16)}  # fmt: skip


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("bn", [32, 128])
def test_other_tiles(widths, bn):
    sizes = flash.shape(150, 40, 150) | {"BM": 64, "BN": bn}
    sizes |= dict(zip(("BD", "BE", "VD", "VE"), WIDTHS[widths], strict=True))
    flash._launches.cache_clear()
    with mock.patch.object(flash, "shape", lambda *_: dict(sizes)):
        assert_as_good_as_eager(*case(1, 1, 150, 256, 40, torch.float16))
        assert_as_good_as_eager(*case(1, 1, 150, 150, 40, torch.float16))
    flash._launches.cache_clear()


def test_numbers_that_are_not_neighbours_are_copied():
    q, k, v = case(2, 1, 20, 30, 40, torch.float16)
    assert_as_good_as_eager(torch.stack([q, q], -1).flatten(-2)[..., ::2], k, v)
    odd = torch.cat([k[..., :1], k], -1)[..., 1:]  # rows begin at multiples of 41
    assert_as_good_as_eager(q, odd, v)


def test_the_rest_is_handed_on():
    half, full = case(4, 1, 9, 9, 40, torch.float16), case(4, 1, 9, 9, 40, torch.float32)
    share = torch.full((9,), 0.5, device=DEVICE)
    rules = Rule(edits=(Edit(1, 0, None, share, share, share),)), Rule(masks=(Mask(1, torch.ones(9, 9).bool()),))
    calls = [(half, rule, False) for rule in rules] + [(half, None, True), (full, ROUTES, False)]
    calls += [(case(4, 1, 9, 9, d, torch.float16), ROUTES, False) for d in (20, 64, 160)]
    calls.append(([x.detach().requires_grad_() for x in half], None, False))
    for tensors, rule, columns in calls:
        with mock.patch.object(flash, "sdpa", wraps=sdpa) as handed:
            found = flash.attend(*tensors, rule, columns)
        assert handed.call_count == 1
        torch.testing.assert_close(found, sdpa(*tensors, rule, columns), rtol=0, atol=0)


def test_it_refuses_what_it_would_read_beyond():
    q, k, v = case(2, 1, 20, 7, 40, torch.float16)
    with pytest.raises(MineditError, match="expected 2 rows of a batch of 2"):
        flash.attend(q, k, v, Rule(k_rows=(0, 2)))
    with pytest.raises(MineditError, match="attention of q"):
        flash.attend(q, k[:1], v[:1])


def test_it_compiles_without_spilling(tmp_path):
    """For GPUs that need not be here; registers, shared memory and spills are printed (pytest -s)."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    verb = [sys.executable, "-m", "minedit", "kernels", "compiled", "flash", "--out", tmp_path]
    done = subprocess.run(
        [*verb, *("--target", "sm_80,sm_90", "--dtype", "float16,bfloat16")],
        env=environment,
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("sm_")]
    assert {row[0] for row in rows} == {"sm_80", "sm_90"} and {row[-1] for row in rows} == {"0"}
    assert len(rows) == 4 and {row[1] for row in rows} == {"flash"}
