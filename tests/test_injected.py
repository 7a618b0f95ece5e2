"""MasaCtrl, FreePromptEditing, Plug-and-Play. Oracle: the authors' code, whose results lie in tests/golden; and torch.

tests/parity/make_golden_methods.py wrote these; test_released.py there compares whole edits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from deep import CAT, DEEP, DOG, GUIDANCE, STEPS, TOKENS, context, course
from safetensors.torch import load_file
from seeded import fill, normal, relative
from small_model import TOKENIZER, small_model

import minedit
from minedit.attention.eager import eager
from minedit.attention.rules import Attn, Edit, Rule
from minedit.attention.sdpa import sdpa
from minedit.config import PICTUREBOOK, SD14, MineditError
from minedit.inversion.spared import back_on
from minedit.methods.freeprompt import FreePromptConfig
from minedit.methods.masactrl import MasaCtrlConfig
from minedit.methods.plugandplay import PlugAndPlayConfig
from minedit.sampling.loop import Run, sample
from minedit.sampling.together import together
from minedit.sampling.way import Job, Way
from minedit.stack.tokens import Tokenizer, align
from minedit.stack.unet import ResBlock, UNet

GOLDEN = load_file(Path(__file__).parent / "golden" / "methods.safetensors")
BOY, SITTING = "a boy in the park", "a sitting boy in the park"


@pytest.fixture(scope="module")
def sd():
    return small_model()


def job(config, unet, source, target, steps):
    """What a method looks at of an edit."""
    tokenizer = Tokenizer(TOKENIZER, TOKENS)
    pair = tokenizer.encode(source), tokenizer.encode(target)
    sd = SimpleNamespace(config=config, unet=unet, tokenizer=tokenizer)
    return Job(sd, *pair, align(*pair), seed=0, run=Run(steps=steps), tick=None)


@pytest.fixture(scope="module")
def deep():
    return fill(UNet(DEEP.unet))


@pytest.mark.parametrize("attend", [eager, sdpa])
@pytest.mark.parametrize(
    "name, settings",
    [
        ("masactrl", MasaCtrlConfig(start_step=1)),
        ("masactrl, foreground", MasaCtrlConfig(start_step=1, foreground="dog")),
        ("freeprompt", FreePromptConfig()),
        ("plug-and-play", PlugAndPlayConfig()),
    ],
)
@torch.no_grad()
def test_the_authors_code_draws_the_same(deep, attend, name, settings):
    way, start = settings.prepare(job(DEEP, deep, CAT, DOG, STEPS)), course()[0].expand(2, -1, -1, -1)
    model = SimpleNamespace(unet=deep, attend=attend, config=DEEP, device=start.device, dtype=start.dtype)
    after = back_on(course()) if name == "plug-and-play" else None
    hooks = {"rules": way.rules, "observe": way.watch, "after": after}
    *_, last = sample(model, start, context(), STEPS, GUIDANCE, **hooks)
    theirs = GOLDEN[name]
    assert relative(last.latents[-len(theirs) :], theirs) < 1e-4
    others = [found[-1] for other, found in GOLDEN.items() if other != name]
    assert all(relative(theirs[-1], other) > 1e-2 for other in others)  # what they do shows


# --- which layers, which steps ---------------------------------------------------------------------------------------


def chosen(config, settings, steps=50):
    """The layers with a rule at each step: their names but for what all share."""
    with torch.device("meta"):
        unet = UNet(config.unet)
    way = settings.prepare(job(config, unet, BOY, SITTING, steps))
    names = [sorted(name.removesuffix(".transformer_blocks.0.attn1") for name in way.rules(s)) for s in range(steps)]
    return way, names


def blocks(first, end, layer=1):
    return sorted(f"output_blocks.{i}.{layer}" for i in range(first, end))


def test_masactrl_begins_at_a_step_and_a_layer():
    """Layers 10 to 15 of Stable Diffusion are output_blocks.6 to 11; 6 to 9 of the embedded model's 10 are 2 to 5."""
    for config, expected in ((SD14, blocks(6, 12)), (PICTUREBOOK, blocks(2, 6))):
        way, names = chosen(config, MasaCtrlConfig())
        assert names == [[]] * 4 + [expected] * 46
        found = {(r.q_rows, r.k_rows, r.v_rows, r.edits, r.masks) for r in way.rules(9).values()}
        assert found == {(None, (0, 0, 2, 2), (0, 0, 2, 2), (), ())} and way.watch(9) == {}
    way, names = chosen(PICTUREBOOK, MasaCtrlConfig(start_step=60))
    assert names == [[]] * 50 and "0 of 50 steps" in way.told().notes[0]
    way, names = chosen(PICTUREBOOK, MasaCtrlConfig(start_layer=16, foreground="boy"))
    assert names == [[]] * 50 and way.watch(9) == {} and "0 of 10 layers" in way.told().notes[0]


def test_freeprompt_has_small_maps_and_the_first_steps():
    """Maps of 32 and less: all but input_blocks.1 and 2 and output_blocks.9 to 11; of 8 and less of the embedded 16."""
    down = ["input_blocks.4.1", "input_blocks.5.1", "input_blocks.7.1", "input_blocks.8.1", "middle_block.1"]
    small = ["input_blocks.3.1", "input_blocks.5.1", "middle_block.1"]
    for config, expected in ((SD14, down + blocks(3, 9)), (PICTUREBOOK, small + blocks(0, 4))):
        way, names = chosen(config, FreePromptConfig())
        assert names == [sorted(expected)] * 20 + [[]] * 30
        assert {(r.q_rows, r.k_rows, r.v_rows) for r in way.rules(0).values()} == {((0, 1, 2, 2), (0, 1, 2, 2), None)}
    assert len(chosen(SD14, FreePromptConfig(map_side=64))[1][0]) == 16
    assert chosen(SD14, FreePromptConfig(map_side=7))[1] == [[]] * 50


def test_plug_and_play_has_its_blocks_and_steps():
    for config, first, count in ((SD14, 4, 12), (PICTUREBOOK, 2, 6)):
        way, names = chosen(config, PlugAndPlayConfig())
        maps, features = blocks(first, count), blocks(first, first + 1, layer=0)
        assert names == [sorted(maps + features)] * 25 + [features] * 15 + [[]] * 10
        rules = way.rules(0)
        feature = rules.pop(features[0])
        assert (feature.q_rows, feature.k_rows, feature.v_rows) == (None, None, (0, 0, 2, 0))
        assert {(r.q_rows, r.k_rows, r.v_rows) for r in rules.values()} == {((0, 0, 2, 0), (0, 0, 2, 0), None)}


@pytest.mark.parametrize(("method", "rows"), [("masactrl", {4}), ("freeprompt", {3, 2}), ("plug-and-play", {3, 2})])
def test_rows_of_a_photograph(sd, monkeypatch, method, rows):
    """With direct inversion, which leaves out what nobody reads; MasaCtrl's target looks into both source rows."""
    counts, forward = [], sd.unet.forward
    monkeypatch.setattr(sd.unet, "forward", lambda x, *more: counts.append(len(x)) or forward(x, *more))
    first = {"start_step": 0} if method == "masactrl" else {}
    minedit.edit(sd, BOY, SITTING, method, image=normal("photo", 1, 4, 8, 8), steps=5, **first)
    assert set(counts[5:]) == rows  # behind the inversion


@pytest.mark.parametrize("method", ["masactrl", "freeprompt", "plug-and-play"])
def test_the_source_is_as_without_an_edit_and_the_edit_another(sd, method):
    run = {"seed": 3, "steps": 6, "guidance": 3.0}
    plain, edited = (minedit.edit(sd, BOY, SITTING, name, **run) for name in ("fixed-seed", method))
    assert torch.equal(plain.source_latent, edited.source_latent)
    assert not torch.equal(plain.edited_latent, edited.edited_latent)
    assert [word.kind for word in edited.words] == [word.kind for word in plain.words]


# --- foreground ------------------------------------------------------------------------------------------------------


def test_foreground_is_of_words_of_both_prompts(sd):
    with torch.device("meta"):
        unet = UNet(SD14.unet)
    way = MasaCtrlConfig(foreground="big dog").prepare(job(SD14, unet, "a cat on the sand", "a big dog on the sand", 9))
    sites = {f"{b}.1.transformer_blocks.0.attn2" for b in ("input_blocks.7", "input_blocks.8")}
    sites |= {f"output_blocks.{i}.1.transformer_blocks.0.attn2" for i in (3, 4, 5)}  # the maps of 16 x 16
    assert way.watch(3) == {} and way.watch(4) == dict.fromkeys(sites, True)
    for rule in way.rules(4).values():
        assert [mask.row for mask in rule.masks] == [1, 3]
        split = rule.masks[0].keys
        assert (split.rows, split.tokens, split.shape, split.threshold) == ((3, 2), ((2, 3), (2,)), (16, 16), 0.1)
    assert {rule.masks[0].keys.to for rule in way.rules(4).values()} == {(32, 32), (64, 64)}


def test_a_foreground_that_cannot_be_says_why(sd):
    for word, message in (("cat", "'cat' is not in the target"), ("sitting", "no word of the source.*: a, boy, in")):
        with pytest.raises(MineditError, match=message) as error:
            minedit.edit(sd, BOY, SITTING, "masactrl", foreground=word, steps=2)
        assert "\n" not in str(error.value)
    with pytest.raises(MineditError, match=r"maps of sides \[4, 8\], expected 2"):
        other = replace(sd, config=replace(sd.config, self_size=2))
        minedit.edit(other, BOY, SITTING, "masactrl", foreground="boy", steps=2)


def test_foreground_in_a_wide_picture_and_of_a_photograph(sd):
    """Maps that are not square; rows that stand elsewhere."""
    how = {"foreground": "boy", "start_step": 0, "start_layer": 6, "steps": 3, "foreground_level": 0.5}
    for run in ({"height": 64, "width": 128}, {"height": 72, "width": 104}, {"image": normal("photo", 1, 4, 8, 8)}):
        apart, whole = (
            minedit.edit(sd, BOY, SITTING, "masactrl", **(how | run | m)) for m in ({}, {"foreground": None})
        )
        assert not torch.equal(apart.edited_latent, whole.edited_latent)
        assert apart.source_latent.isfinite().all() and torch.equal(apart.source_latent, whole.source_latent)


# --- a ResBlock's branch ---------------------------------------------------------------------------------------------


def branches(block: ResBlock, x, emb):
    """What a ResBlock makes of x in two parts, by torch's functions."""
    norm1, _, conv1 = block.in_layers
    norm2, _, _, conv2 = block.out_layers
    h = F.conv2d(
        F.silu(F.group_norm(x, norm1.num_groups, norm1.weight, norm1.bias)), conv1.weight, conv1.bias, padding=1
    )
    h = h + F.linear(F.silu(emb), block.emb_layers[1].weight, block.emb_layers[1].bias)[:, :, None, None]
    h = F.silu(F.group_norm(h, norm2.num_groups, norm2.weight, norm2.bias))
    skip = block.skip_connection
    x = F.conv2d(x, skip.weight, skip.bias)
    return x, F.conv2d(h, conv2.weight, conv2.bias, padding=1)


@torch.no_grad()
def test_a_branch_reads_the_rows_of_its_rule_and_skips_keep_their_own(sd):
    block = sd.unet.output_blocks[1][0]
    assert block.name == "output_blocks.1.0"
    x, emb = normal("x", 3, block.in_layers[0].num_channels, 8, 8), normal("emb", 3, 64)
    skip, added = branches(block, x, emb)
    for rows in ((0, 0, 0), (2, 1, 0), (0, 1, 2)):
        attn = Attn(rules={block.name: Rule(v_rows=rows), "output_blocks.2.0": Rule(v_rows=(1, 1, 1))})
        assert relative(block(x, emb, attn), skip + added[list(rows)]) < 1e-5
    one = torch.ones(7)
    wrong = {
        "v_rows is \\(0, 0\\), expected 3 rows": Rule(v_rows=(0, 0)),
        "v_rows is \\(0, 0, 3\\), expected 3 rows": Rule(v_rows=(0, 0, 3)),
        "more than v_rows, or none": Rule(q_rows=(0, 0, 0), v_rows=(0, 0, 0)),
        "or none; expected v_rows alone": Rule(edits=(Edit(0, 1, None, one, one, one),)),
    }
    for message, rule in wrong.items():
        with pytest.raises(MineditError, match=message):
            block(x, emb, Attn(rules={block.name: rule}))


# --- several targets of one source -----------------------------------------------------------------------------------


@torch.no_grad()
def test_edits_that_share_a_batch_are_those_alone(sd):
    targets = "a dog in the park", SITTING, "a boy on the beach", "a girl in the park"
    asked = (
        MasaCtrlConfig(start_step=0, start_layer=6, foreground="dog", foreground_level=0.5),
        FreePromptConfig(),
        PlugAndPlayConfig(),
        MasaCtrlConfig(start_step=1, start_layer=3),
    )
    run = Run(steps=4, guidance=3.0)
    source = sd.tokenizer.encode(BOY)
    pairs = [(source, sd.tokenizer.encode(target)) for target in targets]
    jobs = [Job(sd, *pair, align(*pair), seed=0, run=run, tick=None) for pair in pairs]
    ways = [settings.prepare(each) for settings, each in zip(asked, jobs, strict=True)]

    def drawn(way, prompts):
        *_, last = run(sd, prompts, [0] * len(prompts), lambda: None, way.rules, way.watch, after=way.after)
        return last.latents

    joined = drawn(together(ways), [BOY, *targets])
    for at, (way, target) in enumerate(zip(ways, targets, strict=True), 1):
        source, alone = drawn(way, [BOY, target]).split(1)
        assert relative(joined[at : at + 1], alone) < 1e-4 and relative(joined[:1], source) < 1e-4
        assert relative(alone, drawn(Way(told=lambda: None), [BOY, target])[1:]) > 1e-3
