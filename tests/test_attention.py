"""Attention under a Rule. Oracle: the formula in Edit's docstring and spelled-out loops, in float64 numpy."""

from __future__ import annotations

import math
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from seeded import fill, normal
from torch import Tensor

from minedit.attention import choose
from minedit.attention.choose import backend, resolve
from minedit.attention.eager import eager
from minedit.attention.rules import Attn, Edit, Gate, Mask, Rule, Seen, Site, Split
from minedit.attention.sdpa import _scaled, sdpa
from minedit.config import MineditError
from minedit.stack.unet import CrossAttention

B, H, N, T, D = 4, 2, 9, 7, 8
# pixels of row 3 by its tokens 2 and 4, keys of row 1 by its token 5: maps of 4 x 6 for a layer of 2 x 12
SPLIT = Split(("one", "two", "late"), (3, 1), ((2, 4), (5,)), shape=(4, 6), to=(2, 12), threshold=0.3)


def qkv(seed: int = 0, dtype: torch.dtype = torch.float32, tokens: int = T) -> tuple[Tensor, Tensor, Tensor]:
    shapes = {"q": (B, H, N, D), "k": (B, H, tokens, D), "v": (B, H, tokens, D)}
    return tuple(
        (normal(f"{name} {seed}", *shape) * (2 if name != "v" else 1)).to(dtype) for name, shape in shapes.items()
    )


def random_edit(rng: random.Random, row: int, source: int) -> Edit:
    """Hard or soft weights, sometimes reweighted; any mix; no gate, a soft one or a hard one."""
    shares = normal(f"shares {rng.random()}", 3, T).mul(2).softmax(0)
    if rng.random() < 0.5:
        shares = torch.eye(3)[:, [rng.randrange(3) for _ in range(T)]]
    if rng.random() < 0.3:
        shares = shares * torch.tensor([rng.uniform(0, 4) for _ in range(T)])
    mix = None if rng.random() < 0.3 else normal(f"mix {rng.random()}", T, T).softmax(0)
    if rng.random() < 0.3:
        mix = torch.eye(T)[:, rng.sample(range(T), T)]
    soft = normal(f"gate {rng.random()}", N).sigmoid()
    gate = rng.choice([None, soft, soft.round()])
    return Edit(row, source, mix, *shares, gate=gate)


def random_rule(seed: int) -> Rule:
    rng = random.Random(seed)
    rows = [tuple(rng.randrange(B) for _ in range(B)) if rng.random() < 0.3 else None for _ in range(3)]
    edited = rng.sample(range(B), rng.choice([0, 1, 1, 1, 2]))
    edits = tuple(random_edit(rng, row, rng.randrange(B)) for row in edited)
    hidden = rng.sample(range(B), rng.choice([0, 0, 1, 2, B]))
    return Rule(*rows, edits=edits, masks=tuple(Mask(row, random_keys(rng)) for row in hidden))


def random_keys(rng: random.Random) -> Tensor:
    """[N,T] bool with a key for each pixel."""
    keys = normal(f"keys {rng.random()}", N, T) > 0
    keys[range(N), [rng.randrange(T) for _ in range(N)]] = True
    return keys


def literal(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """(out [B,H,N,D], unedited probabilities, mean over heads [B,N,T]), one number at a time, float64."""
    q, k, v = (x.double().numpy() for x in (q, k, v))
    q = np.stack([q[row] for row in rule.q_rows or range(B)])
    k = np.stack([k[row] for row in rule.k_rows or range(B)])
    v = np.stack([v[row] for row in rule.v_rows or range(B)])
    tokens = k.shape[2]
    p = np.zeros((B, H, N, tokens))
    seen = {mask.row: mask.keys.tolist() for mask in rule.masks}
    for b, h, n in np.ndindex(B, H, N):
        e = [math.exp(sum(q[b, h, n, d] * k[b, h, j, d] for d in range(D)) / math.sqrt(D)) for j in range(tokens)]
        e = [x * seen[b][n][j] for j, x in enumerate(e)] if b in seen else e
        p[b, h, n] = np.array(e) / sum(e)
    m = p.copy()
    for edit in rule.edits:
        pin, blend, own = (x.double().numpy() for x in (edit.pin, edit.blend, edit.own))
        r = np.eye(tokens) if edit.columns is None else edit.columns.double().numpy()
        gate = np.ones(N) if edit.gate is None else edit.gate.double().numpy()
        for h, n, j in np.ndindex(H, N, tokens):
            source = sum(p[edit.source, h, n, i] * r[i, j] for i in range(tokens))
            target = p[edit.row, h, n, j]
            w = gate[n]
            m[edit.row, h, n, j] = pin[j] * source + blend[j] * ((1 - w) * source + w * target) + own[j] * target
    return np.einsum("bhnj,bhjd->bhnd", m, v), p.mean(1)


def error(ours: Tensor, oracle: np.ndarray) -> float:
    assert tuple(ours.shape) == oracle.shape
    return float(np.abs(ours.double().numpy() - oracle).max() / np.abs(oracle).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_backends_follow_the_formula(dtype: torch.dtype):
    """The error of sdpa is at most twice that of eager computing in the same dtype, over many rules."""
    worst = {eager: 0.0, sdpa: 0.0}
    for seed in range(60):
        rule, inputs = random_rule(seed), qkv(seed, dtype)
        out, probabilities = literal(*inputs, rule)
        for attend in worst:
            got, columns = attend(*inputs, rule, columns=True)
            assert got.dtype == dtype and columns.dtype == torch.float32
            assert torch.equal(attend(*inputs, rule), got)
            assert error(columns, probabilities) < 1e-6
            worst[attend] = max(worst[attend], error(got, out))
    assert worst[eager] < 8 * torch.finfo(dtype).eps
    assert worst[sdpa] < 2 * max(worst[eager], torch.finfo(dtype).eps), worst


@pytest.mark.parametrize("attend", [eager, sdpa])
class TestIdentities:
    def test_an_empty_rule_changes_nothing(self, attend):
        plain = attend(*qkv())
        assert torch.equal(attend(*qkv(), Rule()), plain)
        own_rows = tuple(range(B))
        assert torch.equal(attend(*qkv(), Rule(own_rows, own_rows, own_rows)), plain)

    def test_all_own_changes_nothing(self, attend):
        one, zero = torch.ones(T), torch.zeros(T)
        edit = Edit(3, 2, torch.eye(T), pin=zero, blend=zero, own=one)
        torch.testing.assert_close(attend(*qkv(), Rule(edits=(edit,))), attend(*qkv()))

    @pytest.mark.parametrize("gate", [None, torch.ones(N), torch.arange(N) / N], ids=["none", "one", "soft"])
    def test_an_identity_mix_of_equal_rows_changes_nothing(self, attend, gate):
        q, k, v = (torch.cat([x[:3], x[2:3]]) for x in qkv())
        shares = normal("shares", 3, T).softmax(0)
        for mix in (None, torch.eye(T)):
            edit = Edit(3, 2, mix, *shares, gate=gate)
            torch.testing.assert_close(attend(q, k, v, Rule(edits=(edit,))), attend(q, k, v))

    def test_only_the_edited_row_changes(self, attend):
        plain = attend(*qkv())
        for seed in range(20):
            rule = Rule(edits=random_rule(seed).edits)
            out = attend(*qkv(), rule)
            others = [b for b in range(B) if b not in [edit.row for edit in rule.edits]]
            assert torch.equal(out[others], plain[others])

    def test_a_mask_of_all_keys_changes_nothing_and_of_one_gives_its_value(self, attend):
        q, k, v = qkv()
        all_keys = tuple(Mask(row, torch.ones(N, T, dtype=torch.bool)) for row in (1, 3))
        torch.testing.assert_close(attend(q, k, v, Rule(masks=all_keys)), attend(q, k, v))
        fifth = torch.arange(T).expand(N, T) == 4
        out = attend(q, k, v, Rule(masks=(Mask(3, fifth),)))
        torch.testing.assert_close(out[3], v[3, :, 4:5].expand(H, N, D))
        torch.testing.assert_close(out[:3], attend(q, k, v)[:3])

    def test_a_full_pin_reads_the_source_with_the_targets_values(self, attend):
        one, zero = torch.ones(T), torch.zeros(T)
        pinned = attend(*qkv(), Rule(edits=(Edit(3, 2, None, one, zero, zero),)))
        routed = attend(*qkv(), Rule(q_rows=(0, 1, 2, 2), k_rows=(0, 1, 2, 2)))
        torch.testing.assert_close(pinned, routed)

    def test_a_closed_gate_pins_and_an_open_one_lets_go(self, attend):
        one, zero = torch.ones(T), torch.zeros(T)
        mix = normal("mix", T, T).softmax(0)

        def run(pin: Tensor, blend: Tensor, gate: Tensor | None) -> Tensor:
            return attend(*qkv(), Rule(edits=(Edit(3, 2, mix, pin, blend, zero, gate),)))

        torch.testing.assert_close(run(zero, one, torch.zeros(N)), run(one, zero, None))
        torch.testing.assert_close(run(zero, one, torch.ones(N)), attend(*qkv()))
        torch.testing.assert_close(run(zero, one, None), attend(*qkv()))

    def test_inputs_are_left_alone(self, attend):
        inputs = qkv()
        attend(*inputs, random_rule(3), columns=True)
        assert all(torch.equal(a, b) for a, b in zip(inputs, qkv(), strict=True))

    def test_gradients_pass_through_an_edit(self, attend):
        inputs = [x.requires_grad_() for x in qkv()]
        attend(*inputs, Rule(edits=(random_edit(random.Random(1), 3, 2),))).square().sum().backward()
        assert all(torch.isfinite(x.grad).all() and x.grad.abs().max() > 0 for x in inputs)

    def test_float32_survives_a_callers_autocast(self, attend):
        """Under autocast `@` would be bfloat16: 1e-2 off, which the mix and the columns must not be."""
        rule, inputs = Rule(edits=(random_edit(random.Random(4), 3, 2),)), qkv()
        out, columns = attend(*inputs, rule, columns=True)
        with torch.autocast("cpu", torch.bfloat16):
            inside, seen = attend(*inputs, rule, columns=True)
        torch.testing.assert_close(seen, columns)
        if attend is eager:  # torch's own attention follows the caller
            torch.testing.assert_close(inside, out)


def test_the_mix_of_values_survives_a_callers_autocast():
    v, mix, pin = qkv()[2][0], torch.rand(T, T, generator=torch.Generator().manual_seed(0)), torch.ones(T)
    expected = _scaled(v, pin, columns=mix)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(_scaled(v, pin, columns=mix), expected)


def test_two_edits_of_one_row_are_refused():
    edit = random_edit(random.Random(0), 3, 2)
    with pytest.raises(ValueError, match="rows.*expected each row once"):
        Rule(edits=(edit, edit))


@pytest.mark.parametrize("centre", [False, True])
def test_gate_is_equation_9(centre: bool):
    hidden, key = normal("hidden", N, 6) + 1, normal("key", 6)
    key = key / key.norm()
    got = Gate(key, scale=0.9, slope=0.8, centre=centre).weights(hidden.bfloat16())
    e = hidden.bfloat16().double().numpy()
    e = e - e.mean(0) if centre else e
    cosine = np.array([np.dot(row, key.double().numpy()) / np.linalg.norm(row) for row in e])
    want = 0.9 * np.clip(0.8 * cosine, 0, 1)
    assert got.dtype == torch.float32
    assert 0 < (want > 0).sum() < N  # both sides of the clamp
    np.testing.assert_allclose(got.numpy(), want, atol=1e-6)


@torch.no_grad()
def test_the_layer_resolves_a_gate_from_the_edited_rows_input():
    site = Site("layer", "cross", "up", 1, channels=H * D, heads=H)
    layer = fill(CrossAttention(site, 12))
    x, context = normal("x", B, N, H * D), normal("context", B, T, 12)
    edit = random_edit(random.Random(5), 3, 2)
    gate = Gate(normal("key", H * D), 0.9, 1.0, False)

    def run(gate: Gate | Tensor) -> Tensor:
        rule = Rule(edits=(Edit(3, 2, edit.columns, edit.pin, edit.blend, edit.own, gate),))
        return layer(x, context, Attn(rules={"layer": rule}))

    assert torch.equal(run(gate), run(gate.weights(x[3])))
    assert not torch.allclose(run(gate), run(gate.weights(x[2])))


def test_backend_by_name():
    assert backend("eager") is eager and backend("sdpa") is sdpa and callable(backend("auto"))
    assert backend("minedit.attention.eager:eager") is eager
    own = "minedit.attention.eager:"
    for name in ("flash", "no.such.module:f", own + "no_such", own, "./own:f", ":f"):
        with pytest.raises(MineditError, match="attention '"):
            backend(name)


def test_auto_is_sdpa_without_a_gpu():
    assert resolve("auto") == resolve("auto", torch.device("cpu")) == "sdpa" and backend("auto") is sdpa
    assert resolve("eager", "cuda") == "eager"


def test_auto_is_triton_on_a_gpu_where_it_runs(monkeypatch):
    monkeypatch.setattr(choose, "_triton", lambda device: eager)
    assert resolve("auto", "cuda:1") == "triton" and backend("auto", "cuda:1") is eager

    def lacking(device):
        raise MineditError("no C compiler")

    monkeypatch.setattr(choose, "_triton", lacking)
    assert resolve("auto", "cuda:1") == "sdpa" and backend("auto", "cuda:1") is sdpa


def test_triton_says_what_it_lacks(monkeypatch):
    def broken(*_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setitem(sys.modules, "minedit.attention.triton", SimpleNamespace(INTERPRETED=False, attend=eager))
    with pytest.raises(MineditError, match="'triton' needs a CUDA GPU, the device is 'cpu'; use sdpa"):
        backend("triton")
    monkeypatch.setitem(sys.modules, "minedit.attention.triton", SimpleNamespace(INTERPRETED=True, attend=eager))
    assert backend("triton") is eager
    monkeypatch.setitem(sys.modules, "minedit.attention.triton", SimpleNamespace(INTERPRETED=True, attend=broken))
    with pytest.raises(MineditError, match="does not run here: Failed to find C compiler; use sdpa"):
        backend("triton")
    monkeypatch.setitem(sys.modules, "minedit.attention.triton", None)  # as where the package triton is not installed
    with pytest.raises(MineditError, match="install the package triton, or use sdpa"):
        backend("triton", "cuda")


@torch.no_grad()
def test_a_users_own_function_is_called_with_the_rule():
    site, calls = Site("layer", "cross", "up", 1, channels=H * D, heads=H), []

    def own(q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = False) -> Tensor:
        calls.append(rule)
        return eager(q, k, v, rule, columns)

    layer, rule = fill(CrossAttention(site, 12)), Rule(k_rows=(0, 0, 0, 0))
    inputs = normal("x", B, N, H * D), normal("context", B, T, 12)
    out = layer(*inputs, Attn(own, {"layer": rule}))
    assert calls[0].k_rows == rule.k_rows
    torch.testing.assert_close(out, layer(*inputs, Attn(sdpa, {"layer": rule})))


@pytest.mark.parametrize("attend", [eager, sdpa])
def test_rules_that_do_not_fit_are_refused_in_one_line(attend):
    one, q, k, v = torch.ones(T), *qkv()
    wrong = {
        "q_rows is \\(0, 4, 0, 0\\), expected 4 rows": Rule(q_rows=(0, 4, 0, 0)),
        "k_rows is \\(0,\\)": Rule(k_rows=(0,)),
        "row is 4": Rule(edits=(Edit(4, 0, None, one, one, one),)),
        "source is -1": Rule(edits=(Edit(3, -1, None, one, one, one),)),
        "pin is \\[8\\], expected a tensor \\[7\\]": Rule(edits=(Edit(3, 2, None, torch.ones(8), one, one),)),
        "columns is \\[7\\]": Rule(edits=(Edit(3, 2, one, one, one, one),)),
        "gate is \\[7\\], expected a tensor \\[9\\]": Rule(edits=(Edit(3, 2, None, one, one, one, gate=one),)),
        "mask of row 4: expected a row": Rule(masks=(Mask(4, torch.ones(N, T) > 0),)),
        "mask of row 1: keys is \\[9\\] torch.bool, expected a tensor \\[9, 7\\]": Rule(
            masks=(Mask(1, torch.ones(N) > 0),)
        ),
        "mask of row 1: keys is .* torch.float32": Rule(masks=(Mask(1, torch.ones(N, T)),)),
        "mask of row 1: keys is no tensor": Rule(masks=(Mask(1, SPLIT),)),
        "gate is a Gate": Rule(edits=(Edit(3, 2, None, one, one, one, gate=Gate(one, 1.0, 1.0, True)),)),
    }
    for message, rule in wrong.items():
        with pytest.raises(MineditError, match=message):
            attend(q, k, v, rule)
    for other in ((q, k[:1], v), (q, k, v[:, :1]), (q, k[..., :4], v)):
        with pytest.raises(MineditError, match=r"attention of q \[4, 2, 9, 8\]"):
            attend(*other)


def test_routed_rows_are_those_rows():
    q, k, v = qkv()
    for rows in ((0, 1, 2, 2), (0, 0, 2, 3), (3, 2, 1, 0), (1, 2, 3, 3)):
        for x, found in zip((q, k, v), Rule(rows, rows, rows).route(q, k, v), strict=True):
            assert torch.equal(found, x[list(rows)])
    assert Rule(q_rows=(0, 1, 2, 3)).route(q, k, v)[0] is q


@pytest.mark.parametrize("wrong", [lambda q: q.double(), lambda q: q[:, :, :1]], ids=["dtype", "shape"])
def test_a_layer_names_an_attention_function_that_returns_something_else(wrong):
    site = Site("layer", "cross", "down", 1, 16, 2)
    layer, x = fill(CrossAttention(site, 12)), normal("x", 2, 5, 16)
    with pytest.raises(MineditError, match="layer: the attention function returned .*minedit kernels check"):
        layer(x, normal("text", 2, 7, 12), Attn(lambda q, k, v, rule=None: wrong(q)))


def test_a_split_lets_each_kind_of_pixel_see_its_own():
    """Oracle: MasaCtrl's maps as the paper has them, summed, scaled, cut and compared one number at a time."""
    maps = {name: normal(name, B, 24, T).double().exp() for name in ("one", "two")}
    seen = {name: Seen(normal("hidden", B, 24, 4), x.float()) for name, x in maps.items()}
    kinds = []
    for row, tokens in ((3, (2, 4)), (1, (5,))):
        x = [sum(maps[name][row, n, t].item() for name in maps for t in tokens) for n in range(24)]
        scaled = [(value - min(x)) / (max(x) - min(x)) for value in x]
        nearest = [scaled[i * 4 // 2 * 6 + j * 6 // 12] for i in range(2) for j in range(12)]
        kinds.append([value >= 0.3 for value in nearest])
    assert all(0 < sum(kind) < 24 for kind in kinds)
    keys = SPLIT.keys(seen)
    assert keys.tolist() == [[a == b for b in kinds[1]] for a in kinds[0]]
    assert SPLIT.keys({}) is None and Rule(masks=(Mask(3, SPLIT),)).resolve(normal("x", B, 24, 4)).masks == ()
    (mask,) = Rule(masks=(Mask(2, SPLIT),)).resolve(normal("x", B, 24, 4), seen).masks
    assert mask.row == 2 and torch.equal(mask.keys, keys)
    flat = {name: Seen(at.hidden, torch.ones_like(at.columns)) for name, at in seen.items()}
    assert SPLIT.keys(flat).all()  # a map that says nothing divides nothing


def test_a_pixel_whose_kind_has_no_key_sees_all():
    columns = torch.zeros(B, 24, T)
    columns[3, :6, 2] = columns[1, 6, 5] = 1.0  # the keys' foreground is a pixel that the layer's map leaves out
    keys = SPLIT.keys({"one": Seen(columns, columns)})
    assert keys.all(1).tolist() == [True] * 24 and torch.equal(keys.any(1), keys.all(1))
    columns[1, 0, 5] = 1.0
    keys = SPLIT.keys({"one": Seen(columns, columns)})
    assert keys.sum(1).tolist() == [2] * 12 + [22] * 12


def test_masks_move_with_their_rows():
    keys = torch.ones(N, T) > 0
    rule = Rule((0, 0, 2, 2), masks=(Mask(0, keys), Mask(2, SPLIT)))
    assert rule.reads(2) == {1, 3} and rule.reads(0) == set() and rule.reads(1) == {0}
    moved = rule.moved({1: 0, 2: 1, 3: 2, 0: 3}, 4)
    assert [mask.row for mask in moved.masks] == [3, 1] and moved.masks[1].keys.rows == (2, 0)
    assert moved.masks[0].keys is keys
    assert rule.moved({0: 1}, 2).masks[0].row == 1 and len(rule.moved({0: 1}, 2).masks) == 1
    with pytest.raises(ValueError, match="masks are for rows \\[1, 1\\]"):
        Rule(masks=(Mask(1, keys), Mask(1, keys)))
