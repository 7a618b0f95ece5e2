"""The kernel lab. Oracles: numbers worked out by hand, spelled-out loops, and kernels whose mistakes are known."""

from __future__ import annotations

import csv
import itertools
import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_model import small_model
from test_adapedit import plan_of as adapedit_plan
from test_attention import literal, qkv, random_rule
from test_plan import plan_of as p2p_plan
from torch.utils._python_dispatch import TorchDispatchMode

from minedit import cli
from minedit.attention.eager import eager
from minedit.attention.rules import Attend, Edit, Rule
from minedit.attention.sdpa import sdpa
from minedit.config import SD14, MineditError
from minedit.lab import clock, flex
from minedit.lab.bench import Ceiling, timing, traffic
from minedit.lab.cases import RULES, Shape, cases, real_shapes, small_shapes
from minedit.lab.check import answers, judge
from minedit.lab.oracle import oracle
from minedit.lab.rows import FIELDS
from minedit.lab.table import named_functions
from minedit.methods.plan import SELF_RULE
from minedit.stack.unet import UNet

DOCS = Path(__file__).parent.parent / "docs"
BOY, SITTING, DOG = "a boy in the park", "a sitting boy in the park", "a dog in the park"


@pytest.fixture
def lab(tmp_path, monkeypatch, capsys):
    """Run `minedit kernels ...` in an empty folder; returns the exit status, what it printed and the rows it wrote."""
    monkeypatch.chdir(tmp_path)

    def command(*argv: str) -> tuple[int, str, list[dict[str, str]]]:
        status = cli.main(["kernels", *argv, *([] if "--device" in argv or not argv else ["--device", "cpu"])])
        said, table = capsys.readouterr(), tmp_path / "out" / "kernels.csv"
        rows = csv.DictReader(table.read_text().splitlines()) if table.exists() else ()
        return status, said.out + said.err, list(rows)

    return command


def count(rule: str) -> int:
    """The small shapes that are tried with it."""
    return sum(not shape.rules or rule in shape.rules for shape in small_shapes())


# --- the answer ------------------------------------------------------------------------------------------------------


def test_the_oracle_by_hand():
    """One pixel, two tokens, D = 1. Row 0 sees exp(0) : exp(ln 3), so P = 1/4, 3/4; row 1 has q = 0, so 1/2, 1/2."""
    q = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    k = torch.tensor([0.0, math.log(3)]).view(1, 1, 2, 1).expand(2, 1, 2, 1)
    v = torch.tensor([[2.0, 10.0], [4.0, 20.0]]).view(2, 1, 2, 1)
    out, columns = oracle(q, k, v)
    assert out.dtype == columns.dtype == torch.float64
    assert out.flatten().tolist() == pytest.approx([1 / 4 * 2 + 3 / 4 * 10, 1 / 2 * 4 + 1 / 2 * 20])
    assert columns.flatten().tolist() == pytest.approx([1 / 4, 3 / 4, 1 / 2, 1 / 2])
    # The columns of P_s change places: 3/4, 1/4. Token 0 is pinned and half its own: 3/4 + 1/2 * 1/2 = 1. Token 1 is
    # blended by w = 1/5: 4/5 * 1/4 + 1/5 * 1/2 = 3/10.
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    shares = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    edit = Edit(1, 0, swap, *shares, gate=torch.tensor([0.2]))
    out, columns = oracle(q, k, v, Rule(edits=(edit,)))
    assert out.flatten().tolist() == pytest.approx([8, 1 * 4 + 3 / 10 * 20])
    assert columns.flatten().tolist() == pytest.approx([1 / 4, 3 / 4, 1 / 2, 1 / 2])
    out, _ = oracle(q, k, v, Rule(q_rows=(1, 0), v_rows=(1, 1)))
    assert out.flatten().tolist() == pytest.approx([12, 1 / 4 * 4 + 3 / 4 * 20])


@pytest.mark.parametrize("seed", range(8))
def test_the_oracle_is_the_loops_of_the_specifications_test(seed, monkeypatch):
    monkeypatch.setattr("minedit.lab.oracle.ENTRIES", 4 * 2 * 7 * 2)  # two pixels at a time, of nine
    inputs, rule = qkv(seed), random_rule(seed)
    for ours, theirs in zip(oracle(*inputs, rule), literal(*inputs, rule), strict=True):
        assert abs(ours.numpy() - theirs).max() < 1e-12


# --- what is tried ---------------------------------------------------------------------------------------------------


def test_the_real_shapes_are_those_of_the_unet():
    with torch.device("meta"):
        sites = UNet(SD14.unet).sites
    for kind, tokens in (("cross", lambda n: 77), ("self", lambda n: n)):
        expected = {
            (4, site.heads, n, tokens(n), site.channels // site.heads)
            for site in sites
            for n in (64 * 64 // site.stride**2, 96 * 64 // site.stride**2)
        }
        assert {(s.B, s.H, s.N, s.T, s.D) for s in real_shapes() if s.kind == kind} == expected
    assert {s.N for s in real_shapes()} == {4096, 1024, 256, 64, 6144, 1536, 384, 96}
    assert [str(s) for s in real_shapes() if s.heavy] == ["self 4x8x4096x4096x40", "self 4x8x6144x6144x40"]


def test_the_small_shapes_hold_the_traps():
    shapes = small_shapes()
    assert any(s.N % 16 == 1 for s in shapes) and any(s.T < 8 for s in shapes) and any(s.D & (s.D - 1) for s in shapes)
    assert any(s.note == "contiguous" for s in shapes) and any(s.kind == "self" and s.T == s.N for s in shapes)
    (hot,) = [s for s in shapes if s.spread > 10]
    (case,) = cases(hot, ["plain"])
    scores = case.q @ case.k.transpose(-1, -2) / hot.D**0.5
    assert scores.max() > 89 and scores.exp().isinf().any()


def terms(rule: Rule) -> set[tuple]:
    """Which terms of Edit's formula are there, and whether they have a gate."""
    present = ((e.pin.any(), e.blend.any(), e.own.any(), e.gate is not None) for e in rule.edits)
    return {tuple(map(bool, found)) for found in present}


def mixes(rule: Rule) -> set[str]:
    """What the columns of R are, and whether the weights of some token do not sum to 1."""
    found = set()
    for e in rule.edits:
        for column in e.columns.T if e.columns is not None else ():
            found.add("nothing" if not column.any() else "one" if column.max() == 1 else "mean")
        if not torch.allclose(e.pin + e.blend + e.own, torch.ones(1)):
            found.add("scaled")
    return found


def test_the_rules_cover_what_the_methods_make():
    model, made = small_model(), []
    for source, target in ((BOY, DOG), (BOY, SITTING), (SITTING, BOY), ("a xylophonist in the park", BOY)):
        made += [p2p_plan(model, source, target)[0], p2p_plan(model, source, target, reweight={"park": -2.0})[0]]
        made += [adapedit_plan(model, source, target, **s)[0] for s in ({}, {"dps": False}, {"inserted": "gated"})]
    rules = [rule for plan in made for step in range(10) for rule in plan.rules(step).values()]
    (shape,) = [s for s in small_shapes() if s.N == 64 and not s.rules]
    ours = [case.rule for case in cases(shape, RULES) if case.rule]
    assert set().union(*map(terms, rules)) <= set().union(*map(terms, ours))
    assert set().union(*map(mixes, rules)) == {"nothing", "one", "mean", "scaled"} <= set().union(*map(mixes, ours))
    routed = {(r.q_rows, r.k_rows, r.v_rows) for r in rules if not r.edits}
    assert routed == {(SELF_RULE.q_rows, SELF_RULE.k_rows, None)}
    assert routed <= {(r.q_rows, r.k_rows, r.v_rows) for r in ours if not r.edits}


def test_a_rule_has_the_traps_it_is_named_for():
    for shape in (s for s in small_shapes() if not s.rules):
        made = {case.name: case for case in cases(shape, RULES)}
        for mask in (*made["masked"].rule.masks, *made["all"].rule.masks):
            assert mask.keys.any(1).all() and not mask.keys.all()
        assert list(made) == list(RULES) and made["plain"].rule is None
        gate = made["dps"].rule.edits[0].gate
        assert gate.shape == (shape.N,) and gate.min() == 0 and 0 < gate.max() <= 0.95
        chained = made["two-rows"].rule.edits
        assert chained[1].source == chained[0].row and chained[0].columns is None
        assert made["replace"].rule.edits[0].own.count_nonzero() == 0


def test_cases_are_the_same_every_time_and_laid_out_as_in_a_layer():
    shape = small_shapes()[0]
    (one,), (two,) = (list(cases(shape, ["general"], torch.float16)) for _ in range(2))
    assert torch.equal(one.q, two.q) and torch.equal(one.rule.edits[0].columns, two.rule.edits[0].columns)
    assert one.q.shape == (4, 2, 64, 40) and one.q.dtype == torch.float16
    assert one.q.transpose(1, 2).is_contiguous() and not one.q.is_contiguous()


# --- functions that are right ----------------------------------------------------------------------------------------


def test_the_example_of_the_docs_is_right(lab, monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    status, said, rows = lab("check", "--quick", "--attention", "my_attention:attend")
    assert status == 0 and f"my_attention:attend: {len(rows)} right" in said
    assert {row["rule"] for row in rows} == set(RULES)
    assert all(row["status"] == "right" and float(row["ratio"]) < 2 for row in rows)
    code = DOCS.joinpath("my_attention.py").read_text().split("import torch")[1].strip().splitlines()
    assert len(code) <= 30 and "minedit" not in "".join(code)
    monkeypatch.setattr(sys.modules["my_attention"], "PIXELS", 16)
    assert lab("check", "--quick", "--attention", "my_attention:attend", "--rules", "dps")[0] == 0


def test_our_own_are_right_in_half_precision(lab):
    options = "--dtype", "bfloat16,float16", "--rules", "reweight,dps,two-rows", "--attention", "eager", "--attention"
    status, said, rows = lab("check", "--quick", *options, "sdpa,auto")
    assert status == 0, said
    assert {row["attention"] for row in rows} == {"eager", "sdpa", "auto (sdpa)"}
    assert {row["dtype"] for row in rows} == {"bfloat16", "float16"}


@pytest.mark.parametrize("kind", ["cross", "self"])
def test_sdpa_holds_no_map_and_makes_three_calls_at_most_for_an_edited_row(kind, monkeypatch):
    calls, sizes = [], []
    fused = F.scaled_dot_product_attention

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            outs = found if isinstance(found, tuple | list) else (found,)
            sizes.extend(tuple(x.shape[-2:]) for x in outs if isinstance(x, torch.Tensor))
            return found

    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a: calls.append(1) or fused(*a))
    shape = Shape(kind, 4, 2, 65, 77 if kind == "cross" else 65, 40)
    for case in cases(shape, RULES):
        calls.clear(), sizes.clear()
        with torch.inference_mode(), Sizes():
            sdpa(case.q, case.k, case.v, case.rule)
        edits = case.rule.edits if case.rule else ()
        masks = case.rule.masks if case.rule else ()
        assert len(calls) <= 1 + len(masks) + 2 * len(edits)
        # a mask is [N,T]; R itself is [T,T], which in self-attention is the size of a map
        assert masks or (kind == "self" and edits) or (shape.N, shape.T) not in sizes, case.name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_by_linearity_is_right(monkeypatch):
    """Two calls for an edit, with wide values; not compiled here, which takes seconds a shape."""
    from torch.nn.attention.flex_attention import flex_attention

    calls = []
    monkeypatch.setattr(flex, "_compiled", lambda: lambda q, k, v: calls.append(v.shape) or flex_attention(q, k, v))
    shape = Shape("cross", 4, 2, 33, 21, 16)
    for case in cases(shape, [name for name in RULES if name not in ("masked", "all")]):
        calls.clear()
        flex.attend(case.q, case.k, case.v, case.rule)
        edits = len(case.rule.edits) if case.rule else 0
        assert calls == [(4, 2, 21, 16), *[(1, 2, 21, 32)] * 2 * edits]
        verdict = judge(flex.attend, case, answers(case))
        assert verdict.status == "right", verdict.report
    (case,) = cases(shape, ["masked"])
    assert judge(flex.attend, case, answers(case)).status == "refused"


# --- functions that are wrong ----------------------------------------------------------------------------------------


def scale(q, k, v, rule=None, columns=False):
    return eager(q * q.shape[-1] ** 0.5, k, v, rule, columns)


def padded_scale(q, k, v, rule=None, columns=False):
    width = q.shape[-1]
    return eager(q * (width / 2 ** math.ceil(math.log2(width))) ** 0.5, k, v, rule, columns)


def edited(rule, **change):
    return rule and replace(rule, edits=tuple(replace(edit, **change) for edit in rule.edits))


def no_gate(q, k, v, rule=None, columns=False):
    return eager(q, k, v, edited(rule, gate=None), columns)


def no_mix(q, k, v, rule=None, columns=False):
    return eager(q, k, v, edited(rule, columns=None), columns)


def no_masks(q, k, v, rule=None, columns=False):
    return eager(q, k, v, rule and replace(rule, masks=()), columns)


def no_rule(q, k, v, rule=None, columns=False):
    return eager(q, k, v, None, columns)


def source_values(q, k, v, rule=None, columns=False):
    return eager(q, k, torch.stack([v[0], v[1], v[2], v[2]]), rule, columns)


def swapped_rows(q, k, v, rule=None, columns=False):
    out, seen = eager(q, k, v, rule, columns=True)
    out = out[[0, 1, 3, 2]] if len(out) == 4 else out
    return (out, seen) if columns else out


def tail(q, k, v, rule=None, columns=False):
    out, seen = eager(q, k, v, rule, columns=True)
    out[:, :, out.shape[2] // 64 * 64 :] = 0
    return (out, seen) if columns else out


def unmasked(q, k, v, rule=None, columns=False):
    """Counts keys and values of zeros, up to a tile of 128."""
    out, seen = eager(q, k, v, rule, columns=True)
    if rule is None:
        out = eager(q, *(F.pad(x, (0, 0, 0, -x.shape[2] % 128)) for x in (k, v)))
    return (out, seen) if columns else out


def unsafe_softmax(q, k, v, rule=None, columns=False):
    powers = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).exp()
    p = powers / powers.sum(-1, keepdim=True)
    return (p @ v, p.mean(1)) if columns else p @ v


def no_columns(q, k, v, rule=None, columns=False):
    return eager(q, k, v, rule)


def summed_columns(q, k, v, rule=None, columns=False):
    out, seen = eager(q, k, v, rule, columns=True)
    return (out, seen * q.shape[1]) if columns else out


def zero_columns(q, k, v, rule=None, columns=False):
    out, seen = eager(q, k, v, rule, columns=True)
    return (out, torch.zeros_like(seen)) if columns else out


def edited_columns(q, k, v, rule=None, columns=False):
    if not columns:
        return eager(q, k, v, rule)
    eye = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
    return eager(q, k, v, rule), eager(q, k, eye, rule).mean(1)


def changed_by_columns(q, k, v, rule=None, columns=False):
    out, seen = eager(q, k, v, rule, columns=True)
    return (out + 1, seen) if columns else out


def nan(q, k, v, rule=None, columns=False):
    out, seen = eager(q, k, v, rule, columns=True)
    out[0, 0, 0, 0] = float("nan")
    return (out, seen) if columns else out


def wrong_shape(q, k, v, rule=None, columns=False):
    return eager(q, k, v, rule).transpose(1, 2)


def wrong_dtype(q, k, v, rule=None, columns=False):
    return eager(q, k, v, rule).half()


def half_columns(q, k, v, rule=None, columns=False):
    out, seen = eager(q, k, v, rule, columns=True)
    return (out, seen.half()) if columns else out


def no_tensor(q, k, v, rule=None, columns=False):
    return None


def raises(q, k, v, rule=None, columns=False):
    raise ValueError("no tile\nof 24")


def writes(q, k, v, rule=None, columns=False):
    found = eager(q, k, v, rule, columns)
    q.mul_(2)
    return found


def writes_the_rule(q, k, v, rule=None, columns=False):
    found = eager(q, k, v, rule, columns)
    for edit in rule.edits:
        edit.gate.clamp_(max=0.1)
    return found


def contiguous_only(q, k, v, rule=None, columns=False):
    """Reads memory as [B,H,N,D], whatever the strides say."""
    return eager(*(torch.as_strided(x, x.shape, torch.empty(x.shape).stride()) for x in (q, k, v)), rule, columns)


def low_precision(q, k, v, rule=None, columns=False):
    out, seen = eager(*(x.half() for x in (q, k, v)), rule, columns=True)
    return (out.float(), seen) if columns else out.float()


def broken_device(q, k, v, rule=None, columns=False):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


WRONG = {  # function: the rule it is tried with, what the report must say
    scale: ("plain", "function that does not divide the scores by sqrt(D)"),
    padded_scale: ("plain", "divides the scores by sqrt(64), the padded width, not by sqrt(40)"),
    no_gate: ("dps", "function that ignores the gate|only rows [3] are wrong, which the rule edits"),
    no_mix: ("replace", "function that ignores the edit's columns R"),
    no_masks: ("masked", "function that ignores the masks"),
    no_rule: ("inject", "function that ignores the rule"),
    source_values: ("refine", "function that multiplies an edited row's probabilities with the source's v"),
    swapped_rows: (
        "plain",
        "row 2 holds what belongs into row 3|row 3 holds what belongs into row 2|only rows [2, 3] of 4",
    ),
    tail: (
        "plain",
        "out[0,0,64,0] found 0, expected|only pixels n >= 64 of 65 are wrong: the last, partial tile of 64?",
    ),
    unmasked: ("plain", "counts 51 tokens beyond the last, up to a tile of 128"),
    unsafe_softmax: ("plain", "large scores|NaN or infinite|subtract each pixel's largest before exp"),
    no_columns: ("plain", "with columns=True it returned a tensor, expected (out, columns)"),
    summed_columns: ("dps", "out is right, only the columns are wrong|these are the sum over heads, not their mean"),
    zero_columns: ("dps", "columns: error|columns[0,0,0] found 0, expected|out is right, only the columns are wrong"),
    edited_columns: ("dps", "these are the probabilities after the edit, not before"),
    changed_by_columns: ("plain", "out with columns=True: error 1, allowed|asking for them must not change it"),
    nan: ("plain", "out[0,0,0,0] found nan, expected|1 of 20480 numbers are off|1 numbers are NaN or infinite"),
    wrong_shape: ("plain", "out: found shape [4, 64, 2, 40], expected [4, 2, 64, 40]"),
    wrong_dtype: ("plain", "out: found float16, expected float32"),
    half_columns: ("plain", "columns: found float16, expected float32"),
    no_tensor: ("plain", "out: found NoneType, expected a tensor [4, 2, 64, 40]"),
    raises: ("plain", "it raised ValueError: no tile of 24 (at test_lab.py:"),
    writes: ("plain", "it writes into the q that it was given"),
    writes_the_rule: ("dps", "it writes into the rule that it was given"),
    contiguous_only: ("plain", "right once q, k and v are contiguous"),
    low_precision: ("plain", "the error is small: sums or probabilities in low precision"),
}


@pytest.mark.parametrize("kernel", WRONG, ids=lambda kernel: kernel.__name__)
def test_a_wrong_kernel_fails_and_is_told_why(kernel, lab):
    name, (rule, expected) = f"test_lab:{kernel.__name__}", WRONG[kernel]
    status, said, rows = lab("check", "--quick", "--rules", rule, "--attention", name)
    assert status == 1
    for part in expected.split("|"):
        assert part in said, said
    wrong = [row for row in rows if row["status"] == "wrong"]
    assert wrong and f"WRONG: {rule}" in said and f"{len(wrong)} wrong" in said
    assert said.count(f"\nwrong: {name}, float32, ") == min(3, len(wrong))
    assert said.count(" found ") <= 3 * 5


def test_a_wrong_kernel_does_not_hide_behind_a_right_one(lab):
    status, said, _ = lab(
        "bench", "--quick", "--rules", "dps", "--attention", "sdpa,test_lab:no_gate", "--repeats", "1"
    )
    assert status == 1 and "sdpa: 8 right" in said and "test_lab:no_gate: 8 wrong" in said


def test_nothing_is_tried_on_a_broken_device(lab):
    status, said, rows = lab("check", "--quick", "--attention", "test_lab:broken_device,sdpa")
    assert status == 1 and len(rows) == 1
    assert "CUDA error" in said and "the device cannot be used after this" in said and "sdpa: not tried" in said


def picky(q, k, v, rule=None, columns=False):
    if rule is not None:
        raise MineditError("picky serves plain attention only")
    return eager(q, k, v, rule, columns)


def hungry(q, k, v, rule=None, columns=False):
    raise torch.OutOfMemoryError("tried to allocate 9 GiB")


def test_refusing_is_not_wrong_but_serving_nothing_is(lab):
    status, said, _ = lab("check", "--quick", "--rules", "plain,dps", "--attention", "test_lab:picky")
    assert status == 0 and "picky serves plain attention only" in said
    assert f"test_lab:picky: {count('plain')} right, {count('dps')} refused" in said
    assert lab("check", "--quick", "--rules", "dps", "--attention", "test_lab:picky")[0] == 1
    status, said, _ = lab("check", "--quick", "--rules", "plain", "--attention", "test_lab:hungry")
    assert status == 1 and f"test_lab:hungry: {count('plain')} no memory" in said


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("share, status", [(0.5, "right"), (2.0, "wrong")])
def test_the_limit_is_twice_eagers_error_or_two_eps(dtype, share, status, monkeypatch):
    """The truth but for one number, which is off by half the limit or twice."""
    monkeypatch.setattr("minedit.lab.check.SECOND", 0)  # another call has other numbers
    (case,) = cases(small_shapes()[0], ["dps"], dtype)
    expected = answers(case)
    out, seen = (answer.values for answer in expected)
    by_eager = (eager(case.q, case.k, case.v, case.rule).double() - out).abs().max().item()
    limit = max(2 * by_eager, 2 * torch.finfo(dtype).eps * out.abs().max().item())
    off = out.clone()
    off[0, 0, 0, 0] += share * limit
    off, seen = off.to(dtype), seen.float()
    found = judge(lambda *inputs, columns=False: (off, seen) if columns else off, case, expected)
    assert found.status == status and found.error == pytest.approx(share * limit, rel=0.5)
    assert found.ratio == pytest.approx(found.error / by_eager, rel=0.5)


# --- time ------------------------------------------------------------------------------------------------------------


def test_bench_times_and_compares_with_the_ceiling(lab):
    status, said, rows = lab("bench", "--quick", "--rules", "plain,dps", "--repeats", "2", "--attention", "sdpa")
    assert status == 0 and "of ceiling = max(bytes / " in said
    assert len(rows) == 2 * count("plain") + count("dps")  # plain with columns too
    for row in rows:
        assert float(row["ms"]) > 0 and float(row["ceiling_gb_s"]) > 0
        B, H, N, T, D = (int(row[name]) for name in ("batch", "heads", "pixels", "tokens", "width"))
        flops, time = 4 * H * N * T * D * (B + (row["rule"] == "dps")), float(row["ms"]) / 1e3
        moved = float(row["gb_s"]) * 1e9 * time
        if row["rule"] == "plain":
            assert moved == pytest.approx(
                4 * (B * H * D * 2 * (N + T) + (row["columns"] == "True") * B * N * T), rel=1e-2
            )
        ceilings = moved / float(row["ceiling_gb_s"]) / 1e9, flops / float(row["ceiling_gflop_s"]) / 1e9
        assert float(row["of_ceiling"]) == pytest.approx(max(ceilings) / time, rel=1e-2)


def test_traffic_by_hand():
    """B 4, H 1, N 3, T 5, D 2 in float16: q and out have 48 bytes each, k and v 80; an edit adds 12 + 20, R, gate."""
    shape = Shape("cross", 4, 1, 3, 5, 2)
    plain, dps, soft = cases(shape, ["plain", "dps", "fwt"], torch.float16)
    assert traffic(plain, False) == (2 * 48 + 2 * 80, 4 * 4 * 3 * 5 * 2)
    assert traffic(plain, True) == (256 + 4 * 4 * 3 * 5, 480)
    assert traffic(dps, False) == (256 + 12 + 20 + 4 * 25 + 4 * 3, 480 + 120)
    assert traffic(soft, False) == (256 + 12 + 20 + 4 * 25, 600)


def test_the_fraction_is_the_roofline(monkeypatch):
    (case,) = cases(Shape("cross", 4, 1, 3, 5, 2), ["plain"], torch.float16)
    monkeypatch.setattr("minedit.lab.clock.elapsed", lambda work, calls, device: 2e-6 * calls)
    for top, part in ((Ceiling(256e6, 480e9), 0.5), (Ceiling(256e9, 480e6), 0.5), (Ceiling(256e6, 960e6), 0.5)):
        took = timing(sdpa, case, False, top, repeats=3, limit=1)
        assert took.ms == pytest.approx(2e-3) and took.gb_s == pytest.approx(0.128)
        assert took.of_ceiling == pytest.approx(part)


def test_measurements_by_hand():
    """1 ... 5: quartiles 2, 3, 4; the deviation is sqrt(2.5), of the mean sqrt(0.5)."""
    took = clock.Seconds.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (took.median, took.spread, took.runs, took.least) == (3, pytest.approx(2 / 3), 5, 1)
    assert took.error == pytest.approx(0.5**0.5 / 3)


def test_it_measures_until_the_error_is_small_or_time_is_over():
    steady, wild = iter([1.0, 1.2, *[1.0] * 500]), itertools.cycle([1.0, 3.0])
    took = clock.repeated(lambda: next(steady), None, 60)
    assert clock.FEWEST < took.runs < 500 and took.error < 0.01
    assert clock.repeated(lambda: next(steady), 3, 0).runs == 3
    assert clock.repeated(lambda: next(wild), None, 0.01).error > 0.01


def test_memory_by_hand():
    """64 KiB and 4 KiB live together, then 64 KiB and 32: the peak is 96."""
    words = 1024 // 4

    def work() -> torch.Tensor:
        large, small = torch.empty(64 * words), torch.empty(4 * words)
        del small
        return large[: 32 * words].clone()

    assert clock.peak(work, torch.device("cpu")) == pytest.approx(96 * 1024, abs=256)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_graph_is_timed_where_one_can_be_recorded():
    x, gpu = torch.ones(2**20, device="cuda"), torch.device("cuda")
    took = clock.graph(lambda: x * 2, gpu, 5, 1)
    assert took.runs == 5 and 0 < took.median < clock.warm(lambda: x * 2, gpu, 5, 1).median * 1.5
    assert clock.graph(lambda: x.sum().item(), gpu, 5, 1) is None and (x * 2).sum().item() == 2**21
    assert clock.peak(lambda: x * 2, gpu) == 2**22


def test_without_a_gpu_there_is_no_graph():
    assert clock.graph(lambda: 1, torch.device("cpu"), 1, 0) is None


def test_a_cold_cache_is_slower():
    """The sum of 8 MiB, which lie in the last-level cache until something larger is written."""
    x, cpu = torch.ones(2**21), torch.device("cpu")
    flushed = clock._dust(cpu)
    warm, cold = (kind(x.sum, cpu, 9, 1) for kind in (clock.warm, clock.cold))
    assert cold.least > 1.05 * warm.least and (flushed > 9).all()


# --- the command -----------------------------------------------------------------------------------------------------


def test_rows_are_appended_to_the_table(lab):
    (first,) = {len(lab("check", "--quick", "--rules", "inject")[2])}
    *_, rows = lab("check", "--quick", "--rules", "inject", "--attention", "sdpa", "--threads", "1")
    assert first == 2 * count("inject") and len(rows) == first + count("inject")
    assert rows[0]["attention"] == "eager" and rows[-1]["attention"] == "sdpa" and rows[-1]["threads"] == "1"
    told = {
        "dtype": "float32",
        "kind": "self",
        "batch": "4",
        "pixels": "130",
        "rule": "inject",
        "status": "right",
        "note": "misaligned",
    }
    assert told.items() <= rows[-1].items() and rows[-1]["torch"] == torch.__version__ and not rows[-1]["ms"]


def test_a_row_is_tried_again_by_the_line_below_the_table(lab):
    """As it is printed, by a shell's rules; a row with columns, too, and one that is wrong."""
    for first in (
        ("bench", "--quick", "--rules", "plain", "--attention", "sdpa", "--repeats", "1", "--threads", "1"),
        ("check", "--quick", "--rules", "dps", "--attention", "sdpa,test_lab:no_gate"),
    ):
        _, said, rows = lab(*first)
        (line,) = [line for line in said.splitlines() if line.startswith("minedit kernels ")]
        argv = shlex.split(line)[2:]
        _, said, more = lab(*argv)
        (row,) = more[len(rows) :]
        assert line in said  # that very row, again
        named = ("attention", "dtype", "kind", "pixels", "note", "rule", "columns", "status")
        before = [[r[name] for name in named] for r in rows]
        assert [row[name] for name in named] in before
        assert row["status"] == "wrong" if first[0] == "check" else float(row["cold_ms"]) > 0 and row["runs"] == "1"


def test_columns_that_came_later_stand_empty_in_old_rows(lab):
    table = Path("out/kernels.csv")
    table.parent.mkdir()
    old = (Path(__file__).parent.parent / "benchmarks" / "kernels.csv").read_text().splitlines()[:3]
    table.write_text("\n".join(line.rsplit(",", line.count(",") - 25)[0] for line in old))
    _, _, rows = lab("bench", "--quick", "--rules", "inject", "--attention", "sdpa", "--repeats", "2")
    assert len(rows) == 2 + count("inject") and list(rows[0]) == list(rows[-1]) == list(FIELDS)
    assert rows[1]["ms"] and not rows[1]["cold_ms"] and not rows[1]["peak_mb"]
    assert rows[-1]["cold_ms"] and rows[-1]["first_ms"] and rows[-1]["peak_mb"] and not rows[-1]["graph_ms"]


def test_a_file_that_is_not_the_labs_is_left_alone(lab):
    table = Path("out/kernels.csv")
    table.parent.mkdir()
    table.write_text("a,b\n1,2\n")
    status, said, _ = lab("check", "--quick", "--rules", "inject")
    assert status == 2 and "out/kernels.csv is not a table of the kernel lab's columns; choose another --csv" in said
    assert table.read_text() == "a,b\n1,2\n"


def test_names_of_rules_name_them():
    assert all(make.__name__ == f"_{name.replace('-', '_')}" for name, make in RULES.items())


@pytest.mark.parametrize(
    "argv, said",
    [
        ((), "arguments are required: what"),
        (("check", "--rules", "dsp"), "--rules has 'dsp'; expected some of plain, replace"),
        (("check", "--dtype", "float8"), "--dtype has 'float8'; expected some of float32"),
        (("check", "--attention", "flash"), "attention 'flash' is unknown"),
        (("check", "--attention", "broken_kernel:attend"), "cannot import 'broken_kernel' (SyntaxError"),
        (("bench", "--only", "sdpa"), "--only 'sdpa' names no row; expected attention, dtype, shape, rule"),
        (("bench", "--only", "sdpa, float32, cross 1x1, plain"), "the shape 'cross 1x1', which is none of the lab's"),
        (("bench", "--repeats", "0"), "found '0', expected a whole number"),
        (("check", "--device", "cuda:99"), "device 'cuda:99' cannot be used here"),
    ],
)
def test_a_mistake_in_an_argument_is_one_line(argv, said, lab, monkeypatch, tmp_path):
    tmp_path.joinpath("broken_kernel.py").write_text("def attend(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    status, text, rows = lab(*argv)
    assert status == 2 and said in text and len(text.strip().splitlines()) == 1 and not rows


def test_large_maps_are_tried_on_a_cpu_only_when_asked_for(monkeypatch, lab):
    monkeypatch.setattr(
        "minedit.lab.table.real_shapes", lambda: tuple(Shape("self", 4, 1, n, n, 8, columns=False) for n in (20, 40))
    )
    monkeypatch.setattr("minedit.lab.forms.HEAVY", 40 * 40)
    command = "check", "--shapes", "real", "--rules", "inject", "--attention", "sdpa", "--device", "cpu"
    assert [row["pixels"] for row in lab(*command)[2]] == ["20"]
    assert [row["pixels"] for row in lab(*command, "--full")[2]] == ["20", "20", "40"]


def test_functions_are_those_of_the_device(monkeypatch, capsys):
    """Triton is tried unasked on a GPU that has it, never on a CPU; auto is what it is there."""
    asked = []

    def backend(name: str, device: torch.device) -> Attend:
        asked.append((name, device.type))
        if name == "triton" and len(asked) == 1:
            raise MineditError("no compiler")
        return eager

    monkeypatch.setattr("minedit.lab.table.backend", backend)
    monkeypatch.setattr("minedit.lab.table.resolve", lambda name, device: f"{name} of {device}")
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert (
        list(named_functions(None, gpu)) == ["eager", "sdpa"]
        and "without triton: no compiler" in capsys.readouterr().out
    )
    assert list(named_functions(None, gpu)) == ["eager", "sdpa", "triton"]
    assert {device for _, device in asked} == {"cuda"}
    assert list(named_functions(None, cpu)) == ["eager", "sdpa"]
    assert list(named_functions(["auto,eager"], gpu)) == ["auto (auto of cuda)", "eager"]
