"""What the command line and the public face are given: numbers of every kind, names with ~, sizes beyond memory."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import small_model

import minedit
from minedit import cli, image
from minedit.cli import options, origin, train
from minedit.config import MineditError
from minedit.files import checkpoint
from minedit.sampling import ddim, memory
from minedit.sampling.loop import Run

BOY, SITTING = "a boy in the park", "a sitting boy in the park"


@pytest.fixture(scope="module")
def sd():
    return small_model()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(checkpoint, "load", lambda *_: small_model())
    return lambda *argv: cli.main([*map(str, argv)])


def failed(capsys) -> str:
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("minedit: error: ") and len(line) < 1500
    return line


# --- paths -----------------------------------------------------------------------------------------------------------


def test_every_path_knows_home(run):
    """--out=~/x made a folder named ~: no shell expands it there."""
    assert run("edit", BOY, SITTING, "--steps", 1, "--out=~/x") == 0
    assert Path("home/x/0001-edited.png").is_file() and not Path("~").exists()
    assert run("edit", "--from=~/x/0001-edited.png", "--out=~/y") == 0
    Path("home/pairs.jsonl").write_text('{"source": "a boy", "target": "a tall boy"}')
    assert run("edit", "--pairs=~/pairs.jsonl", "--steps", 1, "--out=~/y") == 0
    assert Path("home/y/0002-edited.png").is_file()


def test_no_path_option_is_without_home():
    code = "".join(path.read_text() for path in Path(options.__file__).parent.glob("*.py"))
    assert "type=Path" not in code and code.count("type=path") > 8


@pytest.mark.parametrize("option", ["--from", "--pairs", "--preview"])
@pytest.mark.parametrize("name", ["n" * 300, "~nobody-of-that-name/x"])
def test_names_that_cannot_be(run, capsys, monkeypatch, option, name):
    assert run("edit", *([BOY, SITTING] if option == "--preview" else []), option, name) == 2
    assert "n" * 301 not in failed(capsys)


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_a_picture_too_large_for_memory_is_a_line_before_it_is_begun(run, sd, capsys):
    """It was begun, and the system ended the process."""
    assert run("generate", BOY, "--height", 2**14, "--width", 2**14) == 2
    said = failed(capsys)
    assert "16384x16384 pixels need about" in said and "GB are free on cpu; choose a smaller --height" in said
    for sides in ({"height": 2**20, "width": 2**20}, {"height": 8 * 10**15}):
        with pytest.raises(MineditError, match="GB of memory"):
            minedit.edit(sd, BOY, SITTING, **sides)


# Of Stable Diffusion v1 on a CPU, by benchmarks/memory.py: attention, rows, side, MB of the UNet and of the decoder.
FULL_SIZE = (("sdpa", 1, 512, 440, 940), ("sdpa", 2, 512, 837, 1896), ("eager", 1, 512, 3582, 940))


def test_memory_is_estimated_by_what_is_held(sd, monkeypatch):
    """Measured with the embedded model, 2 rows: 333 MB decode 512x512, 4.7 GB decode 1024x1024, 575 MB its UNet."""
    model = minedit.load()
    assert 200e6 < memory.needed(model, 2, 512, 512) < 400e6
    assert 3e9 < memory.needed(model, 2, 1024, 1024) < 6e9
    with torch.device("meta"):
        unet, vae = minedit.UNet(minedit.SD14.unet), minedit.VAE(minedit.SD14.vae)
    for attention, rows, side, of_unet, of_decoder in FULL_SIZE:
        full = replace(sd, unet=unet, vae=vae, config=minedit.SD14, attention=attention)
        assert of_unet == pytest.approx(memory.of_unet(full, rows, side, side) / 1e6, rel=0.15)
        assert of_decoder == pytest.approx(memory.of_decoder(full, rows, side, side) / 1e6, rel=0.15)
    monkeypatch.setattr(memory, "free", lambda _: memory.needed(sd, 2, 64, 64) - 1)
    with pytest.raises(MineditError, match="2 pictures of 64x64 pixels need"):
        minedit.edit(sd, BOY, SITTING, steps=1)
    assert minedit.generate(sd, BOY, steps=1).images


def test_free_memory_is_a_sensible_number():
    assert 2**26 < memory.free(torch.device("cpu")) < 2**50


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_large_seeds_are_seeds(run, sd, seed):
    """Other programs draw them, and torch takes them."""
    expected = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(ddim.noise(seed, 8, 8), expected)
    assert run("generate", BOY, "--seed", seed, "--steps", 1) == 0
    assert image.settings("out/0001-image.png")["seed"] == seed
    assert minedit.edit(sd, BOY, SITTING, seed=seed, steps=1, eta=1.0).settings["seed"] == seed


@pytest.mark.parametrize("seed", [2**64, -1, 10**5000, True, 1.0], ids=("2**64", "-1", "huge", "True", "1.0"))
def test_other_seeds_are_a_line(sd, seed):
    with pytest.raises(MineditError, match="seed is .*, expected a whole number, 0 or more"):
        minedit.generate(sd, BOY, seed=seed)


def test_numpys_numbers_are_numbers_at_every_door(sd):
    whole, part = np.int64, np.float32
    plain = minedit.generate(sd, [BOY, "a dog"], seed=[1, 2], steps=2, guidance=5, height=64).latents
    for seeds in ([whole(1), whole(2)], np.array([1, 2]), (np.uint8(1), 2)):
        sides = {"height": whole(64), "steps": whole(2), "guidance": part(5)}
        assert torch.equal(minedit.generate(sd, [BOY, "a dog"], seed=seeds, **sides).latents, plain)
    more = {"seed": np.uint64(3), "steps": whole(2), "eta": part(0.5), "width": whole(64)}
    res = minedit.edit(sd, BOY, SITTING, "p2p", reweight={"boy": part(2), whole(0): 1}, cross_steps=part(0.5), **more)
    same = minedit.edit(sd, BOY, SITTING, "p2p", reweight={"boy": 2, 0: 1}, cross_steps=0.5, seed=3, steps=2, eta=0.5)
    assert torch.equal(res.edited_latent, same.edited_latent)
    assert type(res.settings["seed"]) is int and type(res.settings["eta"]) is float


@pytest.mark.parametrize("number", [10**99, Fraction(1, 3)], ids=str)
def test_numbers_of_other_kinds_can_be_computed_with_and_stored(sd, number):
    """A whole number of a hundred digits passed for a float, and torch could not take it."""
    assert type(Run(guidance=number).guidance) is float


def test_prompts_are_texts(sd):
    for wrong in (5, None, {"a"}, b"a", [5], [["a"]]):
        with pytest.raises(MineditError, match="expected a text"):
            minedit.generate(sd, wrong, steps=1)


def test_fwt_says_what_it_takes(sd, run, capsys):
    with pytest.raises(MineditError, match="fwt is 'twice', expected True or False or one-pass"):
        minedit.edit(sd, BOY, SITTING, fwt="twice")
    assert run("edit", BOY, SITTING, "--fwt=twice") == 2 and "one-pass" in failed(capsys)


def test_the_public_face_says_what_it_wants(sd):
    """Tracebacks from deep inside."""
    edit, load = (lambda **more: minedit.edit(sd, BOY, SITTING, **more)), minedit.load
    calls = {
        "5 is no path": lambda: load(5),
        "device None cannot be used": lambda: load(device=None),
        "device 'hpu' cannot be used": lambda: load(device="hpu"),
        "reweight is 'boy=2'": lambda: edit(method="p2p", reweight="boy=2"),
        "prompts is 5": lambda: minedit.generate(sd, 5),
        "the model is 5": lambda: minedit.edit(5, BOY, SITTING),
        "the model is None": lambda: minedit.generate(None, BOY),
    }
    for says, call in calls.items():
        with pytest.raises(MineditError, match=says):
            call()


def test_a_scale_that_is_no_number_is_a_line(run, capsys):
    assert run("generate", BOY, "--lora", "good:nan") == 2 and "expected a finite scale" in failed(capsys)


# --- prompts behind options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, found",
    [
        (["--seed", 1, 2], {"seed": [1, 2]}),
        (["--seed", 1], {"seed": [1]}),
        (["--fwt"], {"fwt": True}),
        (["--fwt", "one-pass"], {"fwt": "one-pass"}),
        (["--method", "p2p", "--reweight", "boy=2", "3=4"], {"reweight": [("boy", 2.0), ("3", 4.0)]}),
        (["--seed", 1, 2, "--fwt"], {"seed": [1, 2], "fwt": True}),
        (["--no-fwt", "--fwt"], {"fwt": True}),
        (["--fwt", "--no-fwt"], {"fwt": False}),
        (["--steps", 3], {"steps": 3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("source", [BOY, "3 boys"])
def test_options_leave_the_prompts_behind_them_alone(given, found, source):
    """`minedit edit --seed 1 2 "a" "b"` took the prompts for seeds."""
    words = [str(word) for word in given]
    for argv in (["edit", *words, source, SITTING], ["edit", source, SITTING, *words]):
        args = vars(origin.parse(argv))
        assert {"source": source, "target": SITTING, **found}.items() <= args.items()


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--seed", "x"], "found 'x', expected a whole number"),
        (["--seed", "1", "-1"], "found '-1'"),
        (["--reweight", "boy"], "WORD=FACTOR"),
        (["--seed"], "expected at least one"),
        (["--", "--seed"], "unrecognized arguments: --seed"),
    ],
    ids=str,
)
def test_what_they_cannot_read_is_still_said(run, capsys, argv, says):
    assert run("edit", BOY, SITTING, *argv) == 2 and says in failed(capsys)


def test_training_does_not_write_over_the_embedded_weights_unasked():
    assert train._arguments(["assemble"]).out == Path("out/weights")


def test_save_is_public(sd, tmp_path):
    minedit.save(sd, tmp_path / "small.safetensors")
    assert minedit.load(tmp_path / "small.safetensors").config == sd.config and "save" in minedit.__all__


# --- given twice -----------------------------------------------------------------------------------------------------


def test_an_option_of_several_values_given_again_adds_to_them(run):
    """The later silently took the place of the earlier."""
    assert origin.parse(["generate", "a", "--seed", "1", "2", "--steps", "5", "--seed", "3"]).seed == [1, 2, 3]
    line = ["--method", "p2p", "--reweight", "boy=2", "--reweight", "park=3", "--seed", "7"]
    assert origin.parse(["edit", BOY, SITTING, *line]).reweight == [("boy", 2.0), ("park", 3.0)]
    assert run("edit", BOY, SITTING, *line, "--steps", 1) == 0
    again = origin.parse(["edit", "--from", "out/0001-edited.png", "--reweight", "sitting=4", "--seed", "8"])
    assert again.reweight == [("sitting", 4.0)] and again.seed == [8]  # in place of what the picture says
    assert origin.parse(["edit", "--from", "out/0001-edited.png"]).seed == [7]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((("boy", 2), ("boy", 3)), "reweight has 'boy' 2 times; give it one factor"),
        ((("boy", 2), ("Boy", 2)), "reweight gives the word 'boy' two factors, as 'boy' and 'Boy'; give it one"),
        ((("sitting", 2), (1, 3)), "reweight gives the word 'sitting' two factors, as 'sitting' and 1; give it one"),
        ((("sitting boy", 2), ("boy", 3)), "the word 'boy' two factors, as 'sitting boy' and 'boy'; give it one"),
    ],
)
def test_a_word_given_two_factors_is_a_line_at_every_door(run, sd, capsys, words, says):
    with pytest.raises(MineditError, match=re.escape(says)):
        minedit.edit(sd, BOY, SITTING, "p2p", reweight=words, steps=1)
    said = [f"{word}={factor}" for word, factor in words]
    for line in (["--reweight", *said], ["--reweight", said[0], "--reweight", said[1]]):
        assert run("edit", BOY, SITTING, "--method", "p2p", *line) == 2
        assert says.replace(" and 1;", " and '1';") in failed(capsys)
    row = {"source": BOY, "target": SITTING, "method": "p2p", "reweight": words}
    Path("pairs.jsonl").write_text(json.dumps(row))
    assert run("edit", "--pairs", "pairs.jsonl") == 2
    assert says in failed(capsys)
