"""What is recorded of the UNet against diffusers' own: attention probabilities, layers' outputs, on shared weights."""

from __future__ import annotations

import pytest
import torch
from seeded import relative
from small_model import small_model

pytest.importorskip("diffusers", reason="only `make parity` installs diffusers")
import oracles  # noqa: E402
from diffusers.models.attention_processor import Attention, AttnProcessor  # noqa: E402

import minedit  # noqa: E402
from minedit.sampling import ddim  # noqa: E402

LIMIT = 1e-5
STEPS = 2


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_probabilities_are_theirs(attention, monkeypatch):
    sd = small_model(attention)
    theirs, found = oracles.unet(sd.config.unet, sd.unet.state_dict()), {}
    theirs.set_attn_processor(AttnProcessor())
    scores = Attention.get_attention_scores
    layers = {id(module): name for name, module in theirs.named_modules()}

    def kept(self, *args):
        found[layers[id(self)]] = probabilities = scores(self, *args)
        return probabilities

    monkeypatch.setattr(Attention, "get_attention_scores", kept)
    names = ["*.columns", "*.attn?.out", "x_t", "text", "eps.*"]
    with minedit.recorded(sd, names, steps=1) as tape:
        minedit.generate(sd, ["a boy in the park", "a dog"], seed=[1, 2], steps=STEPS)
    x = tape["x_t"].at(step=1).tensor
    outs = {name: [] for name in layers.values() if name.endswith(("attn1", "attn2"))}
    for name in outs:
        theirs.get_submodule(name).register_forward_hook(lambda m, args, out, name=name: outs[name].append(out))
    eps = theirs(torch.cat([x, x]), ddim.timesteps(STEPS)[1], tape["text"].tensor).sample
    ours = torch.cat([tape[f"eps.{half}"].at(step=1).tensor for half in ("uncond", "cond")])
    assert relative(ours, eps) < LIMIT
    table = oracles.unet_names(sd.config.unet)
    for site in sd.unet.sites:
        block, _, rest = site.name.partition(".transformer_blocks")
        name = f"{table[block]}.transformer_blocks{rest}"
        columns = tape[f"{site.name}.columns"].at(step=1).tensor
        assert relative(columns.flatten(0, 1), found[name]) < LIMIT, name
        assert relative(tape[f"{site.name}.out"].at(step=1).tensor, outs[name][0]) < LIMIT, name
