"""Local blend. Oracles: the released code's latents (tests/golden/p2p.safetensors), its formula in numpy's float64."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import p2p_model
import pytest
import torch
from p2p_model import CASES, GOLDEN, GOLDEN_STEPS
from safetensors.torch import load_file
from seeded import normal, relative
from small_model import small_model

import minedit
from minedit import cli, image
from minedit.attention.eager import eager, edited
from minedit.attention.rules import Edit, Rule
from minedit.cli import origin
from minedit.config import MineditError
from minedit.files import checkpoint
from minedit.methods import localblend
from minedit.methods.blending import blend_words
from minedit.methods.p2p import P2PConfig

RELEASED = Path(__file__).parent / "golden" / "p2p.safetensors"
BOY, DOG, SITTING = p2p_model.BOY, p2p_model.DOG, p2p_model.SITTING
SHORT = {"steps": 4, "seed": 3}


@cache
def sd():
    return small_model()


@pytest.fixture
def masks(monkeypatch):
    """The mask of every step, as it was used."""
    used = []
    masked = localblend.LocalBlend.masked
    monkeypatch.setattr(localblend.LocalBlend, "masked", lambda *args: used.append(masked(*args)) or used[-1])
    return used


@pytest.mark.parametrize("name", GOLDEN)
def test_final_latents_are_the_released_codes(name, masks):
    source, target, settings = CASES[name]
    model = p2p_model.model()
    if "blend_subtract" in settings:  # the null-text notebook injects self-attention up to 32 x 32
        model, settings = replace(model, config=replace(model.config, self_size=32)), settings | {"blend_size": 16}
    res = minedit.edit(model, source, target, "p2p", seed=0, steps=GOLDEN_STEPS, **settings)
    latents = torch.cat([res.source_latent, res.edited_latent]) * model.config.latent_scale
    assert relative(latents, load_file(RELEASED)[name]) < 1e-4
    assert all(0.02 < mask.float().mean() < 0.995 for mask in masks) and len(masks) == 6 - (name == GOLDEN[1])
    assert relative(latents[1:], latents[:1]) > 0.1


def mask_in_numpy(maps, threshold, latent, pool):
    """LocalBlend.get_mask of the released code, pixel by pixel."""
    high = np.zeros(latent, bool)
    for own in maps.double().numpy():
        h, w = own.shape
        pooled = own.copy()
        for y in range(h) if pool else ():
            for x in range(w):
                pooled[y, x] = own[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max()
        large = pooled[np.arange(latent[0]) * h // latent[0]][:, np.arange(latent[1]) * w // latent[1]]
        high |= large > threshold * large.max()
    return high


@pytest.mark.parametrize("latent", [(16, 16), (13, 24), (9, 5)])
@pytest.mark.parametrize("pool", [True, False])
def test_a_mask_of_any_shape_is_the_formula(latent, pool):
    maps = normal("maps", 2, -(-latent[0] // 2), -(-latent[1] // 2)).abs()
    found = localblend.mask(maps, 0.6, latent, pool)
    assert 0 < found.float().mean() < 1 and np.array_equal(found.numpy(), mask_in_numpy(maps, 0.6, latent, pool))
    alone = localblend.mask(torch.stack([maps[0], torch.zeros_like(maps[0])]), 0.6, latent, pool)
    assert np.array_equal(alone.numpy(), mask_in_numpy(maps[:1], 0.6, latent, pool))


@pytest.mark.parametrize("gate", [None, torch.linspace(0, 1, 9)])
def test_an_edit_of_means_over_heads_is_the_mean_of_edits(gate):
    """The mask is made of head means; eager, with values that show the probabilities, has every head's edit."""
    q, k = normal("q", 4, 3, 9, 5), normal("k", 4, 3, 16, 5)
    pin, blend, own = normal("weights", 3, 16).softmax(0) * 1.5
    edit = Edit(3, 2, normal("R", 16, 16).softmax(0), pin, blend, own, gate)
    v = torch.eye(16).expand(4, 3, 16, 16)
    out, columns = eager(q, k, v, Rule(edits=(edit,)), columns=True)
    assert torch.allclose(edited(columns[3], columns[2], edit), out[3].mean(0), atol=1e-6)


@pytest.mark.parametrize(
    "method, settings, height, width",
    [("p2p", {}, 64, 64), ("p2p", {"cross_steps": 0.2}, 40, 104), ("adapedit", {}, 72, 48)],
)
def test_outside_the_mask_the_edit_is_the_source(method, settings, height, width, masks):
    words = {"blend": ["boy", "dog"], "blend_threshold": 0.93, "blend_start": 0.5}
    res = minedit.edit(sd(), BOY, DOG, method, height=height, width=width, **words, **settings, **SHORT)
    assert len(masks) == 2  # int(0.5 * 4) steps go without
    share, outside = masks[-1].float().mean().item(), ~masks[-1]
    assert 0 < share < 1 and outside.shape == (height // 8, width // 8)
    assert torch.equal(res.source_latent[0][:, outside], res.edited_latent[0][:, outside])
    assert not torch.equal(res.source_latent, res.edited_latent)
    assert f"local blend: the edit may differ from the source in {share:.0%} of the picture" in res.notes


def test_outside_the_mask_a_photograph_stays_as_it_is_inverted(masks):
    photo = image.Image.effect_noise((64, 64), 60).convert("RGB")
    res = minedit.edit(sd(), BOY, DOG, "p2p", image=photo, blend=["boy"], blend_threshold=0.93, **SHORT)
    plain = minedit.edit(sd(), BOY, DOG, "p2p", image=photo, **SHORT)
    outside = ~masks[-1]
    assert torch.equal(res.source_latent, plain.source_latent) and 0 < outside.float().mean() < 1
    assert torch.equal(res.source_latent[0][:, outside], res.edited_latent[0][:, outside])


@pytest.mark.parametrize(
    "method, settings",
    [("p2p", {}), ("adapedit", {}), ("adapedit", {"fwt": "one-pass"}), ("adapedit", {"fwt": "one-pass", "dps": False})],
)
def test_a_mask_of_the_whole_picture_changes_nothing(method, settings):
    """What the method itself watches and does after a step goes on as without."""
    plain = minedit.edit(sd(), BOY, SITTING, method, **settings, **SHORT)
    whole = {"blend": "boy", "blend_threshold": 0.0, "blend_start": 0.0}
    res = minedit.edit(sd(), BOY, SITTING, method, **whole, **settings, **SHORT)
    assert torch.equal(res.edited_latent, plain.edited_latent) and res.words == plain.words
    assert set(plain.notes) < set(res.notes)


def test_edits_in_one_batch_have_masks_of_their_own(masks):
    wanted = [{"target": DOG, "blend": ["dog"], "blend_threshold": 0.93}, {"target": SITTING}]
    blended, plain = minedit.edits(sd(), BOY, wanted, "p2p", **SHORT)
    outside = ~masks[-1]
    assert 0 < outside.float().mean() < 1
    assert torch.equal(blended.edited_latent[0][:, outside], blended.source_latent[0][:, outside])
    alone = minedit.edit(sd(), BOY, SITTING, "p2p", **SHORT)
    assert relative(plain.edited_latent, alone.edited_latent) < 1e-4


def test_a_threshold_of_one_keeps_the_source():
    res = minedit.edit(sd(), BOY, DOG, "p2p", blend=["boy"], blend_threshold=1, **SHORT)
    assert torch.equal(res.edited_latent, res.source_latent)


def test_maps_as_edited_or_own():
    """While "dog" reads the source's column, its edited map is that of "boy"; its own is another."""
    settings = {"blend": ["dog"], "blend_threshold": 0.97, "blend_start": 0.0, "cross_steps": 1.0, **SHORT}
    edit = [minedit.edit(sd(), BOY, DOG, "p2p", blend_maps=maps, **settings) for maps in ("edited", "own")]
    source = minedit.edit(sd(), BOY, DOG, "p2p", **settings | {"blend": ["boy"]})
    assert torch.equal(edit[0].edited_latent, source.edited_latent)
    assert not torch.equal(edit[0].edited_latent, edit[1].edited_latent)


def test_words_stand_for_every_place_in_either_prompt():
    encode = sd().tokenizer.encode
    pair = encode("a boy and a red cat"), encode("a boy and a red dog and a red cat")
    settings = P2PConfig(blend=["red", "a boy", "red dog"], blend_subtract="every cat")
    assert blend_words(sd().tokenizer, *pair, settings) == (([4, 0, 1], [4, 8, 0, 1, 4, 5]), ([5], [9]))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"blend": ["cat"]}, "blend: 'cat' is in neither prompt; expected a, boy, in, the, park, dog"),
        ({"blend": ["boy"], "blend_subtract": ["a cat"]}, "blend_subtract: 'a cat' is in neither prompt"),
        ({"blend": [""]}, "blend: '' is in neither prompt"),
        ({"blend_subtract": ["boy"]}, "blend_subtract has words, and blend has none to subtract them from; give both"),
        ({"blend": ["boy"], "blend_size": 16}, "blend_size is 16, and small has maps of sides 4, 8; expected one of"),
        ({"blend": 5}, r"blend is 5, expected texts, such as ['red', 'blue bird']"),
        ({"blend": {"boy": 1}}, "blend is {'boy': 1}, expected texts"),
        ({"blend": ["boy"], "blend_threshold": 1.5}, "blend_threshold is 1.5, expected a finite number, from 0 to 1"),
        ({"self_steps": (0.5, 0.1)}, "self_steps is (0.5, 0.1), expected a finite number, from 0 to 1, or two, such"),
    ],
)
def test_what_cannot_be_is_a_line(settings, said):
    with pytest.raises(MineditError) as error:
        minedit.edit(sd(), BOY, DOG, "p2p", **settings, **SHORT)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_adapedit_says_so_before_it_measures():
    ticks = []
    for wrong in ({"blend": ["cat"]}, {"blend": ["boy"], "blend_size": 16}):
        with pytest.raises(MineditError, match="^blend"):
            minedit.edit(sd(), BOY, DOG, progress=lambda *at: ticks.append(at), **wrong, **SHORT)
    assert not ticks


def test_from_the_command_line_and_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "load", lambda *_: sd())
    words = ["--blend", "boy,a dog", "--blend-subtract", "park", "--cross-words", "dog=0.4", "the park=0.1:0.9"]
    spans = ["--self-steps", "0.1:0.5", "--controller", "replace", "--blend-start", "0", "--steps", "3"]
    assert cli.main(["edit", BOY, DOG, "--method", "p2p", *words, *spans]) == 0
    stored = image.settings("out/0001-edited.png")
    assert stored["blend"] == ["boy", "a dog"] and stored["blend_subtract"] == ["park"]
    assert stored["cross_words"] == [["dog", 0.4], ["the park", [0.1, 0.9]]] and stored["self_steps"] == [0.1, 0.5]
    assert cli.main(["edit", "--from", "out/0001-edited.png", "--out", "again"]) == 0
    assert Path("out/0001-edited.png").read_bytes() == Path("again/0001-edited.png").read_bytes()
    Path("pairs.jsonl").write_text(
        f'{{"source": "{BOY}", "target": "{DOG}", "blend": "dog", "self_steps": [0, 0.2]}}\n'
        f'{{"source": "{BOY}", "target": "{DOG}", "blend": ["cat"]}}\n'
    )
    capsys.readouterr()
    assert cli.main(["edit", "--pairs", "pairs.jsonl", "--method", "p2p", "--out", "three"]) == 2
    assert "line 2: blend: 'cat' is in neither prompt" in capsys.readouterr().err


def test_words_leave_the_prompts_behind_them_alone():
    args = origin.parse(["edit", "--blend", "boy", "--blend", "dog,red bird", BOY, DOG])
    assert (args.source, args.target, args.blend) == (BOY, DOG, ["boy", "dog", "red bird"])


@pytest.mark.parametrize(
    "words, said",
    [
        (["--blend", "boy,,dog"], "found 'boy,,dog', expected WORD[,WORD], such as 'red,blue bird'"),
        (["--cross-words", "dog"], "WORD=X[:X], such as red=0.4 or red=0.1:0.9"),
        (["--cross-steps", "0.9:0.1"], "from 0 to 1, or two, such as 0.1:0.9"),
        (["--cross-steps", "0.1:0.2:0.3"], "from 0 to 1, or two, such as 0.1:0.9"),
        (["--controller", "replaced"], "auto or replace or refine"),
    ],
)
def test_what_the_command_line_cannot_read_is_a_line(words, said, capsys):
    assert cli.main(["edit", BOY, DOG, "--method", "p2p", *words]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("minedit: error: ") and said in line
