"""Photographs in the edit verb: what it takes, and what every inversion gives every method."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from seeded import fill, normal, relative
from small_model import small_model
from tiny import TINY

import minedit
from minedit.attention.eager import eager
from minedit.attention.rules import Attn, Edit, Rule
from minedit.config import MineditError
from minedit.inversion import coupled, embedding, spared
from minedit.methods import Told, Way
from minedit.methods.fixedseed import FixedSeedConfig
from minedit.sampling import ddim, memory
from minedit.sampling.coded import encode
from minedit.sampling.loop import guided
from minedit.sampling.rows import needed
from minedit.stack.unet import UNet

BOY, SITTING = "a boy in the park", "a sitting boy in the park"
QUICK = {"null-text": {"inner_steps": 1}}
EXACT = {"direct", "edit-friendly", "edict"}  # the source is the photograph, whatever the model


@pytest.fixture(scope="module")
def sd():
    return small_model()


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray((normal("photo", 64, 64, 3).sigmoid() * 255).numpy().astype(np.uint8))


def edit(sd, photo, inversion, method="fixed-seed", target=SITTING, source=BOY, **more):
    run = {"steps": 2, **QUICK.get(inversion, {}), **more}
    return minedit.edit(sd, source, target, method, image=photo, inversion=inversion, **run)


class Counted:
    """Rows that a model's UNet computed, of each of its calls; what it says is 0 where that is enough."""

    def __init__(self, sd, monkeypatch, plain=lambda x, *_: torch.zeros_like(x)):
        self.rows = []
        monkeypatch.setattr(sd.unet, "forward", lambda x, *more: self.rows.append(len(x)) or plain(x, *more))


# --- what is edited --------------------------------------------------------------------------------------------------


def test_a_photograph_is_encoded_in_its_own_shape(sd):
    wide = Image.effect_noise((130, 65), 60)
    res = minedit.edit(sd, BOY, SITTING, image=wide, steps=2)
    assert res.source.size == res.edited.size == (96, 48)  # 64·sqrt(2) = 90.5 and 45.3, in multiples of 16
    assert (res.settings["height"], res.settings["width"]) == (48, 96) and res.settings["inversion"] == "direct"
    assert any("as it is drawn again: PSNR" in note for note in res.notes)
    sized = minedit.edit(sd, BOY, SITTING, image=wide, steps=2, height=64, width=40)
    assert sized.source.size == (40, 64)


def test_the_psnr_that_is_noted(sd, photo):
    res = edit(sd, photo, "direct")
    error = (np.asarray(photo, float) - np.asarray(res.source, float)) ** 2
    assert f"PSNR {10 * math.log10(255**2 / error.mean()):.1f} dB" in " ".join(res.notes)


def test_an_edit_of_an_edit(sd):
    first = minedit.edit(sd, BOY, SITTING, "fixed-seed", steps=3)
    second = minedit.edit(sd, SITTING, "a boy", "fixed-seed", image=first.edited_latent, steps=3)
    assert relative(second.source_latent, first.edited_latent) < 1e-6
    assert second.settings["photo"] and not any("PSNR" in note for note in second.notes)
    again = minedit.edit(sd, SITTING, "a boy", "fixed-seed", image=first.edited_latent, steps=3, height=64)
    assert torch.equal(again.edited_latent, second.edited_latent)
    with pytest.raises(MineditError, match="the latents are of 64x64 pixels"):
        minedit.edit(sd, SITTING, BOY, image=first.edited_latent, height=64, width=128)


@pytest.mark.parametrize(
    "image, said",
    [
        ("x.png", "expected a PIL picture, or latents"),
        (np.zeros((8, 8, 3), np.uint8), "expected a PIL picture, or latents"),
        (torch.zeros(4, 8, 8), r"a tensor \[4, 8, 8\] of torch.float32, expected latents \[1, 4, h, w\]"),
        (torch.zeros(2, 4, 8, 8), r"expected latents \[1, 4, h, w\]"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.int64), "of torch.int64, expected latents"),
        (torch.full((1, 4, 8, 8), math.inf), "latents with NaN or infinity"),
        (torch.zeros(1, 4, 0, 8), "no latents at all"),
        (Image.new("RGB", (0, 8)), "0 x 8 pixels"),
    ],
)
def test_what_is_no_photograph(sd, image, said):
    with pytest.raises(MineditError, match=said) as error:
        minedit.edit(sd, BOY, SITTING, image=image, steps=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "sides, said",
    [
        ({"height": 31, "width": 32}, "height is 31, expected a multiple of 8"),
        ({"width": 30}, "width is 30"),
        ({"height": "64"}, "height is '64'"),
        ({"height": 0}, "height is 0"),
        ({"width": True}, "width is True"),
        ({"height": 2**20, "width": 2**20}, "GB of memory"),
    ],
)
def test_sides_that_cannot_be(sd, photo, sides, said):
    with pytest.raises(MineditError, match=said):
        minedit.edit(sd, BOY, SITTING, image=photo, steps=1, **sides)
    if "memory" not in said:
        with pytest.raises(MineditError, match=said):
            minedit.edit(sd, BOY, SITTING, image=torch.zeros(1, 4, 8, 8), steps=1, **sides)


@pytest.mark.parametrize(
    "more, said",
    [
        ({"image": None, "inversion": "ddim"}, "inversion is 'ddim', and there is no image to invert"),
        ({"inversion": "x"}, "inversion is 'x', expected one of direct, ddim, null-text"),
        ({"inversion": 3}, "inversion is 3, expected one of"),
        ({"inner_steps": 2}, "fixed-seed has no setting inner_steps"),
        ({"inversion": "null-text", "inner_steps": 0}, "inner_steps is 0, expected a whole number"),
        ({"inversion": "edict", "eta": 0.5}, "eta is 0.5, expected 0: EDICT"),
        ({"inversion": "edit-friendly", "eta": 0.5}, "eta is 0.5, expected 0: edit-friendly"),
        ({"inversion": "edict", "strength": 0}, "nothing is left to draw"),
        ({"inversion": "edit-friendly", "skip": 1}, "nothing is left to draw"),
        ({"inversion": "negative-prompt", "negative_prompt": "a dog"}, "negative_prompt is 'a dog', in whose place"),
        ({"target": ""}, "prompt is ''"),
    ],
)
def test_inversions_that_cannot_be(sd, photo, more, said):
    with pytest.raises(MineditError, match=said):
        minedit.edit(sd, BOY, **{"target": SITTING, "method": "fixed-seed", "image": photo, "steps": 3, **more})


def test_an_empty_source_prompt_is_noted(sd, photo):
    said = "the source prompt is empty: the photograph is inverted by no text"
    for inversion in ("direct", "negative-prompt"):
        assert any(note.startswith(said) for note in edit(sd, photo, inversion, source="").notes)
    assert not any(note.startswith(said) for note in edit(sd, photo, "direct").notes)
    with pytest.raises(MineditError, match="prompt is ''"):
        minedit.edit(sd, "", SITTING)


def test_a_method_that_takes_the_photograph_itself(sd, photo, monkeypatch):
    class Own(FixedSeedConfig):
        inverts = False

        def prepare(self, job):
            assert job.found is None and job.photo.image == photo
            return Way(prompts=(job.target.text,), source=job.photo.latents, told=lambda: Told(()))

    monkeypatch.setitem(minedit.METHODS, "own", Own)
    res = minedit.edit(sd, "", SITTING, "own", image=photo, steps=2)
    assert relative(res.source_latent, encode(sd, photo) / sd.config.latent_scale) < 1e-6
    assert "inversion" not in res.settings and not any("empty" in note for note in res.notes)
    with pytest.raises(MineditError, match="takes a photograph as it is; omit it"):
        minedit.edit(sd, BOY, SITTING, "own", image=photo, inversion="direct")


# --- every inversion, with every method ------------------------------------------------------------------------------


@pytest.mark.parametrize("inversion", minedit.INVERSIONS)
@pytest.mark.parametrize("method", [name for name, kind in minedit.METHODS.items() if getattr(kind, "inverts", True)])
def test_every_method_edits_from_every_inversion(sd, photo, method, inversion):
    done, latents = [], encode(sd, photo) / sd.config.latent_scale
    try:
        res = edit(sd, photo, inversion, method, progress=lambda *at: done.append(at))
    except MineditError as error:
        if "channels" in str(error):
            pytest.skip(f"{method} is for other models")
        raise
    assert done[-1][0] == done[-1][1] == len(done)
    assert res.edited_latent.isfinite().all() and not torch.equal(res.edited_latent, res.source_latent)
    if inversion in EXACT:  # EDICT's to the rounding of its UNet, in float32
        assert relative(res.source_latent, latents) < 1e-3


@pytest.mark.parametrize("inversion", minedit.INVERSIONS)
def test_the_same_words_draw_the_source_alone(sd, photo, inversion):
    same = edit(sd, photo, inversion, target=BOY)
    assert torch.equal(same.edited_latent, same.source_latent)
    if inversion in EXACT:
        assert relative(same.source_latent, encode(sd, photo) / sd.config.latent_scale) < 1e-3


@pytest.mark.parametrize("inversion", minedit.INVERSIONS)
def test_several_targets_are_each_as_alone(sd, photo, inversion, monkeypatch):
    targets, run = [SITTING, "a girl in the park"], {"steps": 2, **QUICK.get(inversion, {})}
    counted, done = Counted(sd, monkeypatch, sd.unet.forward), []
    call = {"image": photo, "inversion": inversion, "progress": lambda *at: done.append(at), **run}
    found = minedit.edits(sd, BOY, targets, "p2p", **call)
    assert done[-1][0] == done[-1][1] == len(done)
    together, counted.rows[:] = len(counted.rows), []
    alone = [edit(sd, photo, inversion, "p2p", target=target) for target in targets]
    assert together < len(counted.rows)  # the photograph is inverted once
    for one, other in zip(found, alone, strict=True):
        assert relative(one.edited_latent, other.edited_latent) < 1e-3


# --- fewer rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, more, reading",
    [
        ("p2p", {"cross_steps": 1.0}, 50),
        ("p2p", {}, 40),
        ("adapedit", {"fwt": False, "dps": False, "tau": 1.0}, 50),
        ("fixed-seed", {}, 0),
    ],
)
def test_direct_inversion_draws_three_rows_at_most(sd, photo, method, more, reading, monkeypatch):
    counted = Counted(sd, monkeypatch)
    res = edit(sd, photo, "direct", method, steps=50, **more)
    assert counted.rows == [1] * 50 + [3] * reading + [2] * (50 - reading)  # three as long as the target reads
    assert relative(res.source_latent, encode(sd, photo) / sd.config.latent_scale) < 1e-6


def test_three_rows_for_each_step_of_other_inversions(sd, photo, monkeypatch):
    counted = Counted(sd, monkeypatch)
    for inversion, invert, each in (("negative-prompt", [1] * 10, [3]), ("edit-friendly", [2] * 7, [2])):
        counted.rows[:] = []
        edit(sd, photo, inversion, steps=10)
        assert counted.rows == invert + each * (10 if inversion == "negative-prompt" else 7)  # skips 3 of 10
    counted.rows[:] = []
    edit(sd, photo, "edict", steps=10)
    assert counted.rows == [2] * 16 + [4] * 16  # skips 2 of 10, two passes a step


def test_spared_rows_change_nothing(sd, photo, monkeypatch):
    """The oracle is the run of all four rows, its source put back on its course."""
    results = {}
    for plainly in (False, True):
        if plainly:
            monkeypatch.setattr(spared, "spared", lambda job, _: guided(job.sd, job.run.guidance))
        for method, more in {"p2p": {}, "adapedit": {"fwt": "one-pass"}}.items():
            results.setdefault(method, []).append(edit(sd, photo, "direct", method, steps=5, **more).edited_latent)
    for spare, plain in results.values():
        assert relative(spare, plain) < 1e-5


def test_guidance_away_from_the_source_prompt(sd, photo):
    """The oracle is the run of four rows from DDIM's inversion with the source prompt for a negative one."""
    for method, more in {"p2p": {}, "adapedit": {"fwt": "one-pass"}}.items():
        found = edit(sd, photo, "negative-prompt", method, steps=3, **more)
        plain = edit(sd, photo, "ddim", method, steps=3, negative_prompt=BOY, **more)
        for name in ("source_latent", "edited_latent"):
            assert relative(getattr(found, name), getattr(plain, name)) < 1e-4


ROWS = [  # what MasaCtrl, AdapEdit and injected self-attention ask of four rows
    Rule(k_rows=(0, 0, 2, 2), v_rows=(0, 0, 2, 2)),
    Rule(q_rows=(0, 1, 2, 2), k_rows=(0, 1, 2, 2)),
    Rule(edits=(Edit(3, 2, None, *(torch.full((5,), share) for share in (0.5, 0.2, 0.3)), gate=torch.rand(6)),)),
]


@pytest.mark.parametrize("rule", ROWS)
def test_a_moved_rule_does_to_fewer_rows_what_it_did_to_all(rule):
    """The oracle is attention over all four rows."""
    q, k, v = (normal(name, 4, 2, size, 8) for name, size in (("q", 6), ("k", 5), ("v", 5)))
    if rule.edits:
        whole = eager(q, k, v, rule)
    else:
        k, v = normal("k of pixels", 4, 2, 6, 8), normal("v of pixels", 4, 2, 6, 8)
        whole = eager(q, k, v, rule)
    rows = needed({"layer": rule}, [1, 3], set())
    to = {row: at for at, row in enumerate(rows)}
    found = eager(q[rows], k[rows], v[rows], rule.moved(to, len(rows)))
    for row in (1, 3):
        assert relative(found[to[row]], whole[row]) < 1e-6
    with pytest.raises(KeyError):
        rule.moved({1: 0, 3: 1}, 2)


def test_rows_that_are_needed():
    read = {"a": Rule(k_rows=(0, 0, 2, 2)), "b": Rule(q_rows=(0, 1, 2, 1))}
    assert needed({}, [1, 3], set()) == [1, 3]
    assert needed({"a": ROWS[1]}, [1, 3], set()) == [1, 2, 3]
    assert needed(read, [3], set()) == [0, 1, 2, 3]  # 3 reads 1 and 2, 1 reads 0
    assert needed({}, [1, 3], {2}) == [1, 2, 3]


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t, t_prev", [(981, 961), (1, -19), (501, 1), (999, 0)])
def test_the_noise_between_two_latents(t, t_prev):
    x, x_prev = (normal(name, 2, 4, 3, 3).double() for name in ("x", "before"))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    products = np.cumprod(1 - betas)
    a, before = products[t], products[max(t_prev, 0)]
    eps = ddim.noise_between(x, x_prev, t, t_prev)
    x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
    assert relative(before**0.5 * x0 + (1 - before) ** 0.5 * eps, x_prev) < 1e-9
    assert torch.equal(ddim.noise_between(x, x_prev, 0, -1), torch.zeros_like(x))  # the last of 1000 steps


def test_a_thousand_steps_have_a_last_one_that_does_nothing():
    trajectory = torch.stack([normal(str(i), 1, 4, 2, 2) for i in range(1001)])
    assert spared.along(trajectory).isfinite().all()


@pytest.mark.parametrize("t, t_prev", [(981, 961), (21, 1), (1, -19)])
def test_what_a_step_adds_its_noise_to(t, t_prev):
    """DDPM's posterior, in the form of its paper's equations 6 and 7, for eta 1."""
    x, eps = normal("x", 1, 4, 3, 3).double(), normal("eps", 1, 4, 3, 3).double()
    products = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    a, before = products[t], products[max(t_prev, 0)]
    alpha = a / before
    x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
    mean, sigma = ddim.mean(x0, eps, t, t_prev, 1.0)
    wanted = before**0.5 * (1 - alpha) / (1 - a) * x0 + alpha**0.5 * (1 - before) / (1 - a) * x
    assert relative(mean, wanted) < 1e-9 and abs(sigma**2 - (1 - before) / (1 - a) * (1 - alpha)) < 1e-12


def test_edicts_steps_can_be_undone():
    pair = normal("x", 1, 4, 3, 3).double(), normal("y", 1, 4, 3, 3).double()
    for count, times in ((0, (801, 781)), (3, (21, 1)), (4, (1, -19))):
        found, _ = coupled.step(pair, torch.sin, count, times, 0.93)
        again = coupled.undone(found, torch.sin, count, times, 0.93)
        assert all(relative(a, b) < 1e-12 for a, b in zip(again, pair, strict=True))
        assert not torch.equal(found[0], found[1])


# --- null-text -------------------------------------------------------------------------------------------------------


def test_gradients_of_a_unet_that_forgets_are_the_same():
    """The oracle is autograd of the plain UNet."""
    unet = fill(UNet(TINY.unet)).requires_grad_(False)
    x, t = normal("x", 1, 4, 8, 8), torch.tensor([501])
    found = []
    for net in (unet, embedding.forgetful(unet)):
        text = normal("text", 1, 8, TINY.unet.context_dim).requires_grad_()
        found.append(torch.autograd.grad(net(x, t, text, Attn()).square().sum(), text)[0])
    assert found[0].abs().max() > 1e-3 and relative(found[1], found[0]) < 1e-6
    assert not any(isinstance(module, embedding.Forgetful) for module in unet.modules())


def test_an_optimised_text_draws_the_photograph_nearer(sd, photo):
    latents, apart = encode(sd, photo) / sd.config.latent_scale, {}
    for inversion in ("ddim", "null-text"):
        more = {} if inversion == "ddim" else {"inner_steps": 8, "learning_rate": 0.05}
        res = edit(sd, photo, inversion, steps=2, guidance=2, target=BOY, **more)
        apart[inversion] = (res.source_latent - latents).square().mean().item()
    assert apart["null-text"] < apart["ddim"] / 1.5, apart
    assert "null-text: 16 steps of optimisation of 16 at most" in res.notes


def test_optimisation_ends_early(sd, photo, monkeypatch):
    counted, done = Counted(sd, monkeypatch), []
    call = {"early_stop": 1e4, "steps": 3, "inner_steps": 10, "progress": lambda *at: done.append(at)}
    res = edit(sd, photo, "null-text", **call)
    assert res.notes[0] == "null-text: 3 steps of optimisation of 30 at most"
    assert counted.rows == [1] * 3 + [1, 1] * 3 + [4] * 3 and done[-1] == (9, 9)  # those with gradients are a twin's


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_null_text_in_half_precision(dtype, photo):
    sizes = (torch.float32, dtype)
    whole, half = (edit(small_model(dtype=each), photo, "null-text", inner_steps=2, guidance=3) for each in sizes)
    assert 0 < relative(half.source_latent, whole.source_latent) < 0.1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_null_text_where_gradients_are_switched_off(sd, photo, mode):
    plain = edit(sd, photo, "null-text")
    with mode():
        assert torch.equal(edit(sd, photo, "null-text").edited_latent, plain.edited_latent)


def test_null_text_needs_a_model_with_gradients_and_memory_for_them(sd, photo, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda _: memory.needed(sd, 1, 64, 64, gradients=True) - 1)
    monkeypatch.setattr(memory, "UNET", 1)
    monkeypatch.setattr(memory, "VAE", 0)
    with pytest.raises(MineditError, match="64x64 pixels need about .* GB of memory"):
        edit(sd, photo, "null-text")
    assert edit(sd, photo, "ddim").edited
    quick = replace(sd, device=torch.device("cuda"), unet=fill(UNet(sd.config.unet)))
    quick.unet.fast = True
    job = type("Job", (), {"sd": quick, "run": type("Run", (), {"guidance": 7.5})})
    with pytest.raises(MineditError, match="null-text inversion needs gradients, .* omit --fast"):
        embedding.optimised(job, torch.zeros(2, 1, 4, 8, 8), None)
