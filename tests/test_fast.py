"""The fast layout, and compilation. Oracle: the plain model."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from seeded import normal, relative
from small_model import TOKENS, small_model

import minedit
from minedit.attention.rules import Attn
from minedit.config import MineditError
from minedit.files.lora import merge
from minedit.methods import running
from minedit.methods.adapedit import AdapEditConfig
from minedit.methods.wordmaps import measure
from minedit.sampling.loop import Run
from minedit.speed import cpu, winograd
from minedit.speed.fast import fast, lay_out
from minedit.speed.winograd import Winograd

BOY, SITTING = "a boy in the park", "a sitting boy in the park"


@pytest.fixture(scope="module")
def sd():
    return small_model()


@pytest.fixture(scope="module")
def quick(sd):
    """As on a GPU, but for the recording (test_graphs.py)."""
    unet, vae = copy.deepcopy(sd.unet), copy.deepcopy(sd.vae)
    lay_out(unet)
    lay_out(vae)
    unet.fast = True
    return replace(sd, unet=unet, vae=vae)


@pytest.fixture(scope="module")
def spared(sd):
    """As on a CPU, where a model's layers are wide; test_cpu.py has the CPUs that do otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "this", cpu.CPU)
        patch.setattr(winograd, "NARROW", 8)
        patch.setattr(winograd, "SMALL", 16)
        yield fast(replace(sd, unet=copy.deepcopy(sd.unet), vae=copy.deepcopy(sd.vae)))


def test_float16_on_a_cpu_stays_as_it_is(sd):
    model = replace(sd, dtype=torch.float16)
    assert fast(model) is model and not model.fast


def test_on_a_cpu_wide_convolutions_take_fewer_products(spared):
    assert spared.fast and fast(spared) is spared
    for part in (spared.unet, spared.vae):
        layers = [m for m in part.modules() if winograd.suits(m)]
        assert layers and all(isinstance(layer.forward, Winograd) for layer in layers)


@pytest.mark.parametrize("made", ["quick", "spared"])
@pytest.mark.parametrize("size", [{}, {"height": 72, "width": 104}])  # 9 and 13 latents
def test_an_edit_is_the_same_but_for_rounding(sd, made, size, request):
    models = request.getfixturevalue(made), sd
    ours, plain = (minedit.edit(model, BOY, SITTING, seed=1, steps=4, guidance=3.0, **size) for model in models)
    assert relative(ours.source_latent, plain.source_latent) < 1e-4
    assert relative(ours.edited_latent, plain.edited_latent) < 1e-4


@pytest.mark.parametrize("made", ["quick", "spared"])
def test_names_and_weights_stay(sd, made, request):
    for part in ("unet", "vae"):
        ours, plain = getattr(request.getfixturevalue(made), part).state_dict(), getattr(sd, part).state_dict()
        assert ours.keys() == plain.keys() and all(torch.equal(ours[name], x) for name, x in plain.items())


def test_self_attention_multiplies_once(quick):
    layers = {m.site.name: m for m in quick.unet.modules() if hasattr(m, "site")}
    for name, layer in layers.items():
        assert (layer.to_qkv is not None) == (layer.site.kind == "self"), name
        if layer.to_qkv is not None:  # one memory by two names
            assert layer.to_k.weight.data_ptr() == layer.to_qkv[layer.site.channels :].data_ptr()


def test_a_lora_comes_first(quick, tmp_path):
    with pytest.raises(MineditError, match="made for speed; merge .* first"):
        merge(quick, tmp_path / "lora.safetensors")


def test_the_edited_step_compiles_without_a_break(quick):
    """fullgraph=True raises at a break."""
    model, settings = quick, AdapEditConfig(lambda_tau=1.5)
    source, target = (model.tokenizer.encode(text) for text in (BOY, SITTING))
    found = measure(model, source, target, 0, Run(steps=8), settings)
    plan = running.plan(model, source, target, 8, settings, found)
    x, t = normal("x", 4, 4, 8, 8), torch.tensor([500] * 4)
    context = normal("context", 4, TOKENS, 16)
    torch.compiler.reset()
    compiled = torch.compile(model.unet, fullgraph=True, backend="eager")
    with torch.inference_mode():
        for step, watch in ((0, {}), (7, {name: i % 2 == 0 for i, name in enumerate(plan.gates)})):
            attns = [Attn(model.attend, plan.rules(step), watch, {}) for _ in range(2)]
            ours, plain = compiled(x, t, context, attns[0]), model.unet(x, t, context, attns[1])
            assert torch.equal(ours, plain)
            assert attns[0].seen.keys() == attns[1].seen.keys() == watch.keys()
