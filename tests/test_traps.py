"""The lab's traps: each has a kernel that falls into it and nothing else, and the report must name the mistake."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minedit import cli
from minedit.attention.choose import _module, backend
from minedit.attention.eager import eager
from minedit.attention.sdpa import sdpa
from minedit.config import MineditError
from minedit.lab import bounds
from minedit.lab.cases import RULES, Shape, cases, small_shapes
from minedit.lab.check import Verdict, answers, judge
from minedit.lab.traps import LAYOUTS, VALUES, copied, tensors, turn

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
SHAPE = Shape("cross", 4, 2, 33, 21, 16)


def found(attend, note: str, rule: str, device: str = "cpu") -> Verdict:
    """The verdict where the lab has the trap, else on SHAPE."""
    shape = next((s for s in small_shapes() if s.note == note), SHAPE)
    (case,) = cases(shape, [rule], device=device)
    with torch.inference_mode():
        expected = answers(case)
        assert judge(sdpa, case, expected).status == "right"
        return judge(attend, case, expected)


# --- functions that fall into one trap -------------------------------------------------------------------------------


def by_tensor():
    """Results are kept by the tensors they are of."""
    kept = {}

    def attend(q, k, v, rule=None, columns=False):
        key = q.data_ptr(), id(rule), columns
        return kept.setdefault(key, eager(q, k, v, rule, columns))

    return attend


def by_rule():
    """The rule's tensors are copied once."""
    kept = {}

    def attend(q, k, v, rule=None, columns=False):
        edits = kept.setdefault(id(rule), [replace(e, gate=e.gate.clone()) for e in rule.edits])
        return eager(q, k, v, replace(rule, edits=tuple(edits)), columns)

    return attend


def one_buffer():
    kept = {}

    def attend(q, k, v, rule=None, columns=False):
        out, seen = eager(q, k, v, rule, columns=True)
        out = kept.setdefault(q.shape, torch.empty_like(out)).copy_(out)
        return (out, seen) if columns else out

    return attend


def twice():
    """Serves a call without columns and one with them."""
    calls = []

    def attend(q, k, v, rule=None, columns=False):
        calls.append(columns)
        if len(calls) > 2:
            raise RuntimeError("no buffer is left")
        return eager(q, k, v, rule, columns)

    return attend


def beside(q, k, v, rule=None, columns=False):
    """Clears the number behind q's last."""
    behind = q.storage_offset() + sum((n - 1) * s for n, s in zip(q.shape, q.stride(), strict=True)) + 1
    if behind < q.untyped_storage().nbytes() // q.element_size():
        q.as_strided((1,), (1,), behind).zero_()
    return eager(q, k, v, rule, columns)


def handed_back(q, k, v, rule=None, columns=False):
    out, seen = eager(q, k, v, rule, columns=True)
    out = v.expand(out.shape) if v.shape[2] == 1 and rule is None else out
    return (out, seen) if columns else out


def expanded(q, k, v, rule=None, columns=False):
    out, seen = eager(q, k, v, rule, columns=True)
    return (out, seen[:1].expand(seen.shape)) if columns else out


def unmasked(q, k, v, rule=None, columns=False):
    """Eight keys beyond T are read, and get probability 0."""
    k, v = (x.as_strided((*x.shape[:2], x.shape[2] + 8, x.shape[3]), x.stride(), x.storage_offset()) for x in (k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    scores[..., -8:] = -torch.inf
    p = scores.softmax(-1)
    return (p @ v, p[..., :-8].mean(1)) if columns else p @ v


def without(**wrong: bool):
    """Takes a view's memory by its strides, but for one thing."""

    def attend(q, k, v, rule=None, columns=False):
        def read(x: torch.Tensor) -> torch.Tensor:
            stride = list(x.stride())
            if "rows" in wrong:
                stride[0] = stride[0] or x.shape[1] * x.shape[2] * x.shape[3]
            if "last" in wrong:
                stride[3] = 1
            at = 0 if "offset" in wrong else x.storage_offset()
            room = x.untyped_storage().nbytes() // x.element_size()
            last = at + sum((n - 1) * s for n, s in zip(x.shape, stride, strict=True))
            memory = F.pad(x.as_strided((room,), (1,), 0), (0, max(0, last + 1 - room)))
            return memory.as_strided(x.shape, stride, at)

        return eager(read(q), read(k), read(v), rule, columns)

    return attend


def by_sign(q, k, v, rule=None, columns=False):
    """-0 stands for a pixel that is not there."""
    absent = (q == 0).logical_and(q.signbit()).all(-1)
    out, seen = eager(q, k, v, rule, columns=True)
    out[absent] = 0
    return (out, seen) if columns else out


def by_largest(q, k, v, rule=None, columns=False):
    """Weights are divided by their largest."""
    largest = [max(e.pin.abs().max(), e.blend.abs().max(), e.own.abs().max()) for e in rule.edits]
    edits = [
        replace(edit, **{name: getattr(edit, name) * (1 / x) for name in ("pin", "blend", "own")})
        for edit, x in zip(rule.edits, largest, strict=True)
    ]
    out, seen = eager(q, k, v, replace(rule, edits=tuple(edits)), columns=True)
    for e, x in zip(edits, largest, strict=True):
        out[e.row] *= x
    return (out, seen) if columns else out


def added(q, k, v, rule=None, columns=False):
    """Hidden keys get a large negative number added."""
    q, k, v = rule.route(q, k, v)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    for mask in rule.masks:
        scores[mask.row] += ~mask.keys * -1e4
    p = scores.softmax(-1)
    return (p @ v, p.mean(1)) if columns else p @ v


def squeezed(q, k, v, rule=None, columns=False):
    out, seen = eager(q, k, v, rule, columns=True)
    return (out.squeeze(), seen.squeeze()) if columns else out.squeeze()


def in_vectors(q, k, v, rule=None, columns=False):
    """Eight numbers at a time."""
    out, seen = eager(q, k, v, rule, columns=True)
    out[..., out.shape[-1] // 8 * 8 :] = 0
    return (out, seen) if columns else out


def centred(q, k, v, rule=None, columns=False):
    """Scores are divided by their deviation, and multiplied: of one token it is 0."""
    scores = (q @ k.mT / q.shape[-1] ** 0.5).double()
    deviation = scores.std(-1, keepdim=True, correction=0)
    p = (scores / deviation).mul(deviation).softmax(-1)
    out = (p @ v.double()).float()
    return (out, p.float().mean(1)) if columns else out


FALLEN = {  # what is tried: shape's note, rule, what the report must say
    "by_tensor": (by_tensor(), "", "dps", "answers as before .* it keeps results by tensor"),
    "by_rule": (
        by_rule(),
        "",
        "dps",
        "wrong once q, k, v and the rule are written anew: it keeps some of their numbers",
    ),
    "one_buffer": (one_buffer(), "", "dps", "its next call writes into the result of this one"),
    "twice": (twice(), "", "dps", "called again it raised RuntimeError: no buffer is left .at test_traps.py:"),
    "beside": (beside, "NaN around", "plain", "it writes into the memory around the q that it was given"),
    "handed_back": (handed_back, "one token", "plain", "out shares its memory with v"),
    "expanded": (expanded, "rows are one", "plain", "columns is expanded: several of its numbers are one place"),
    "unmasked": (unmasked, "NaN around", "plain", "NaN or infinite|mask loads beyond N, T and D"),
    "offset": (without(offset=True), "misaligned", "general", "begin at odd addresses here"),
    "last": (without(last=True), "numbers apart", "dps-mix", "the last stride is not 1"),
    "rows": (without(rows=True), "rows are one", "plain", "the first stride is 0"),
    "by_sign": (by_sign, "minus zeros", "plain", "the sign says nothing"),
    "by_largest": (by_largest, "denormals", "dps-mix", "1 / largest is infinite"),
    "added": (added, "hidden key", "masked", "put -inf in their place"),
    "squeezed, a pixel": (squeezed, "one pixel", "plain", "out: found shape .4, 8, 40., expected .4, 8, 1, 40."),
    "squeezed, a row": (squeezed, "one row", "plain", "out: found shape .2, 33, 40., expected .1, 2, 33, 40."),
    "in_vectors": (
        in_vectors,
        "odd width",
        "plain",
        "only d from 16 to 22 of 23 are wrong|neither a tile nor a vector",
    ),
    "centred": (centred, "one token", "plain", "there is one token here"),
}


@pytest.mark.parametrize("name", FALLEN)
def test_a_kernel_falls_into_its_trap(name):
    attend, note, rule, expected = FALLEN[name]
    verdict = found(attend, note, rule)
    assert verdict.status == "wrong"
    report = "\n".join(verdict.report)
    for part in expected.split("|"):
        assert re.search(part, report), report
    if note and name not in ("added", "unmasked", "expanded"):  # and into no other
        plain = replace(next(s for s in small_shapes() if s.note == note), note="", T=21, D=16, B=4, N=33, kind="cross")
        (case,) = cases(plain, [rule])
        with torch.inference_mode():
            verdict = judge(attend, case, answers(case))
        assert verdict.status == "right", verdict.report


def test_each_trap_is_among_the_shapes():
    notes = [shape.note for shape in small_shapes()]
    assert {*LAYOUTS, *VALUES, "one token", "one pixel", "one row", "odd width"} <= {*notes}


def test_the_traps_hold_what_they_are_named_for():
    made = {s.note: next(cases(s, ["masked" if s.note == "hidden key" else "plain"])) for s in small_shapes() if s.note}
    around = made["NaN around"].q
    assert around.isfinite().all() and around.as_strided((1,), (1,), around.storage_offset() + around.shape[3]).isnan()
    assert made["misaligned"].k.data_ptr() % 16 == 4 and made["numbers apart"].v.stride(3) == 2
    assert made["rows are one"].k.stride(0) == 0
    zeros = made["minus zeros"]
    assert zeros.q.signbit().all() and not zeros.q.any() and zeros.v[..., ::2].signbit().all()
    assert 0 < made["denormals"].v.abs().max() < torch.finfo(torch.float32).tiny
    hidden = made["hidden key"]
    seen = torch.stack([mask.keys for mask in hidden.rule.masks]).any(0).any(0)
    assert len(hidden.rule.masks) == 4 and (~seen).sum() == 1
    scores = (hidden.q @ hidden.k.mT).amax((0, 1, 2))
    assert scores[~seen] > 100 * scores[seen].max()


@pytest.mark.parametrize("name", RULES)
def test_turned_tensors_have_the_turned_answer(name):
    """Oracle: attention does not know the order of pixels and tokens. Every number of the rule changes its place."""
    (case,) = cases(Shape("cross", 4, 2, 9, 7, 8), [name])
    q, k, v, rule = *map(copied, (case.q, case.k, case.v)), copy.deepcopy(case.rule)
    assert turn(q, k, v, rule)
    for new, old in zip(tensors(rule), tensors(case.rule), strict=True):
        assert torch.equal(new, old.flip(tuple(range(old.ndim))))
    out, seen = eager(case.q.double(), case.k.double(), case.v.double(), case.rule, columns=True)
    again, anew = eager(q.double(), k.double(), v.double(), rule, columns=True)
    torch.testing.assert_close(again, out.flip(1, 2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(anew, seen.flip(1, 2), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(again, out, atol=1e-3)


@ON_GPU
def test_work_on_another_stream_is_found():
    other = torch.cuda.Stream()

    def elsewhere(q, k, v, rule=None, columns=False):
        with torch.cuda.stream(other):
            return eager(q, k, v, rule, columns)

    assert "works on another stream" in found(elsewhere, "", "plain", "cuda").report[0]


# --- bounds ----------------------------------------------------------------------------------------------------------

OVERRUN = """
import torch, triton, triton.language as tl
from minedit.attention.sdpa import sdpa

@triton.jit
def copy(x, out, n, LOADS: tl.constexpr, STORES: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(x + at) if LOADS else tl.load(x + at, mask=at < n)
    if STORES:
        tl.store(out + at - 1, y, mask=at < n)
    else:
        tl.store(out + at, y, mask=at < n)

def copied(x, loads, stores):
    x = x.contiguous()
    out = torch.empty_like(x)
    copy[(triton.cdiv(x.numel(), 512),)](x, out, x.numel(), loads, stores, 512)
    return out

def attend(loads, stores):
    def call(q, k, v, rule=None, columns=False):
        found = sdpa(q, k, v, rule, columns)
        return found if columns else copied(found, loads, stores)
    return call

right, reads, writes = attend(False, False), attend(True, False), attend(False, True)
"""


@pytest.fixture
def overrun(tmp_path, monkeypatch) -> str:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("kernels are interpreted where there is no GPU")
    monkeypatch.chdir(tmp_path)
    Path("overrun.py").write_text(OVERRUN)
    return "./overrun.py"


def test_an_access_beyond_the_tensors_is_found(overrun, capsys):
    command = ["kernels", "check", "--quick", "--bounds", "--rules", "plain", "--dtype", "float32", "--attention"]
    assert cli.main([*command, f"{overrun}:reads"]) == 1
    beyond = "loads 192 of 512 numbers beyond the launch's tensors, one of them 4 bytes behind x"
    said = capsys.readouterr().out
    assert f"it raised OutOfBounds: overrun.py:8 {beyond}" in said
    (case,) = cases(SHAPE, ["plain"])
    for name, report in (
        ("right", ()),
        (
            "writes",
            (
                "it raised OutOfBounds: overrun.py:10 stores 1 of 512 numbers beyond the launch's tensors, "
                "one of them 4 bytes before out",
            ),
        ),
    ):
        attend = bounds.watched(backend(f"{overrun}:{name}"))
        assert judge(attend, case, answers(case)).report == report


def test_the_end_of_one_tensor_is_not_the_beginning_of_the_next(overrun):
    """Input and result are neighbours in memory: what runs over the one would be read from the other."""
    module, both = _module(overrun), bytearray(4096)
    x, out = (torch.frombuffer(both, dtype=torch.float32, count=512, offset=offset)[:500] for offset in (0, 2000))

    def attend(*_: object) -> torch.Tensor:
        module.copy[(1,)](x, out, 500, True, False, 512)
        return out

    with pytest.raises(bounds.OutOfBounds, match="loads 12 of 512 numbers .* 4 bytes behind x"):
        bounds.watched(attend)()


def test_the_kernels_stay_within_their_tensors(overrun):
    """Ours, where tiles are larger than what they hold: a view in NaN, and odd widths."""
    from minedit.attention import flash
    from minedit.attention import triton as kernels

    for attend, kinds in (
        (kernels.attend, (("NaN around", "general"), ("odd width", "dps-mix"))),
        (flash.attend, (("NaN around", "inject"),)),
    ):
        for note, rule in kinds:
            shape = [s for s in small_shapes() if s.note == note and rule in s.rules][-1]
            (case,) = cases(
                replace(shape, B=4, H=2, N=min(shape.N, 70), T=70 if shape.kind == "self" else shape.T),
                [rule],
                torch.float16,
            )
            with torch.inference_mode():
                assert judge(bounds.watched(attend), case, answers(case)).status == "right"


def test_bounds_need_the_interpreter(overrun, monkeypatch, capsys):
    assert cli.main(["kernels", "bench", "--bounds"]) == 2
    assert "--bounds watches kernels in Triton's interpreter: it goes with check" in capsys.readouterr().err
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(MineditError, match="set TRITON_INTERPRET=1 before"):
        bounds.watched(eager)
