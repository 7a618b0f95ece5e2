"""Half precision: what stays in float32, how far results may be off, and what happens where float16 overflows.

Oracles: the same operations in float64; the float32 model with the same rounded weights; identities of messages.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seeded import normal, relative
from small_model import small_model
from torch import Tensor, nn

import minedit
from minedit.config import MineditError
from minedit.image import to_pil
from minedit.sampling.coded import pictures
from minedit.sampling.loop import context, sample
from minedit.stack.model import Model

BOY, SITTING = "a boy in the park", "a sitting boy in the park"
HALVES = [torch.bfloat16, torch.float16]
each_half = pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@cache
def base() -> Model:
    """Not to be changed."""
    return small_model()


def fresh(dtype: torch.dtype) -> Model:
    """The small model in a dtype, to be changed."""
    unet, vae, text = (copy.deepcopy(part).to(dtype) for part in (base().unet, base().vae, base().text))
    return replace(base(), unet=unet, vae=vae, text=text, dtype=dtype)


def parts(model: Model) -> dict[str, Tensor]:
    """What each part answers: to one prompt, one latent, one picture; inputs that every dtype has exactly."""
    ids = torch.tensor([model.tokenizer.encode(BOY).ids])
    exact = {name: normal(name, *shape).bfloat16().half().to(model.dtype) for name, shape in INPUTS.items()}
    return {
        "text": model.text(ids),
        "unet": model.unet(exact["x"], torch.tensor([981, 3]), exact["context"]),
        "encoder": model.vae.encode(exact["picture"]),
        "decoder": model.vae.decode(exact["z"]),
    }


INPUTS = {"x": (2, 4, 8, 8), "context": (2, 16, 16), "picture": (1, 3, 32, 32), "z": (1, 4, 4, 4)}


def rounded(model: Model) -> Model:
    """In float32, with the weights that `model` has."""
    wide = fresh(torch.float32)
    for part in ("unet", "vae", "text"):
        getattr(wide, part).load_state_dict(getattr(model, part).state_dict())
    return wide


# What is computed in float32.


@each_half
def test_norms_round_once(dtype):
    """Every norm of the model, on what it meets there shifted by 30: in half precision its variance would drown."""
    model, heard = fresh(dtype), []

    def shift(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] + 30, *inputs[1:])

    def hear(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        heard.append((module, inputs[0], out))

    modules = [module for part in (model.unet, model.vae, model.text) for module in part.modules()]
    norms = [module for module in modules if isinstance(module, nn.GroupNorm | nn.LayerNorm)]
    for module in norms:
        module.register_forward_pre_hook(shift)
        module.register_forward_hook(hear)
    parts(model)
    norms = [
        m
        for p in (model.unet, model.vae, model.text)
        for m in p.modules()
        if isinstance(m, nn.GroupNorm | nn.LayerNorm)
    ]
    assert {id(module) for module, _, _ in heard} == {id(module) for module in norms}
    for module, x, out in heard:
        weight, bias = module.weight.double(), module.bias.double()
        if isinstance(module, nn.GroupNorm):
            exact = F.group_norm(x.double(), module.num_groups, weight, bias, module.eps)
        else:
            exact = F.layer_norm(x.double(), module.normalized_shape, weight, bias, module.eps)
        assert out.dtype == dtype
        # half a unit in the last place; the rest is float32's own error at 30
        assert ((out.double() - exact).abs() <= torch.finfo(dtype).eps * (0.51 * exact.abs() + 0.02)).all()


@each_half
def test_softmax_of_the_fused_attention_is_not_rounded(dtype, monkeypatch):
    """The text encoder's and the VAE's too, with logits of about 30, which half precision has to 0.1."""
    fused, worst = F.scaled_dot_product_attention, []

    def checked(q: Tensor, k: Tensor, v: Tensor, *args: object, **options: object) -> Tensor:
        q = q * 30
        out = fused(q, k, v, *args, **options)
        mask = options.get("attn_mask")
        options |= {"attn_mask": mask.double()} if mask is not None and mask.is_floating_point() else {}
        exact = fused(q.double(), k.double(), v.double(), *args, **options)
        worst.append(relative(out, exact) / torch.finfo(dtype).eps)
        return out

    monkeypatch.setattr(F, "scaled_dot_product_attention", checked)
    parts(fresh(dtype))
    assert len(worst) == 2 + len(base().unet.sites) + 2  # layers of text, of the UNet, of the VAE's two middles
    assert max(worst) < 1, worst  # a softmax in half precision: about 3


@each_half
def test_the_timestep_embedding_is_rounded_after_the_sines(dtype):
    """981 is 980 in bfloat16."""
    model, heard = fresh(dtype), []
    model.unet.time_embed[0].register_forward_pre_hook(lambda _module, inputs: heard.append(inputs[0]))
    parts(model)
    angles = np.array([[981.0], [3.0]]) * np.exp(-math.log(10000) / 8 * np.arange(8))
    exact = torch.from_numpy(np.concatenate([np.cos(angles), np.sin(angles)], axis=1))
    assert heard[0].dtype == dtype
    assert ((heard[0].double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-4).all()


@each_half
def test_guidance_and_schedule_are_float32(dtype):
    """From what the UNet answers to the next latents there is no rounding to half: against numpy in float64."""
    model, heard = fresh(dtype), []
    model.unet.register_forward_hook(lambda _module, _inputs, out: heard.append(out.double().numpy()))
    rows = context(model, [BOY])
    x = normal("x", 1, 4, 8, 8)
    a = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    for step, (t, before) in zip(sample(model, x, rows, 3, guidance=7.5), ((667, 334), (334, 1), (1, 0)), strict=True):
        uncond, cond = heard[-1]
        eps = uncond + 7.5 * (cond - uncond)
        x0 = (x.double().numpy()[0] - (1 - a[t]) ** 0.5 * eps) / a[t] ** 0.5
        after = a[before] ** 0.5 * x0 + (1 - a[before]) ** 0.5 * eps
        for ours, exact in ((step.eps, eps), (step.x0, x0), (step.latents, after)):
            assert ours.dtype == torch.float32 and relative(ours[0], torch.from_numpy(exact)) < 2e-6
        x = step.latents


# How far a half-precision model may be off.


@each_half
def test_each_part_is_its_float32_self_within_rounding(dtype):
    """A layer rounds once or twice, by eps / 2 at most; n such errors that do not know of each other add up to √n."""
    model = fresh(dtype)
    exact = parts(rounded(model))
    for name, out in parts(model).items():
        part = {"encoder": model.vae.encoder, "decoder": model.vae.decoder}.get(name) or getattr(model, name)
        layers = sum(not list(module.children()) for module in part.modules())
        error = relative(out, exact[name]) / torch.finfo(dtype).eps
        print(f"{name} {dtype}: {error:.2f} eps, {layers} layers")
        assert out.dtype == dtype and error < layers**0.5


@each_half
def test_an_edit_in_half_precision(dtype):
    """As above, but guidance w takes w of one prediction and 1 - w of the other."""
    guidance, layers = 3.0, sum(not list(module.children()) for module in base().unet.modules())
    wide, res = (minedit.edit(model, BOY, SITTING, steps=3, guidance=guidance) for model in (base(), fresh(dtype)))
    error = relative(res.edited_latent, wide.edited_latent) / torch.finfo(dtype).eps
    print(f"edit {dtype}: {error:.1f} eps")
    assert 0 < error < (2 * guidance - 1) * layers**0.5
    assert res.settings["dtype"] == str(dtype).removeprefix("torch.") and not [n for n in res.notes if "float32" in n]


# Overflow. Each of these models is finite in float32.


def hot(stage: str, dtype: torch.dtype = torch.float16) -> Model:
    """The small model with weights in one stage that are finite in float16 and give more than its 65504."""
    model = fresh(dtype)
    clip = getattr(model.text.clip, "text_model", model.text.clip)
    weights = {
        "text": [clip.encoder.layers[0].mlp.fc1.weight, clip.encoder.layers[0].mlp.fc2.weight],
        "unet": [model.unet.middle_block[1].transformer_blocks[0].ff.net[0].proj.weight],
        "decoder": [model.vae.decoder.conv_out.weight],
    }[stage]
    for weight in weights:
        weight.copy_(weight.float() * (6e4 / weight.float().abs().max()))
        assert weight.isfinite().all()
    return model


STAGES = {"text": "from the text encoder in float16", "unet": "from the UNet at step 1 of 3 in float16"}


@pytest.mark.parametrize("stage", STAGES)
def test_overflow_is_an_error_that_names_the_stage_and_the_remedy(stage):
    for verb in (minedit.generate, lambda sd, prompt, **run: minedit.edit(sd, prompt, SITTING, **run)):
        with pytest.raises(MineditError) as error:
            verb(hot(stage), BOY, steps=3)
        text = str(error.value)
        assert STAGES[stage] in text and "--dtype bfloat16 or float32" in text and "\n" not in text
    for dtype in (torch.bfloat16, torch.float32):
        assert minedit.generate(hot(stage, dtype), BOY, steps=3).latents.isfinite().all()


@pytest.mark.parametrize("method", ["generate", "edit"])
def test_an_overflowing_decoder_decodes_again_in_float32_and_says_so(method):
    sd = hot("decoder")
    if method == "generate":
        out = minedit.generate(sd, BOY, steps=2)
        found, latents = out.images[0], out.latents
    else:
        out = minedit.edit(sd, BOY, SITTING, steps=2)
        found, latents = out.edited, out.edited_latent
    assert "the decoder overflowed in float16: the pictures were decoded again in float32" in out.notes
    assert found.tobytes() == to_pil(rounded(sd).vae.decode(latents))[0].tobytes()
    assert {p.dtype for p in sd.vae.parameters()} == {torch.float16}
    assert minedit.generate(fresh(torch.float16), BOY, steps=2).notes == ()


def test_a_decoder_that_float32_cannot_save_is_an_error():
    sd = hot("decoder")
    sd.vae.decoder.conv_out.weight[0, 0, 0, 0] = torch.inf
    with pytest.raises(MineditError, match="NaN or infinity from the decoder in float16.*--dtype bfloat16 or float32"):
        pictures(sd, normal("z", 1, 4, 8, 8))


@pytest.mark.parametrize(
    "dtype, remedy",
    [("float16", "--dtype bfloat16 or float32"), ("bfloat16", "--dtype float32"), ("float32", "damaged")],
)
def test_the_first_bad_step_is_named(dtype, remedy):
    sd, calls, seen = fresh(getattr(torch, dtype)), [], []

    def overflow(_module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        calls.append(out)
        return out * (torch.inf if len(calls) == 2 else 1)

    sd.unet.register_forward_hook(overflow)
    with pytest.raises(MineditError, match=f"the UNet at step 2 of 5 in {dtype}, .*{remedy}"):
        minedit.generate(sd, BOY, steps=5, on_step=seen.append)
    assert [step.index for step in seen] == [0]


def test_where_flags_are_read_late_the_last_step_is_not_yielded(monkeypatch):
    """As on a GPU: the run goes to its end, and the first bad step is named all the same."""
    sd, calls, seen = fresh(torch.float32), [], []

    def overflow(_module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        calls.append(out)
        return out * (torch.nan if len(calls) == 2 else 1)

    sd.unet.register_forward_hook(overflow)
    monkeypatch.setattr("minedit.sampling.loop._waits", lambda latents: True)
    with pytest.raises(MineditError, match="the UNet at step 2 of 5 in float32"):
        for step in sample(sd, normal("x", 1, 4, 8, 8), context(sd, [BOY]), 5):
            seen.append(step.index)
    assert seen == [0, 1, 2, 3] and len(calls) == 5


def test_steps_are_shown_as_they_come():
    sd, steps = base(), []
    out = minedit.generate(sd, [BOY, SITTING], steps=3, on_step=steps.append)
    assert [step.index for step in steps] == [0, 1, 2] and steps[0].x0.shape == (2, 4, 8, 8)
    assert torch.equal(steps[-1].latents / sd.config.latent_scale, out.latents)
    plain = minedit.generate(sd, [BOY, SITTING], steps=3)
    assert torch.equal(out.latents, plain.latents)
    steps.clear()
    minedit.edit(sd, BOY, SITTING, steps=3, on_step=steps.append)
    assert [(step.index, len(step.x0)) for step in steps] == [(0, 2), (1, 2), (2, 2)]  # no statistics pass
