"""Against google/prompt-to-prompt. Its code is on no index: P2P names a checkout, as in

    make parity P2P=path/to/prompt-to-prompt ARGS="-k p2p"

The controllers are those of its two notebooks, the first release's and the null-text notebook's. Same weights, same
noise, same text; final latents are compared. Where ours differ by intent, they agree once our columns are theirs.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from p2p_model import BOY, CASES, CONFIG, DOG, SITTING, model
from small_model import TOKENIZER
from torch import Tensor

FOLDER = os.environ.get("P2P")
if not FOLDER:
    pytest.skip("P2P does not name a checkout of google/prompt-to-prompt", allow_module_level=True)
pytest.importorskip("diffusers", reason="only `make parity` installs diffusers")
import oracles  # noqa: E402
import released_p2p as released  # noqa: E402
from test_diffusers import check  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

import minedit  # noqa: E402
from minedit.methods.p2p import P2PConfig, plan  # noqa: E402
from minedit.sampling import ddim  # noqa: E402
from minedit.sampling.loop import context  # noqa: E402
from minedit.stack import tokens  # noqa: E402

LIMIT = 1e-4
LONG = {"blend from the start", "blend less words on reweight"}  # at 50 steps, the others at 8
CLIP = CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=77, pad_token_id=49407)
HAT, SUNHAT = "a hat in the park", "a sunhat in the park"


@pytest.fixture(scope="module")
def pair():
    ours = model()
    return ours, oracles.unet(CONFIG.unet, {name: x.clone() for name, x in ours.unet.state_dict().items()})


def controller(name: str, code, prompts: list[str], steps: int):
    """The released controller of a case."""
    run = prompts, steps
    match name:
        case "replace":
            return code.AttentionReplace(*run, 0.8, 0.4)
        case "replace in windows":
            return code.AttentionReplace(*run, (0.1, 0.7), (0.2, 0.6))
        case "a word's own windows":
            return code.AttentionReplace(*run, {"default_": 1.0, "dog": 0.4, "park": (0.3, 0.9)}, 0.4)
        case "refine where words are as many":
            return code.AttentionRefine(*run, 0.5, 0.4)
        case "reweight":
            scale = code.get_equalizer(BOY, ("park", "boy"), (5.0, -1.0))
            return code.AttentionReweight(*run, 0.8, 0.4, equalizer=scale)
        case "reweight on replace, every one":
            cross, scale = {"default_": 0.8, "red": 0.5}, code.get_equalizer(prompts[1], ("red",), (3.0,))
            below = code.AttentionReplace(*run, cross, 0.4)
            return code.AttentionReweight(*run, cross, 0.4, equalizer=scale, controller=below)
        case "blend from the start":
            blend = code.LocalBlend(prompts, ("boy", "dog"))
            return code.AttentionReplace(*run, {"default_": 0.8, "dog": 0.4}, 0.4, local_blend=blend)
        case "blend at another threshold":
            blend = code.LocalBlend(prompts, (("park", "boy"), ("park", "dog")), threshold=0.7)
            return code.AttentionReplace(*run, 0.8, 0.4, local_blend=blend)
        case "blend on refine, every one":
            blend = code.LocalBlend(prompts, ("red", "red"), th=(0.8, 0.3))
            return code.AttentionRefine(*run, 0.8, 0.4, local_blend=blend)
        case "blend less words on reweight":
            blend = code.LocalBlend(prompts, ("boy", "dog"), substruct_words=("park", "park"), th=(0.3, 0.75))
            cross, scale = {"default_": 0.8, "dog": 0.4}, code.get_equalizer(DOG, ("dog", "park"), (2.0, 0.5))
            below = code.AttentionReplace(*run, cross, 0.4)
            return code.AttentionReweight(*run, cross, 0.4, equalizer=scale, controller=below, local_blend=blend)
    raise KeyError(name)


LATER = {"reweight", "blend on refine, every one", "blend less words on reweight"}  # of the null-text notebook


def released_latents(pair, name: str, steps: int) -> Tensor:
    """[2, 4, 32, 32] by their code, for a case of CASES."""
    ours, theirs = pair
    source, target, _ = CASES[name]
    code = released.notebook(FOLDER, released.LATER if name in LATER else released.FIRST, CLIP, steps)
    made = controller(name, code, [source, target], steps)
    return released.latents(code, theirs, made, ddim.noise(0, 32, 32), context(ours, [source, target]), steps)


def our_latents(ours, source: str, target: str, steps: int, settings: dict) -> Tensor:
    res = minedit.edit(ours, source, target, "p2p", seed=0, steps=steps, **settings)
    return torch.cat([res.source_latent, res.edited_latent]) * CONFIG.latent_scale


@pytest.mark.parametrize("name", CASES)
def test_final_latents(name: str, pair):
    steps = 50 if name in LONG else 8
    source, target, settings = CASES[name]
    ours = pair[0]
    if name in LATER:  # where self-attention is injected up to 32 x 32, beside blend maps of 16 x 16
        ours, settings = replace(ours, config=replace(CONFIG, self_size=32)), settings | {"blend_size": 16}
    expected = released_latents(pair, name, steps)
    assert (expected[1] - expected[0]).std() > 0.5, "the edit changes nothing"
    check(f"{name}, {steps} steps", our_latents(ours, source, target, steps, settings), expected, LIMIT)


# --- where ours differ by intent --------------------------------------------------------------------------------------


def columns_of(ours, source: str, target: str, **settings) -> Tensor:
    prompts = (ours.tokenizer.encode(text) for text in (source, target))
    return plan(ours, *prompts, 10, P2PConfig(**settings)).columns


def released_columns(source: str, target: str, refine: bool) -> tuple[Tensor, Tensor]:
    """Their R [77, 77], and which target tokens read the source."""
    _, aligner = released.modules(FOLDER)
    if not refine:
        return aligner.get_replacement_mapper([source, target], CLIP)[0], torch.ones(77, dtype=torch.bool)
    mapper, alphas = aligner.get_refinement_mapper([source, target], CLIP)
    return torch.eye(77)[:, mapper[0]], alphas[0].bool()


def differing(ours: Tensor, theirs: Tensor, reads: Tensor) -> list[int]:
    """Target tokens that read something else."""
    return ((ours != theirs).any(dim=0) & reads).nonzero().flatten().tolist()


@pytest.mark.parametrize("pairs", [(BOY, DOG), (HAT, "a boy in the street"), ("two boys, a hat", "two dogs, a car")])
def test_replaced_words_of_one_token_read_the_same(pairs, pair):
    theirs = released_columns(*pairs, refine=False)
    assert differing(columns_of(pair[0], *pairs, controller="replace"), *theirs) == []
    assert differing(columns_of(pair[0], *pairs, controller="refine"), *released_columns(*pairs, refine=True)) == []


@pytest.mark.parametrize(
    "source, target, first",
    [(BOY, SITTING, 8), (SITTING, BOY, 7), ("soup", "pea soup with croutons", None), (BOY, f"{BOY} at night", 9)],
)
def test_refine_differs_in_padding_alone(source, target, first, pair):
    theirs = released_columns(source, target, refine=True)
    length = pair[0].tokenizer.encode(target).length
    assert first in (None, length)
    found = differing(columns_of(pair[0], source, target), *theirs)
    shorter = length < pair[0].tokenizer.encode(source).length
    assert found == list(range(length, 77 - shorter))  # behind the source's last padding, both read that


def test_replace_differs_behind_a_word_of_other_length(pair):
    theirs = released_columns(SUNHAT, HAT, refine=False)  # two tokens, then one; here "in" is token 3
    assert differing(columns_of(pair[0], SUNHAT, HAT, spread="sum"), *theirs) == list(range(3, 77))
    same = torch.eye(77)[:, 3:76]  # each reads the column at its own position; the last padding none
    assert torch.equal(theirs[0][:, 3:76], same) and not theirs[0][:, 76].any()
    longer = released_columns(HAT, SUNHAT, refine=False)
    assert differing(columns_of(pair[0], HAT, SUNHAT, spread="sum"), *longer) == list(range(4, 77))
    assert torch.equal(longer[0][:, 4:], torch.eye(77)[:, 4:])
    last = "a boy and a sunhat", "a boy and a hat"
    end = pair[0].tokenizer.encode(last[1]).length - 1
    assert differing(columns_of(pair[0], *last, spread="sum"), *released_columns(*last, refine=False)) == [
        *range(end, 77)
    ]
    mean = columns_of(pair[0], SUNHAT, HAT)
    assert mean[2:4, 2].tolist() == [0.5, 0.5] and theirs[0][2:4, 2].tolist() == [1, 1]


@pytest.mark.parametrize("name, source, target", [("refine", BOY, SITTING), ("replace", SUNHAT, HAT)])
def test_with_their_columns_the_pictures_are_theirs(name, source, target, pair, monkeypatch):
    ours, theirs = pair
    code, steps = released.notebook(FOLDER, released.FIRST, CLIP, 10), 10
    kind = code.AttentionRefine if name == "refine" else code.AttentionReplace
    made = kind([source, target], steps, 0.8, 0.4)
    expected = released.latents(code, theirs, made, ddim.noise(0, 32, 32), context(ours, [source, target]), steps)
    own = our_latents(ours, source, target, steps, {})
    columns, reads = released_columns(source, target, name == "refine")
    monkeypatch.setattr(tokens, "column_map", lambda *_: (columns, reads))
    check(f"{name} with their columns", our_latents(ours, source, target, steps, {}), expected, LIMIT)
    error = ((own - expected).abs().max() / expected.abs().max()).item()
    print(f"{name} with our columns: {error:.1e}")
    assert error > LIMIT
