"""SDEdit, difference-driven edits, InstructPix2Pix. Oracles: the papers' formulas in float64, models in closed form.

A Gaussian in closed form: pictures of prompt c are N(m_c, s²) in every number, so the noise in x at ᾱ is
√(1 - ᾱ) (x - √ᾱ m_c) / (ᾱ s² + 1 - ᾱ).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from seeded import fill, normal, relative
from small_model import small_model
from torch import nn

import minedit
from minedit.config import MineditError
from minedit.sampling import ddim
from minedit.sampling.loop import embed
from minedit.stack.unet import UNet

BOY, SITTING, DOG = "a boy in the park", "a sitting boy in the park", "a dog in the park"
LATE = {"skipped": 0.2}
SHORT = {"steps": 10, "guidance": 3.0, "seed": 5}
SPREAD = 0.7  # s
A = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)  # ᾱ


class Gaussian(nn.Module):
    """m_c is a number of the embedding's, times 1 ... in the picture's numbers; it notes the rows it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.sites = ()
        self.spread = nn.Parameter(torch.tensor(SPREAD).double(), requires_grad=False)  # memory is reckoned by weights
        self.calls = []

    def forward(self, x, t, context, attn=None):
        self.calls.append(len(x))
        a = torch.tensor(A)[t].view(-1, 1, 1, 1)
        eps = (1 - a).sqrt() * (x.double() - a.sqrt() * means(context, x)) / (a * self.spread**2 + 1 - a)
        return eps.float()


def means(context, x):
    """m_c [B, 4, h, w] float64."""
    scale = torch.linspace(0.5, 1.5, x[0].numel(), dtype=torch.float64).view(1, *x.shape[1:])
    return 30 * context.double().mean((1, 2)).view(-1, 1, 1, 1) * scale


@pytest.fixture(scope="module")
def sd():
    return small_model()


@pytest.fixture
def gaussian(sd):
    return replace(sd, unet=Gaussian())


def photo(sd):
    return normal("a photograph", 1, 4, 8, 8) / sd.config.latent_scale


def test_sdedit_is_the_loop_of_its_paper(sd):
    """Noised to the first of the last int(.8 · 10) steps, then guided DDIM: with the UNet as a black box."""
    x0, a = photo(sd) * sd.config.latent_scale, A
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(5))
    x = a[701] ** 0.5 * x0 + (1 - a[701]) ** 0.5 * noise
    text, empty = embed(sd, [SITTING]), embed(sd, [""])
    for t in range(701, 0, -100):
        eps_u, eps_c = (sd.unet(x.float(), torch.tensor([t]), rows) for rows in (empty, text))
        eps = eps_u + 3.0 * (eps_c - eps_u)
        clean, before = (x - (1 - a[t]) ** 0.5 * eps) / a[t] ** 0.5, a[max(t - 100, 0)]
        x = before**0.5 * clean + (1 - before) ** 0.5 * eps
    res = minedit.edit(sd, BOY, SITTING, "sdedit", image=photo(sd), **SHORT)
    assert relative(res.edited_latent * sd.config.latent_scale, x) < 1e-4
    assert torch.equal(res.source_latent, photo(sd))
    assert [(word.text, word.tau) for word in res.words] == [(text, 0) for text in SITTING.split()]


def test_sdedit_of_a_picture_that_is_drawn(sd):
    drawn = minedit.generate(sd, BOY, **SHORT)
    one = minedit.edit(sd, BOY, SITTING, "sdedit", **SHORT)
    two = minedit.edit(sd, BOY, SITTING, "sdedit", image=drawn.latents, **SHORT)
    assert relative(one.source_latent, drawn.latents) < 1e-4 and relative(one.edited_latent, two.edited_latent) < 1e-4
    same = minedit.edit(sd, BOY, BOY, "sdedit", **SHORT)
    assert torch.equal(same.source_latent, same.edited_latent)
    with pytest.raises(MineditError, match="strength is 0.05 of 10 steps: none is left to draw; expected 0.1 or more"):
        minedit.edit(sd, BOY, SITTING, "sdedit", strength=0.05, **SHORT)


def flow_edit(model, picture, scales, draws, noise):
    """FlowEdit's step in its own terms, a rectified flow's, float64: times τ = σ/(1 + σ), velocities n - x.

    noise: (step, draw) → n. Over the last 8 of 10 steps.
    """
    rows = embed(model, ["", BOY, SITTING])
    source_guidance, guidance = scales
    a = [*A[701::-100], A[0]]
    tau = [s / (1 + s) for s in ((1 - a) ** 0.5 / a**0.5 for a in a)]

    def velocity(z, text, scale, step):
        """Of the state z = (1 - τ)x + τn; the UNet's own is √ᾱ (x + σn)."""
        x, at = z / (1 - tau[step]) * a[step] ** 0.5, torch.tensor([701 - 100 * step])
        none, full = (model.unet(x.float(), at, rows[i : i + 1]).double() for i in (0, text))
        eps = none + scale * (full - none)
        return eps - (z - tau[step] * eps) / (1 - tau[step])

    edited = picture.double().clone()
    for step in range(8):
        mean = 0
        for draw in range(draws):
            source = (1 - tau[step]) * picture.double() + tau[step] * noise(step, draw).double()
            target = edited + source - picture.double()
            mean += velocity(target, 2, guidance, step) - velocity(source, 1, source_guidance, step)
        edited = edited + (tau[step + 1] - tau[step]) * mean / draws
    return picture + (edited - picture) / (1 - tau[-1])


def draw_all(count, kept, draws):
    """(step, draw) → noise of seed 5, in the order in which it is drawn."""
    generator = torch.Generator("cpu").manual_seed(5)
    drawn = [torch.randn(1, 4, 8, 8, generator=generator) for _ in range(count)]
    return lambda step, draw: drawn[draw if kept else step * draws + draw]


@pytest.mark.parametrize("kind", ["gaussian", "random"])
@pytest.mark.parametrize("draws, noise, source_guidance", [(1, "fresh", 3.0), (2, "kept", 1.0), (2, "fresh", 5.0)])
def test_flow_is_flowedits_formula(sd, gaussian, kind, draws, noise, source_guidance):
    model = sd if kind == "random" else gaussian
    how = {"draws": draws, "noise": noise, "source_guidance": source_guidance, **LATE}
    res = minedit.edit(model, BOY, SITTING, "flow", image=photo(sd), **how, **SHORT)
    picture, noises = photo(sd) * sd.config.latent_scale, draw_all(8 * draws, noise == "kept", draws)
    expected = flow_edit(model, picture, (source_guidance, 3.0), draws, noises)
    assert relative(res.edited_latent * sd.config.latent_scale - picture, expected - picture) < 1e-4
    assert torch.equal(res.source_latent, photo(sd)) and relative(picture, expected) > 1e-2


def test_many_steps_of_a_flow_lead_where_its_equation_does(gaussian, sd):
    """dd/dσ = σ (d - Δm)/(s² + σ²), whose solution from d = 0 at σ₀ is Δm (1 - √((s² + σ²)/(s² + σ₀²)))."""
    picture = photo(sd) * sd.config.latent_scale
    source, target = means(embed(gaussian, [BOY, SITTING]), picture)
    first, last = (SPREAD**2 + (1 - a) / a for a in (A[997], A[0]))
    how = {"steps": 250, "guidance": 1, "seed": 5, "skipped": 0}
    res = minedit.edit(gaussian, BOY, SITTING, "flow", image=photo(sd), **how)
    moved = res.edited_latent * sd.config.latent_scale - picture
    assert relative(moved[0], (target - source) * (1 - (last / first) ** 0.5)) < 2e-3


@pytest.mark.parametrize("noise", ["fresh", "kept"])
def test_the_re_estimated_form_is_its_formula(gaussian, sd, noise):
    """x0 + x̂0(x_t) - x̂0(x_s) of every step, in closed form: x̂0 is the posterior's mean, guidance 1."""
    x0 = (photo(sd) * sd.config.latent_scale).double()
    source, target = means(embed(gaussian, [BOY, SITTING]), x0)
    noises, clean = draw_all(8, noise == "kept", 1), x0
    for step, t in enumerate(range(701, 0, -100)):
        a = A[t]
        at = [a**0.5 * x + (1 - a) ** 0.5 * noises(step, 0).double() for x in (x0, clean)]
        hats = [
            (a**0.5 * SPREAD**2 * x + (1 - a) * m) / (a * SPREAD**2 + 1 - a)
            for x, m in zip(at, (source, target), strict=True)
        ]
        clean = x0 + hats[1] - hats[0]
    how = {"form": "re-estimated", "noise": noise, **LATE, **SHORT, "guidance": 1}
    res = minedit.edit(gaussian, BOY, SITTING, "flow", image=photo(sd), **how)
    assert relative(res.edited_latent * sd.config.latent_scale, clean) < 1e-4
    assert gaussian.unet.calls == [2] * 8  # no guidance, no unconditional rows


def test_a_flow_between_equal_prompts_goes_nowhere(sd):
    for settings in ({}, {"form": "re-estimated"}, {"draws": 2}, {"rules": "p2p"}):
        res = minedit.edit(sd, BOY, BOY, "flow", image=photo(sd), **settings, **SHORT)
        assert relative(res.edited_latent, photo(sd)) < 1e-5
    res = minedit.edit(sd, BOY, BOY, "flow", **SHORT)
    assert torch.equal(res.source_latent, res.edited_latent)
    drawn = minedit.generate(sd, BOY, **SHORT)
    assert relative(minedit.edit(sd, BOY, SITTING, "flow", **SHORT).source_latent, drawn.latents) < 1e-4


def test_rules_of_another_method_act_on_the_same_rows(sd):
    """All of attention the source's: with the prompts' attention shared, only the words' values tell the rows apart."""
    how = {"image": photo(sd), **SHORT}
    plain, ruled = (minedit.edit(sd, BOY, DOG, "flow", rules=rules, **how) for rules in (None, "p2p"))
    assert relative(plain.edited_latent, ruled.edited_latent) > 1e-3
    assert (
        ruled.words == minedit.edit(sd, BOY, DOG, "p2p", **SHORT).words and "prompt-to-prompt: replace" in ruled.notes
    )
    by_adapedit = minedit.edit(sd, BOY, SITTING, "flow", rules="adapedit", **how)
    assert by_adapedit.statistics.spatial and torch.equal(by_adapedit.source_latent, photo(sd))


def test_rules_that_leave_attention_alone_change_nothing(sd, monkeypatch):
    from minedit.methods.p2p import P2PConfig

    class Idle(P2PConfig):
        def prepare(self, job):
            return replace(super().prepare(job), rules=lambda step: {})

    monkeypatch.setitem(minedit.METHODS, "idle", Idle)
    how = {"image": photo(sd), **SHORT}
    plain, ruled = (minedit.edit(sd, BOY, DOG, "flow", rules=rules, **how) for rules in (None, "idle"))
    assert torch.equal(plain.edited_latent, ruled.edited_latent)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"rules": "magic"}, "rules is 'magic', expected one of adapedit, adapedit"),
        ({"rules": "sdedit"}, "rules is 'sdedit', which edits no attention of a pair"),
        ({"rules": "fixed-seed"}, "rules is 'fixed-seed', which edits no attention of a pair"),
        ({"rules": "flow"}, "rules is 'flow', which edits no attention of a pair"),
        ({"skipped": 1}, "skipped is 1 of 10 steps: none is left; expected less"),
        ({"inversion": "direct"}, "the method takes a photograph as it is"),
        ({"form": "odd"}, "form is 'odd', expected ode or re-estimated"),
    ],
    ids=str,
)
def test_what_a_flow_cannot_be(sd, wrong, said):
    with pytest.raises(MineditError, match=said):
        minedit.edit(sd, BOY, SITTING, "flow", image=photo(sd), **SHORT, **wrong)


# --- InstructPix2Pix -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight(sd):
    config = replace(sd.config, unet=replace(sd.config.unet, in_channels=8))
    return replace(sd, config=config, unet=fill(UNet(config.unet)).requires_grad_(False))


def test_instructpix2pix_is_its_equation(eight):
    """Equation 3 with the UNet as a black box, one row at a time; the photograph as the encoder has it, unscaled."""
    picture = Image.fromarray((128 + 60 * normal("pixels", 64, 64, 3)).clamp(0, 255).byte().numpy())
    pixels = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    shown = eight.vae.encode(pixels)[:, :4]
    x, a = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(5)), A
    text, negative = embed(eight, [SITTING]), embed(eight, ["a dog"])
    for t in range(901, 0, -100):
        full, image, none = (
            eight.unet(torch.cat([x.float(), c], 1), torch.tensor([t]), rows)
            for c, rows in ((shown, text), (shown, negative), (0 * shown, negative))
        )
        eps = none + 2 * (image - none) + 3.0 * (full - image)
        clean, before = (x - (1 - a[t]) ** 0.5 * eps) / a[t] ** 0.5, a[max(t - 100, 0)]
        x = before**0.5 * clean + (1 - before) ** 0.5 * eps
    how = {"image": picture, "image_guidance": 2, "negative_prompt": "a dog", **SHORT}
    res = minedit.edit(eight, "", SITTING, "instruct-pix2pix", **how)
    assert (
        relative(res.edited_latent * eight.config.latent_scale, x) < 1e-4 and relative(res.source_latent, shown) < 1e-5
    )
    told = minedit.edit(eight, BOY, DOG, "instruct-pix2pix", instruction=SITTING, **how)
    assert torch.equal(told.edited_latent, res.edited_latent) and told.settings["instruction"] == SITTING


@pytest.mark.parametrize(
    "channels, asked, said",
    [
        (4, {}, "small reads 4 channels; instruct-pix2pix needs a model that reads 8, as InstructPix2Pix's"),
        (
            8,
            {"image": None},
            "instruct-pix2pix edits photographs, and draws none of a prompt; give one: --image FILE, image=",
        ),
        (8, {"instruction": " "}, "the instruction has no words"),
        (8, {"method": "flow"}, "small reads 8 channels, a photo among them; flow needs a model that reads 4"),
        (8, {"method": "p2p"}, "p2p needs a model that reads 4, as Stable Diffusion v1"),
    ],
    ids=str,
)
def test_what_instructpix2pix_needs(sd, eight, channels, asked, said):
    with pytest.raises(MineditError, match=said) as error:
        model = eight if channels == 8 else sd
        minedit.edit(model, BOY, SITTING, **{"method": "instruct-pix2pix", "image": photo(sd), **SHORT, **asked})
    assert "\n" not in str(error.value)


def test_the_noise_of_the_schedule_here_is_the_projects():
    assert np.allclose(A, ddim.alphas_cumprod().numpy(), rtol=1e-12) and ddim.timesteps(10)[2:] == [
        *range(701, 0, -100)
    ]
