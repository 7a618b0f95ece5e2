"""AdapEdit's statistics and plan. Oracle: the paper's equations 4-9 written out in numpy float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from seeded import normal
from small_model import TOKENS, small_model

from minedit.attention.eager import eager
from minedit.config import MineditError
from minedit.methods import adapedit, running, wordmaps
from minedit.methods.adapedit import AdapEditConfig
from minedit.methods.plan import SELF_RULE, TARGET
from minedit.methods.wordmaps import measure
from minedit.sampling.loop import Run

BOY, SITTING, DOG = "a boy in the park", "a sitting boy in the park", "a dog in the park"
RED = "a red car by a red house"  # repeated words
LONG = "a xylophonist in the park"  # a word of several tokens


@pytest.fixture(scope="module")
def model():
    return small_model()


def made_up(model, scale=2.0):
    """Statistics of random layers: (columns [N, T], hidden [N, C]) by site, columns a softmax over tokens."""
    seen = {}
    for site in model.unet.sites:
        if site.kind == "cross":
            n = (8 // site.stride) ** 2
            columns = (scale * normal(f"{site.name} columns", n, TOKENS)).softmax(1)
            seen[site.name] = columns, normal(f"{site.name} hidden", n, site.channels) + 3  # one large common direction
    return seen


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def literal(model, prompt, keys, seen, alpha_m=0.03, lambda_tau=1.0, centre=True, mask=True):
    """Equations 5-7 and the keys of 9, a word at a time: (A [W], tau [W], key by site)."""
    fine = [s.name for s in model.unet.sites if s.name in seen and s.stride == 1]
    average = np.mean([seen[name][0].double().numpy() for name in fine], axis=0)
    full, cut = [], []
    for word in prompt.words:
        column = np.mean([average[:, token] for token in word.tokens], axis=0)
        kept = np.where(column >= alpha_m * 77 / TOKENS, column, 0)
        full.append(column)
        cut.append(kept if kept.any() else column)

    def embed(column, hidden):
        hidden = hidden.double().numpy()
        hidden = hidden - hidden.mean(0) if centre else hidden
        return unit((column / column.sum()) @ hidden)

    up = [s.name for s in model.unet.sites if s.name in fine and s.place == "up"][-1]
    words = np.stack([embed(column, seen[up][1]) for column in cut])
    A = words @ unit(words[list(keys)].mean(0))
    tau = [0.0 if i in keys else min(max(lambda_tau * (1 - np.exp(a - 1)), 0), 1) for i, a in enumerate(A)]
    by_site = {}
    for site in model.unet.sites:
        if site.name in seen:
            maps = [(cut if mask else full)[i].reshape(8, 8) for i in keys]
            if site.stride == 2:
                maps = [m.reshape(4, 2, 4, 2).mean((1, 3)) for m in maps]
            by_site[site.name] = unit(np.mean([embed(m.reshape(-1), seen[site.name][1]) for m in maps], axis=0))
    return A, tau, by_site


@pytest.mark.parametrize("text, keys", [(SITTING, (1,)), (RED, (1, 5)), (LONG, (1,)), (DOG, (0, 1, 2, 3, 4))])
@pytest.mark.parametrize("settings", [{}, {"centre": False}, {"mask": False}, {"lambda_tau": 2.5, "alpha_m": 0.05}])
def test_statistics_are_equations_5_to_7(model, text, keys, settings):
    prompt, seen = model.tokenizer.encode(text), made_up(model)
    found = wordmaps.statistics(model, prompt, keys, seen, AdapEditConfig(**settings), (8, 8))
    A, tau, by_site = literal(model, prompt, keys, seen, **settings)
    assert np.allclose(found.similarity, A, atol=1e-6)
    assert np.allclose(found.tau, tau, atol=1e-6)
    assert found.keys.keys() == by_site.keys()
    for name, key in found.keys.items():
        assert np.allclose(key.numpy(), by_site[name], atol=1e-5)
    assert found.words == tuple(word.text for word in prompt.words) and found.key_words == keys


def test_tau_is_equation_7():
    A = [1.0, 0.0, -1.0, 0.5]
    assert wordmaps.taus(A, (3,), 1.0) == pytest.approx([0.0, 1 - np.exp(-1), 1 - np.exp(-2), 0.0], abs=1e-15)
    assert wordmaps.taus(A, (), 2.0) == pytest.approx([0.0, 1.0, 1.0, 2 * (1 - np.exp(-0.5))], abs=1e-15)
    assert wordmaps.taus([1 + 1e-12], (), 1.0) == (0.0,)


def test_centring_restores_the_contrast(model):
    """Hidden states that share one large direction are nearly parallel without it: every tau would be about 0."""
    prompt, seen = model.tokenizer.encode(SITTING), made_up(model)
    plain = wordmaps.statistics(model, prompt, (1,), seen, AdapEditConfig(centre=False), (8, 8))
    centred = wordmaps.statistics(model, prompt, (1,), seen, AdapEditConfig(), (8, 8))
    assert min(plain.similarity) > 0.9 > max(a for i, a in enumerate(centred.similarity) if i != 1)


def test_the_mask_keeps_what_reaches_alpha_and_all_of_a_word_that_never_does(model):
    assert wordmaps.threshold(0.03, 77) == pytest.approx(0.03)
    assert wordmaps.threshold(0.03, 32) == pytest.approx(0.0721875)
    masks, empty = wordmaps.masked(torch.tensor([[0.01, 0.03, 0.5], [0.0, 0.02, 0.01]]), 0.03)
    assert masks.tolist() == [[False, True, True], [True, True, True]]
    assert empty.tolist() == [False, True]
    prompt, level = model.tokenizer.encode(BOY), AdapEditConfig(alpha_m=0.19)
    found = wordmaps.statistics(model, prompt, (1,), made_up(model), level, (8, 8))
    assert found.empty == tuple(range(5)) and found.masks.all()
    plan = running.plan(model, model.tokenizer.encode(DOG), prompt, 10, level, found)
    assert "nothing above alpha_m, map unmasked: a, boy, in, the, park" in plan.notes


def test_the_statistics_pass_looks_at_the_conditional_row(model):
    """measure against forward hooks that compute the probabilities by themselves."""
    source, target = model.tokenizer.encode(BOY), model.tokenizer.encode(SITTING)
    heard = []  # (site name, columns [N, T], hidden [N, C]), layer by layer, step by step

    def hook(layer, args):
        x, context, _ = args
        q, k = (w(y)[1].unflatten(-1, (2, -1)).transpose(0, 1) for w, y in ((layer.to_q, x), (layer.to_k, context)))
        heard.append((layer.site.name, (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(0), x[1]))

    layers = [m for n, m in model.unet.named_modules() if n.endswith("attn2")]
    hooks = [layer.register_forward_pre_hook(hook) for layer in layers]
    last = measure(model, source, target, 3, Run(steps=4), AdapEditConfig())
    of_last, heard = heard, []
    mean = measure(model, source, target, 3, Run(steps=4), AdapEditConfig(statistics="mean", fwt_steps=2))
    of_mean = heard
    for h in hooks:
        h.remove()

    assert (len(of_last), len(of_mean)) == (4 * len(layers), 2 * len(layers))
    for found, steps in ((last, of_last[-len(layers) :]), (mean, of_mean)):
        averages = {
            name: tuple(torch.stack([s[i] for s in steps if s[0] == name]).mean(0) for i in (1, 2))
            for name, *_ in steps
        }
        A, tau, by_site = literal(model, target, (1,), averages)
        assert np.allclose(found.similarity, A, atol=1e-4) and np.allclose(found.tau, tau, atol=1e-4)
        assert all(np.allclose(found.keys[name].numpy(), key, atol=1e-4) for name, key in by_site.items())
    assert last.prompt == SITTING and last.key_words == (1,)


def plan_of(model, source, target, steps=10, **settings):
    source, target, chosen = model.tokenizer.encode(source), model.tokenizer.encode(target), AdapEditConfig(**settings)
    prompt, keys, _ = wordmaps.subject(source, target)
    found = wordmaps.statistics(model, prompt, keys, made_up(model), chosen, (8, 8)) if chosen.measures else None
    return running.plan(model, source, target, steps, chosen, found), found, target


@pytest.mark.parametrize("source, target", [(BOY, SITTING), (BOY, DOG), (SITTING, BOY), (BOY, "two red cars")])
@pytest.mark.parametrize("step", [0, 4, 9])
@pytest.mark.parametrize("inserted", ["own", "gated"])
@pytest.mark.parametrize("weights", [{}, {1: 3.0, 2: -0.5}])
def test_the_edited_row_is_equations_4_and_8(model, source, target, step, inserted, weights):
    """Every token on its own: pinned to the source's map, interpolated, or, where it has no source, the target's.

    Then, as AttentionReweight of google/prompt-to-prompt does: new * equalizer.
    """
    lambda_s, lambda_sv, steps = 0.9, 1.3, 10
    chosen = {"lambda_s": lambda_s, "lambda_sv": lambda_sv, "inserted": inserted, "lambda_tau": 0.8}
    plan, found, prompt = plan_of(model, source, target, reweight=weights, **chosen)
    site = next(s for s in model.unet.sites if s.kind == "cross")
    n, c = 64, site.channels
    q, k, v = normal("q", 4, 2, n, 8), normal("k", 4, 2, TOKENS, 8), normal("v", 4, 2, TOKENS, 8)
    hidden = normal("hidden", 4, n, c)
    out = eager(q, k, v, plan.rules(step)[site.name].resolve(hidden))[TARGET]

    P = (q.double() @ k.double().mT / 8**0.5).softmax(-1).numpy()  # [4, H, N, T]
    E = hidden[3].double().numpy()
    S = np.clip(lambda_sv * unit(E - E.mean(0)) @ found.keys[site.name].double().numpy(), 0, 1)[:, None]
    texts, old = [w.text for w in prompt.words], source.split()
    rest = max(0.0, 0.8 - np.mean([w.tau < 0.1 for w in plan.words]))
    new = np.zeros_like(P[3])
    for j in range(TOKENS):
        word = next((i for i, w in enumerate(prompt.words) if j in w.tokens), None)
        tau = rest if word is None else plan.words[word].tau
        if word is None:  # begin reads begin; end and padding are aligned at the end of the text
            own_end, old_end = prompt.length - 1, len(old) + 1
            M = P[2][..., 0 if j == 0 else min(j - own_end + old_end, TOKENS - 1)]
        elif plan.words[word].kind == "kept":
            M = P[2][..., 1 + old.index(texts[word])]
        elif plan.words[word].kind == "replaced":
            run = [1 + i for i, w in enumerate(old) if w not in texts]
            M = P[2][..., run].mean(-1)
        else:
            M = None
        M_own, s = P[3][..., j], S[:, 0][None]
        if M is None:
            new[..., j] = M_own if inserted == "own" else lambda_s * s * M_own
        elif step < tau * steps:
            new[..., j] = M
        else:
            new[..., j] = lambda_s * (s * M_own + (1 - s) * M) + (1 - lambda_s) * M  # eq. 8
        new[..., j] *= weights.get(word, 1.0)
    assert np.allclose(out.numpy(), new @ v[3].double().numpy(), atol=1e-5)


def test_key_words_are_released_from_the_start_and_the_others_by_their_tau(model):
    plan, found, _ = plan_of(model, BOY, DOG)
    assert [(w.kind, w.tau) for w in plan.words] == list(
        zip(["kept", "replaced", *["kept"] * 3], found.tau, strict=True)
    )
    assert plan.words[1].tau == 0 and plan.pinned[2] == (0, 0)
    assert [plan.pinned[j] for j in (1, 3, 4, 5)] == [(0, np.ceil(10 * t)) for i, t in enumerate(found.tau) if i != 1]


def test_begin_end_padding_and_self_attention_follow_the_scripts_rule(model):
    plan, found, target = plan_of(model, BOY, SITTING, sigma=None)
    share = np.mean(np.array(found.tau) < 0.1)
    steps = int(np.ceil(round((0.8 - share) * 10, 6)))
    outside = [0, *range(target.length - 1, TOKENS)]
    assert {plan.pinned[j] for j in outside} == {(0, steps)} == {plan.self_steps}
    assert any(rule is SELF_RULE for rule in plan.rules(steps - 1).values())
    assert not any(rule is SELF_RULE for rule in plan.rules(steps).values())
    other, *_ = plan_of(model, BOY, SITTING, sigma=0.3, rest=0.0)
    assert other.self_steps == (0, 3) and {other.pinned[j] for j in outside} == {(0, 0)}
    assert plan_of(model, BOY, SITTING)[0].self_steps == (0, 0)


def test_removed_words_are_measured_in_the_source(model):
    plan, found, _ = plan_of(model, SITTING, BOY)
    assert found.prompt == SITTING and found.key_words == (1,)
    assert [w.tau for w in plan.words] == [t for i, t in enumerate(found.tau) if i != 1]
    assert any("only removed" in note for note in plan.notes)


def test_nothing_in_common_is_a_note(model):
    plan, found, _ = plan_of(model, BOY, "two red cars")
    assert found.key_words == (0, 1, 2) and {w.tau for w in plan.words} == {0.0}
    assert any("share no word" in note for note in plan.notes)


def test_without_fwt_one_tau_holds_for_all(model):
    plan, *_ = plan_of(model, BOY, DOG, fwt=False, sigma=None)
    assert set(plan.pinned) == {(0, 8)} == {plan.self_steps} and {w.tau for w in plan.words} == {adapedit.COMMON_TAU}
    plan, *_ = plan_of(model, BOY, SITTING, tau=0.35)
    assert [w.tau for w in plan.words] == [0.35, 0.0, 0.35, 0.35, 0.35, 0.35]
    assert set(plan.pinned) == {(0, 0), (0, 4)}


def test_without_dps_released_words_are_the_targets(model):
    plan, found, _ = plan_of(model, BOY, DOG, dps=False)
    assert found.keys == {} and plan.gates == {}
    edit = plan.rules(0)[plan.cross_sites[0]].edits[0]
    assert edit.gate is None and not edit.blend.any() and edit.own[2] == 1
    _, last = max(*plan.pinned, plan.self_steps)
    assert plan.rules(last - 1) and not plan.rules(last)
    assert not AdapEditConfig(dps=False, tau=0.5).measures and AdapEditConfig(tau=0.5).measures


def test_the_gate_is_equation_9(model):
    plan, found, _ = plan_of(model, BOY, DOG, lambda_sv=0.8, lambda_s=0.5)
    name = plan.cross_sites[0]
    hidden = normal("hidden", 64, 16)
    (seen,) = wordmaps.spatial(model, plan.gates, 3, {name: hidden}, (8, 8))
    E = hidden.double().numpy()
    expected = np.clip(0.8 * unit(E - E.mean(0)) @ found.keys[name].double().numpy(), 0, 1)
    assert (seen.site, seen.step, seen.map.shape) == (name, 3, (8, 8))
    assert np.allclose(seen.map.flatten().numpy(), expected, atol=1e-5)
    assert seen.mean == pytest.approx(expected.mean(), abs=1e-6) and seen.spread == pytest.approx(
        expected.std(), abs=1e-6
    )


def test_maps_are_resized_by_box_and_bilinear():
    maps = normal("map", 2, 8, 8).abs()
    assert torch.allclose(
        wordmaps.resized(maps, (4, 4)), maps.unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4)).flatten(1)
    )
    assert torch.equal(wordmaps.resized(maps, (8, 8)), maps.flatten(1))
    odd = wordmaps.resized(maps[:, :5, :1], (3, 1))  # of one width
    assert torch.allclose(odd, torch.stack([maps[:, a:b, 0].mean(1) for a, b in ((0, 2), (1, 4), (3, 5))], 1))
    flat = wordmaps.resized(torch.full((1, 8, 8), 0.25), (16, 16))
    assert flat.shape == (1, 256) and torch.allclose(flat, torch.tensor(0.25))


@pytest.mark.parametrize(
    "settings",
    [
        {"lambda_tau": -1},
        {"lambda_tau": float("nan")},
        {"lambda_sv": float("inf")},
        {"lambda_s": 1.01},
        {"lambda_s": None},
        {"alpha_m": "0.03"},
        {"tau": -0.1},
        {"tau": 2},
        {"tau": True},
        {"sigma": 1.5},
        {"fwt": 1},
        {"statistics": "first"},
        {"inserted": "none"},
        {"fwt_steps": 0},
        {"fwt_steps": 4, "fwt": "one-pass"},
        {"fwt_steps": 1001},
    ],
)
def test_bad_settings_are_one_line_errors(settings):
    with pytest.raises(MineditError) as error:
        AdapEditConfig(**settings)
    assert "\n" not in str(error.value) and "expected" in str(error.value) and next(iter(settings)) in str(error.value)


def test_a_model_without_maps_of_that_side_is_an_error(model):
    other = replace(model, config=replace(model.config, map_size=32))
    with pytest.raises(MineditError, match=r"sides \[4, 8\], expected map_size 32"):
        wordmaps.watched(other, AdapEditConfig())
