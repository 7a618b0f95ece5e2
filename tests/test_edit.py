"""The verbs on a random model. Oracles: identities between runs, and the sampling loop written out by hand."""

import json
import sys
from dataclasses import replace
from inspect import signature

import numpy as np
import pytest
import torch
from PIL import Image
from seeded import normal
from small_model import TOKENS, small_model

import minedit
from minedit.attention.rules import Seen
from minedit.config import MineditError
from minedit.methods import wordmaps
from minedit.methods.adapedit import AdapEditConfig
from minedit.methods.p2p import P2PConfig
from minedit.methods.running import Running, plan
from minedit.sampling import ddim
from minedit.sampling.loop import context, sample, start

BOY, SITTING, DOG = "a boy in the park", "a sitting boy in the park", "a dog in the park"
SHORT = {"steps": 4, "guidance": 3.0}
METHODS = ["adapedit", "p2p", "fixed-seed"]


@pytest.fixture(scope="module")
def sd():
    return small_model()


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def pixels(image):
    return np.asarray(image)


@pytest.fixture(scope="module")
def edits(sd):
    return {method: minedit.edit(sd, BOY, SITTING, method, seed=1, **SHORT) for method in METHODS}


def test_sample_is_the_loop_of_the_papers(sd):
    """eps = uncond + w (cond - uncond), then DDIM, from Prompt-to-Prompt's noise: with the UNet as a black box."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(5))
    text, empty = (sd.text(torch.tensor([sd.tokenizer.encode(t).ids])) for t in (BOY, ""))
    a = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    for t, before in ((751, 501), (501, 251), (251, 1), (1, 0)):
        eps_u, eps_c = (sd.unet(x, torch.tensor([t]), rows) for rows in (empty, text))
        eps = eps_u + 3.0 * (eps_c - eps_u)
        x0 = (x - (1 - a[t]) ** 0.5 * eps) / a[t] ** 0.5
        x = a[before] ** 0.5 * x0 + (1 - a[before]) ** 0.5 * eps
    out = minedit.generate(sd, BOY, seed=5, **SHORT)
    assert relative(out.latents * sd.config.latent_scale, x.float()) < 1e-4
    assert out.latents.shape == (1, 4, 8, 8) and out.latents.dtype == torch.float32
    assert out.images[0].size == (64, 64)


def test_steps_are_yielded_in_order_and_watching_changes_nothing(sd):
    rows, noise = context(sd, [BOY]), start(sd, [0])
    names = {s.name: s.stride == 1 for s in sd.unet.sites if s.kind == "cross"}
    plain = list(sample(sd, noise, rows, 4))
    seen = list(sample(sd, noise, rows, 4, observe=lambda step: names if step == 2 else {}))
    assert [(s.index, s.timestep) for s in plain] == [(0, 751), (1, 501), (2, 251), (3, 1)]
    assert torch.equal(plain[-1].latents, seen[-1].latents)
    assert [set(s.seen) for s in seen] == [set(), set(), set(names), set()]
    assert all((at.columns is not None) == names[name] for name, at in seen[2].seen.items())
    assert torch.equal(noise, ddim.noise(0, 8, 8))


def test_rows_of_a_batch_are_the_single_pictures(sd):
    both = minedit.generate(sd, [BOY, DOG], seed=[3, 4], **SHORT)
    for row, (prompt, seed) in enumerate([(BOY, 3), (DOG, 4)]):
        assert relative(both.latents[row : row + 1], minedit.generate(sd, prompt, seed=seed, **SHORT).latents) < 1e-4
    assert len(minedit.generate(sd, [BOY], seed=[0, 1, 2], **SHORT).images) == 3


def test_the_source_is_untouched_by_every_method(sd, edits):
    """Bit for bit between methods; to 1e-4 against `generate`, for whose batch size kernels round otherwise."""
    first = edits["fixed-seed"]
    for method in METHODS:
        assert torch.equal(edits[method].source_latent, first.source_latent)
        assert np.array_equal(pixels(edits[method].source), pixels(first.source))
    assert relative(first.source_latent, minedit.generate(sd, BOY, seed=1, **SHORT).latents) < 1e-4


def test_fixed_seed_is_the_target_from_the_same_noise(sd, edits):
    alone = minedit.generate(sd, SITTING, seed=1, **SHORT)
    assert relative(edits["fixed-seed"].edited_latent, alone.latents) < 1e-4


def test_the_methods_edit(edits):
    latents = [edits[method].edited_latent for method in METHODS]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert relative(latents[a], latents[b]) > 1e-3
    for method in METHODS:
        assert relative(edits[method].edited_latent, edits[method].source_latent) > 1e-3


@pytest.mark.parametrize(
    "method, settings",
    [("p2p", {"cross_steps": 0, "self_steps": 0}), ("adapedit", {"tau": 0, "dps": False}), ("p2p", {"reweight": {}})],
)
def test_an_empty_rule_changes_nothing(sd, edits, method, settings):
    settings = settings | ({"cross_steps": 0, "self_steps": 0} if method == "p2p" else {})
    res = minedit.edit(sd, BOY, SITTING, method, seed=1, **SHORT, **settings)
    assert torch.equal(res.edited_latent, edits["fixed-seed"].edited_latent)
    assert torch.equal(res.source_latent, edits["fixed-seed"].source_latent)


def test_an_open_gate_is_no_gate_and_a_shut_one_pins_for_ever(sd):
    common = dict(seed=2, sigma=0.5, **SHORT)
    shut = minedit.edit(sd, BOY, DOG, tau=0, lambda_s=0, **common)
    pinned = minedit.edit(sd, BOY, DOG, tau=1, dps=False, **common)
    assert relative(shut.edited_latent, pinned.edited_latent) < 1e-4
    flat = minedit.edit(sd, BOY, DOG, tau=0, lambda_sv=0, **common)  # S = 0 likewise
    assert relative(flat.edited_latent, pinned.edited_latent) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_the_same_prompt_twice_is_the_same_picture_bit_for_bit(sd, method):
    done = []
    res = minedit.edit(sd, BOY, "A  boy in the PARK", method, seed=1, progress=lambda *at: done.append(at), **SHORT)
    alone = minedit.generate(sd, BOY, seed=1, **SHORT)
    assert torch.equal(res.edited_latent, res.source_latent) and torch.equal(res.source_latent, alone.latents)
    assert np.array_equal(pixels(res.edited), pixels(res.source))
    assert np.array_equal(pixels(res.edited), pixels(alone.images[0]))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]  # no statistics pass
    assert {word.kind for word in res.words} == {"kept"} and "same words" in res.notes[0]


def test_one_prompt_can_be_reweighted(sd):
    res = minedit.edit(sd, BOY, BOY, "p2p", reweight={"park": 5}, **SHORT)
    assert relative(res.edited_latent, res.source_latent) > 1e-3
    res = minedit.edit(sd, BOY, BOY, "p2p", reweight={"park": 5}, cross_steps=1, self_steps=0, **SHORT)
    for fwt in (True, "one-pass"):
        ours = minedit.edit(sd, BOY, BOY, reweight={"park": 5}, fwt=fwt, **SHORT)
        assert torch.equal(ours.edited_latent, res.edited_latent)


@pytest.mark.parametrize(
    "method, settings", [("adapedit", {"lambda_s": 0.9}), ("p2p", {"reweight": {"boy": 2, 3: 0.5}})]
)
def test_the_settings_make_the_result_again(sd, method, settings):
    res = minedit.edit(sd, BOY, SITTING, method, seed=7, eta=0.5, **SHORT, **settings)
    stored = json.loads(json.dumps(res.settings))
    assert (stored.pop("model"), stored.pop("dtype"), stored.pop("attention")) == ("small", "float32", "sdpa")
    again = minedit.edit(sd, **stored)
    assert torch.equal(again.edited_latent, res.edited_latent)
    assert again.settings == res.settings


def test_settings_come_whole_or_by_name(sd, edits):
    whole = minedit.edit(sd, BOY, SITTING, settings=AdapEditConfig(lambda_s=0.5), seed=1, **SHORT)
    named = minedit.edit(sd, BOY, SITTING, lambda_s=0.5, seed=1, **SHORT)
    both = minedit.edit(sd, BOY, SITTING, settings=AdapEditConfig(lambda_s=0.1), lambda_s=0.5, seed=1, **SHORT)
    assert torch.equal(whole.edited_latent, named.edited_latent)
    assert torch.equal(both.edited_latent, named.edited_latent)
    assert not torch.equal(named.edited_latent, edits["adapedit"].edited_latent)


def test_ancestral_noise_is_shared_by_both_rows_and_by_every_batch(sd):
    one, same = (minedit.edit(sd, BOY, DOG, "fixed-seed", eta=1.0, seed=4, **SHORT) for _ in range(2))
    assert torch.equal(one.edited_latent, same.edited_latent)
    for prompt, latent in ((BOY, one.source_latent), (DOG, one.edited_latent)):
        assert relative(latent, minedit.generate(sd, prompt, seed=4, eta=1.0, **SHORT).latents) < 1e-4
    generator = torch.Generator("cpu").manual_seed(4)
    x, z = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))  # the starting noise, then the first step's
    first = next(sample(sd, x, context(sd, [BOY]), 4, eta=1.0, seeds=[4]))
    assert torch.equal(first.latents, ddim.step(x, first.eps, 751, 501, 1.0, z)[0])
    plain = minedit.generate(sd, BOY, seed=4, **SHORT)
    assert relative(one.source_latent, plain.latents) > 1e-3


@pytest.mark.parametrize(
    "method, settings",
    [
        ("adapedit", {"inserted": "gated"}),
        ("adapedit", {"inserted": "gated", "reweight": {"sitting": 2, "park": -1}}),
        ("p2p", {"reweight": {"boy": 2}}),
    ],
)
def test_backends_agree_on_a_whole_edit(sd, method, settings):
    literal = minedit.edit(small_model("eager"), BOY, SITTING, method, **SHORT, **settings)
    fast = minedit.edit(sd, BOY, SITTING, method, **SHORT, **settings)
    assert relative(fast.edited_latent, literal.edited_latent) < 1e-3


def test_half_precision_models_edit(sd):
    res = minedit.edit(small_model(dtype=torch.bfloat16), BOY, SITTING, **SHORT)
    assert res.edited_latent.dtype == torch.float32 and res.edited_latent.isfinite().all()
    assert res.settings["dtype"] == "bfloat16"


def test_the_result_tells_what_was_done(sd, edits):
    res = edits["adapedit"]
    assert [(w.text, w.kind) for w in res.words] == list(
        zip(SITTING.split(), ["kept", "inserted", *["kept"] * 4], strict=True)
    )
    assert res.words[1].tau == 0 and all(0 <= w.tau <= 1 for w in res.words)
    assert res.source.size == res.edited.size == (64, 64) and res.seconds > 0
    assert res.statistics.maps.shape == (6, 8, 8) and res.statistics.tau == tuple(w.tau for w in res.words)
    layers = {s.name for s in sd.unet.sites if s.kind == "cross"}
    assert {(s.site, s.step) for s in res.statistics.spatial} == {(name, step) for name in layers for step in (1, 2, 3)}
    assert all(0 <= s.map.min() and s.map.max() <= 1 and s.spread >= 0 for s in res.statistics.spatial)
    assert edits["p2p"].statistics is None and edits["p2p"].settings["cross_steps"] == 0.8
    for tensor in (res.edited_latent, res.statistics.maps, res.statistics.spatial[0].map):
        tensor.mul_(1)  # plain tensors, not of inference mode


def test_the_gates_shown_are_those_of_the_edited_row(sd):
    """Spatial against equation 9 on what a forward hook hears, at the last step."""
    layer = next(m for n, m in sd.unet.named_modules() if n.endswith("attn2"))
    heard = []
    hook = layer.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    res = minedit.edit(sd, BOY, SITTING, lambda_sv=0.7, lambda_s=0.5, **SHORT)
    hook.remove()
    hidden = heard[-1][3].double().numpy()  # rows: unconditional source, target; conditional source, target
    hidden = hidden - hidden.mean(0)
    key = res.statistics.keys[layer.site.name].double().numpy()
    expected = np.clip(0.7 * hidden @ key / np.linalg.norm(hidden, axis=1), 0, 1)
    (shown,) = (s for s in res.statistics.spatial if (s.site, s.step) == (layer.site.name, 3))
    assert np.allclose(shown.map.flatten().numpy(), expected, atol=1e-5) and expected.max() > 0


def test_progress_counts_both_passes(sd):
    done = []
    minedit.edit(sd, BOY, DOG, fwt_steps=2, progress=lambda *at: done.append(at), **SHORT)
    assert done == [(k, 6) for k in range(1, 7)]
    for fwt_steps, total in ((None, 22), (12, 24), (30, 42)):
        done.clear()
        minedit.edit(sd, BOY, DOG, steps=12, fwt_steps=fwt_steps, progress=lambda *at: done.append(at))
        assert done == [(k, total) for k in range(1, total + 1)]
    done.clear()
    minedit.edit(sd, BOY, DOG, tau=0.5, dps=False, progress=lambda *at: done.append(at), **SHORT)
    assert done == [(k, 4) for k in range(1, 5)]


def test_odd_pairs_are_edited_and_noted(sd):
    res = minedit.edit(sd, BOY, "two red cars", **SHORT)
    assert {w.kind for w in res.words} == {"replaced"} and any("share no word" in note for note in res.notes)
    res = minedit.edit(sd, SITTING, BOY, **SHORT)
    assert any("only removed" in note for note in res.notes) and res.statistics.prompt == SITTING
    for steps in (1, 2):
        assert minedit.edit(sd, BOY, DOG, steps=steps).edited_latent.isfinite().all()


BAD = [
    {"source": ""},
    {"target": "  "},
    {"source": None},
    {"target": "very " * 20 + "long"},
    {"method": "magic"},
    {"steps": 0},
    {"steps": 1001},
    {"steps": 2.5},
    {"guidance": float("nan")},
    {"guidance": -1},
    {"guidance": "7"},
    {"eta": 1.5},
    {"eta": float("nan")},
    {"seed": -1},
    {"seed": 1.0},
    {"tau": float("nan")},
    {"tau": 1.5},
    {"lambda_s": -0.1},
    {"reweight": {"cat": 2}},
    {"colour": "red"},
    {"method": "p2p", "tau": 0.5},
    {"method": "fixed-seed", "tau": 0.5},
    {"method": "p2p", "settings": AdapEditConfig()},
    {"method": "fixed-seed", "settings": P2PConfig()},
    {"method": "p2p", "reweight": {"cat": 2}},
]


@pytest.mark.parametrize("wrong", BAD, ids=str)
def test_mistakes_are_one_line_errors_before_any_step(sd, wrong):
    def step(*_):
        raise AssertionError("sampling began")

    with pytest.raises(MineditError) as error:
        minedit.edit(sd, **({"source": BOY, "target": DOG, "progress": step, **SHORT} | wrong))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong", [{"prompts": []}, {"prompts": ["", BOY]}, {"seed": [1, 2, 3]}, {"seed": "0"}, {"steps": 0}]
)
def test_generates_mistakes_likewise(sd, wrong):
    with pytest.raises(MineditError):
        minedit.generate(sd, **({"prompts": [BOY, DOG]} | wrong))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("h, w", [(10, 14), (9, 13), (1, 7)])
def test_pictures_of_other_shapes(sd, method, h, w):
    """The small model's latents are 1/8 of the picture, and its UNet halves them once, rounding up."""
    height, width = 8 * h, 8 * w
    res = minedit.edit(sd, BOY, SITTING, method, seed=1, height=height, width=width, **SHORT)
    assert res.source.size == res.edited.size == (width, height) and res.edited_latent.shape == (1, 4, h, w)
    assert (res.settings["height"], res.settings["width"]) == (height, width)
    alone = minedit.generate(sd, BOY, seed=1, height=height, width=width, **SHORT)
    assert relative(res.source_latent, alone.latents) < 1e-4
    if method == "adapedit":
        shapes = {(h, w), (-(-h // 2), -(-w // 2))}
        assert res.statistics.maps.shape == (6, h, w)
        assert {tuple(seen.map.shape) for seen in res.statistics.spatial} == shapes
        one = minedit.edit(sd, BOY, SITTING, seed=1, height=height, width=width, fwt="one-pass", **SHORT)
        assert one.statistics.maps.shape == (6, h, w)


def test_syntax_that_no_model_reads_is_noted(sd):
    """The bug: "(dog:1.3)" was drawn as brackets and digits, and nobody said so."""
    res = minedit.edit(sd, BOY, "(red:1.3) <lora:a>", "fixed-seed", **SHORT)
    said = "read as plain text, which means nothing to the model: "
    assert said + "'(red:1.3)'; weigh words with --reweight WORD=FACTOR" in res.notes
    assert said + "'<lora:a>'; merge a LoRA with --lora FILE" in res.notes
    assert not any(said in note for note in minedit.edit(sd, BOY, "a (red) boy", "fixed-seed", **SHORT).notes)
    assert any(said + "'[boy]'" in note for note in minedit.generate(sd, "a [boy]", **SHORT).notes)


def test_an_edit_that_changed_nothing_or_everything_is_noted(sd, monkeypatch):
    """The bug: neither was told from an edit. Oracle: pictures of one colour."""
    res = minedit.edit(sd, BOY, BOY, "p2p", reweight={"park": 1}, **SHORT)
    assert "the edit changed next to nothing: the two pictures differ by 0.0 of 255 on average" in res.notes
    assert not any("next to nothing" in note for note in minedit.edit(sd, BOY, BOY, **SHORT).notes)  # one picture
    grey = {level: Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 1, 45, 46)}
    for level, said in ((1, ""), (45, ""), (46, "nearly the whole picture: the two pictures differ by 46.0 of 255")):
        monkeypatch.setattr(
            sys.modules["minedit.verbs.edit"], "pictures", lambda *_, level=level: ([grey[0], grey[level]], ())
        )
        notes = [note for note in minedit.edit(sd, BOY, DOG, **SHORT).notes if "the edit changed" in note]
        assert len(notes) == bool(said) and all(said in note for note in notes)


def test_a_model_that_reads_a_photo_too_is_an_error(sd):
    photo = replace(sd, config=replace(sd.config, unet=replace(sd.config.unet, in_channels=8)))
    with pytest.raises(MineditError, match="reads 8 channels, a photo's among them; expected a model that reads 4"):
        minedit.generate(photo, BOY, **SHORT)


@pytest.mark.parametrize("side", [0, -16, 20, 64.0, True])
def test_a_side_of_no_whole_latents_is_an_error(sd, side):
    with pytest.raises(MineditError, match="height is .*, expected a multiple of 8 pixels for small"):
        minedit.generate(sd, BOY, height=side, **SHORT)


def test_one_pass_is_one_pass(sd):
    done = []
    one = minedit.edit(sd, BOY, SITTING, fwt="one-pass", progress=lambda *at: done.append(at), **SHORT)
    assert done == [(step, 4) for step in range(1, 5)]
    two = minedit.edit(sd, BOY, SITTING, **SHORT)
    assert one.statistics.words == two.statistics.words and one.statistics.prompt == SITTING
    assert len(one.statistics.spatial) == len(two.statistics.spatial)
    assert one.settings["fwt"] == "one-pass"
    assert minedit.edit(sd, BOY, SITTING, fwt="one-pass", tau=0.5, dps=False, **SHORT).statistics is None


def test_one_pass_learns_tau_along_the_way(sd):
    """Its last averages are those of "mean" statistics over an edited run: near the two-pass tau, and not equal."""
    one = minedit.edit(sd, BOY, SITTING, fwt="one-pass", steps=6, guidance=1.0)
    two = minedit.edit(sd, BOY, SITTING, statistics="mean", steps=6, guidance=1.0)
    assert [word.kind for word in one.words] == [word.kind for word in two.words]
    taus = [[word.tau for word in res.words] for res in (one, two)]
    assert taus[0] != taus[1] and max(abs(a - b) for a, b in zip(*taus, strict=True)) < 0.2
    assert torch.equal(one.source_latent, two.source_latent)


def test_one_pass_averages_are_means_of_what_was_seen(sd):
    source, target = (sd.tokenizer.encode(text) for text in (BOY, SITTING))
    settings = AdapEditConfig(fwt="one-pass", statistics="mean")
    found = Running(sd, source, target, 3, settings)
    ends = (2, 3, 0, 3, 3, 3, 3, *(2,) * 9)  # all with a source; begin and end by "sitting" alone
    assert found.plan.pinned == tuple((0, end) for end in ends)
    sites = [site for site in sd.unet.sites if site.kind == "cross"]
    seen = [{s.name: random_seen(s, step) for s in sites} for step in range(3)]
    for step in range(3):
        found.add(seen[step], (8, 8))
    means = {
        s.name: tuple(
            torch.stack([getattr(at[s.name], part)[3] for at in seen]).mean(0) for part in ("columns", "hidden")
        )
        for s in sites
    }
    expected = wordmaps.statistics(sd, target, (1,), means, settings, (8, 8))
    assert found.found.tau == pytest.approx(expected.tau, abs=1e-6)
    assert torch.allclose(found.found.maps, expected.maps)
    assert found.plan.pinned == plan(sd, source, target, 3, settings, expected).pinned


def random_seen(site, step):
    n, tokens = (8 // site.stride) ** 2, TOKENS
    columns = normal(f"{site.name} columns {step}", 4, n, tokens).softmax(-1)
    return Seen(normal(f"{site.name} hidden {step}", 4, n, site.channels), columns)


def test_results_are_a_line_to_read(sd):
    res = minedit.edit(sd, BOY, SITTING, seed=2, steps=2)
    assert repr(res) == f"<'{BOY}' -> '{SITTING}' by adapedit, seed 2, {res.edited.width} x {res.edited.height} pixels>"
    assert repr(minedit.generate(sd, [BOY, DOG], steps=2)).startswith("<2 pictures of ")


def test_signatures_name_every_keyword():
    """help() and Tab show what a verb takes, also where it hands it on."""
    keywords = {name for name, each in signature(minedit.edits).parameters.items() if each.kind is each.KEYWORD_ONLY}
    for verb in (minedit.edit, minedit.xray, minedit.sweep):
        found = signature(verb).parameters
        assert keywords <= set(found) and found["steps"].default == 50, verb
        assert [name for name, each in found.items() if each.kind is each.VAR_KEYWORD] == ["overrides"]
