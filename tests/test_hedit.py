"""h-Edit. Oracle: its formula in float64, over a Gaussian in closed form and over a random UNet as a black box."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from seeded import normal, relative
from small_model import small_model
from test_drift import A, Gaussian

import minedit
from minedit.config import MineditError
from minedit.sampling.loop import embed

BOY, SITTING, DOG = "a boy in the park", "a sitting boy in the park", "a dog in the park"
SHORT = {"steps": 10, "guidance": 3.0, "seed": 5}
IDLE = {"cross_steps": 0.0, "self_steps": 0.0}  # no rules: every row is the UNet's own
TIMES = [*range(901, 0, -100), 0]
ALPHA = [*A[901::-100], A[0]]
FORMS = {
    "explicit": {"implicit": False},
    "implicit": {},
    "three times": {"optimisation_steps": 3, "reconstruction": 0.2},
    "other guidance": {"edit_guidance": 4.0, "original_guidance": 2.5},
}


@pytest.fixture(scope="module")
def sd():
    return small_model()


def photo(sd):
    return normal("a photograph", 1, 4, 8, 8) / sd.config.latent_scale


def formula(model, picture, implicit=True, edit_guidance=10.0, original_guidance=9.0, **more):
    """The edit [1, 4, 8, 8] float64; picture: the photograph's latents, None: the source is drawn, guidance 3."""
    turns, reconstruction = more.get("optimisation_steps", 1), more.get("reconstruction", 0.1)
    texts = embed(model, ["", BOY, SITTING])

    def eps(x, text, at, scale=1.0):
        """ε^w; text: 1 the source, 2 the target; at: index of the time."""
        none, full = (model.unet(x.float(), torch.tensor([TIMES[at]]), texts[i : i + 1]).double() for i in (0, text))
        return none + scale * (full - none)

    def moved(x, noise, begin, end):
        clean = (x - (1 - ALPHA[begin]) ** 0.5 * noise) / ALPHA[begin] ** 0.5
        return ALPHA[end] ** 0.5 * clean + (1 - ALPHA[end]) ** 0.5 * noise

    if picture is None:
        scale, course = 3.0, [torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(5)).double()]
        for at in range(10):
            course.append(moved(course[-1], eps(course[-1], 1, at, scale), at, at + 1))
    else:
        scale, course = 1.0, [picture.double()]
        for at in range(9, -1, -1):
            course.insert(0, moved(course[0], eps(course[0], 1, at), at + 1, at))
    edit = course[0]
    for at in range(10):
        lacking = course[at + 1] - moved(course[at], eps(course[at], 1, at, scale), at, at + 1)  # the paper's u
        base = moved(edit, eps(edit, 1, at, scale), at, at + 1) + lacking
        factor = (1 - ALPHA[at + 1]) ** 0.5 - (1 - ALPHA[at]) ** 0.5 * (ALPHA[at + 1] / ALPHA[at]) ** 0.5
        x = base
        for turn in range(turns):
            there = (x, 2, at + 1) if implicit else (edit, 2, at)
            f = eps(*there, edit_guidance) - eps(there[0], 1, there[2], original_guidance)
            gradient = (x - base).sign() / x.numel()  # of the mean distance
            back = reconstruction * (f**2).mean() ** 0.5 / (gradient**2).mean() ** 0.5 * gradient if turn else 0
            x = x - back + factor * f
        edit = x
    return course[-1], edit


@pytest.mark.parametrize("kind", ["gaussian", "random"])
@pytest.mark.parametrize("drawn", [False, True], ids=["a photograph", "drawn"])
@pytest.mark.parametrize("form", FORMS)
def test_its_formula(sd, kind, drawn, form):
    model = replace(sd, unet=Gaussian()) if kind == "gaussian" else sd
    given = {} if drawn else {"image": photo(sd)}
    res = minedit.edit(model, BOY, SITTING, "h-edit", **FORMS[form], **IDLE, **given, **SHORT)
    scale = sd.config.latent_scale
    source, edited = formula(model, None if drawn else photo(sd) * scale, **FORMS[form])
    assert relative(res.source_latent * scale, source) < 1e-4
    assert relative(res.edited_latent * scale - source, edited - source) < 2e-4
    assert relative(source, edited) > 1e-2
    assert res.rows == (10 if not drawn else 0) + 10 * {
        ("explicit", False): 4,
        ("explicit", True): 5,
        ("three times", False): 2 + 3 * 3,
        ("three times", True): 4 + 3 * 3,
    }.get((form, drawn), 4 + 3 if drawn else 2 + 3)


@pytest.mark.parametrize("implicit", [True, False])
def test_no_term_leaves_the_photograph(sd, implicit):
    """Both guidances 0: the edit is the source, which is the photograph, whatever the rules."""
    none = {"edit_guidance": 0, "original_guidance": 0, "implicit": implicit}
    res = minedit.edit(sd, BOY, SITTING, "h-edit", image=photo(sd), **none, **SHORT)
    assert relative(res.source_latent, photo(sd)) < 1e-5 and relative(res.edited_latent, photo(sd)) < 1e-4


def test_the_rules_of_prompt_to_prompt_act_in_the_term(sd):
    how = {"image": photo(sd), **SHORT}
    plain, ruled = (minedit.edit(sd, BOY, DOG, "h-edit", **rules, **how) for rules in (IDLE, {}))
    assert relative(plain.edited_latent, ruled.edited_latent) > 1e-3
    assert [word.tau for word in ruled.words] == [0.4, 0, 0.4, 0.4, 0.4]  # refine: the new word reads its own
    assert "prompt-to-prompt: refine" in ruled.notes


@pytest.mark.parametrize("implicit", [True, False])
def test_beyond_the_words_to_blend_the_source_stays(sd, implicit):
    how = {"blend": ["boy", "dog"], "implicit": implicit, "blend_start": 0.0, "blend_threshold": 1.0, **SHORT}
    res = minedit.edit(sd, BOY, DOG, "h-edit", image=photo(sd), **how)
    assert torch.equal(res.edited_latent, res.source_latent)  # no attention is above its maximum
    some = minedit.edit(sd, BOY, DOG, "h-edit", image=photo(sd), **how | {"blend_threshold": 0.99})
    kept = (some.edited_latent == some.source_latent).all(1)
    assert kept.any() and not kept.all()


def test_equal_prompts(sd):
    for given in ({}, {"image": photo(sd)}):
        res = minedit.edit(sd, BOY, BOY, "h-edit", **given, **SHORT)
        assert torch.equal(res.source_latent, res.edited_latent)
    drawn = minedit.generate(sd, BOY, **SHORT)
    edited = minedit.edit(sd, BOY, SITTING, "h-edit", **SHORT)
    assert relative(edited.source_latent, drawn.latents) < 1e-4


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"eta": 0.5}, "eta is 0.5, expected 0: h-Edit's form here is the deterministic one"),
        ({"optimisation_steps": 2, "implicit": False}, "optimisation_steps is 2, expected 1 where implicit is False"),
        ({"inversion": "direct"}, "the method takes a photograph as it is"),
        ({"blend": ["cat"]}, "'cat' is in neither prompt"),
    ],
    ids=str,
)
def test_what_it_cannot_be(sd, wrong, said):
    with pytest.raises(MineditError, match=said):
        minedit.edit(sd, BOY, SITTING, "h-edit", image=photo(sd), **SHORT, **wrong)
