"""Each sweep of each method: its cases are those of the run, or a line says why not, before anything is drawn."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from seeded import fill
from small_model import small_model

import minedit
from minedit import cli
from minedit.config import MineditError
from minedit.record.sweeps import SWEEPS
from minedit.stack.unet import UNet
from minedit.verbs.counted import counted

PAIR, PHOTO = ("a boy", "a dog"), Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 40).convert("RGB")
WHOLE = "ddim, null-text, negative-prompt, edict"
FIRST = {"adapedit+": 1, "flow": 1, "sdedit": 1}  # of 2 steps, by the defaults
PLACES = {"heads": "middle_block.1*attn2", "layers": "middle_block.1*attn2", "swap": "middle_block.0"}


@pytest.fixture(scope="module")
def sd():
    return small_model()


def other(sd, **sizes):
    """The model with another UNet."""
    unet = replace(sd.config.unet, **sizes)
    return replace(sd, unet=fill(UNet(unet)).requires_grad_(False), config=replace(sd.config, unet=unet))


@pytest.fixture(scope="module")
def eight(sd):
    return other(sd, in_channels=8)


def swept(sd, kind, method, pair=PAIR, **more):
    layers = PLACES.get(kind)
    return minedit.sweep(sd, kind, *pair, method, layers=layers, **{"steps": 2, "guidance": 3.0} | more)


def refused(sd, kind, method, pair=PAIR, **more):
    """What is said, and how many rows the UNet has computed by then."""
    with counted(sd.unet) as rows, pytest.raises(MineditError) as error:
        swept(sd, kind, method, pair, **more)
    return str(error.value), sum(rows)


@pytest.mark.parametrize("method", minedit.METHODS)
@pytest.mark.parametrize("image", [None, PHOTO], ids=["drawn", "photograph"])
def test_every_sweep_of_every_method_does_what_it_says_or_says_why_not(sd, eight, method, image):
    inverts = image and getattr(minedit.METHODS[method], "inverts", True)
    alone = method in ("sdedit", "instruct-pix2pix")
    spared = "inversion direct" if inverts else "h-edit of a photograph" if image and method == "h-edit" else ""
    model = eight if method == "instruct-pix2pix" else sd
    for kind in ("words", "steps", "swap") if image else SWEEPS:
        if method == "instruct-pix2pix" and not image:
            said, rows = refused(model, kind, method)
            assert "draws the target alone" in said if kind == "swap" else "edits photographs" in said
        elif kind == "swap" and (alone or spared):
            said, rows = refused(model, kind, method, image=image)
            assert (f"{method} draws the target alone" if alone else f"{spared} leaves out some of it") in said
            assert ("such as p2p" in said) is not bool(inverts) and (f"--inversion {WHOLE}" in said) is bool(image)
        else:
            found, rows = swept(model, kind, method, image=image), 0
            names = [(each.row, each.column) for each in found.cases]
            first = FIRST.get(method, 0)
            assert (
                names
                == {
                    "heads": [("middle_block.1", "head 0"), ("middle_block.1", "head 1")],
                    "layers": [("middle_block.1", "cross-attention")],
                    "words": [("a", "change"), ("dog", "change")],
                    "steps": [(f"step {step}", "change") for step in range(first, 2)],
                    "swap": [("middle_block.0", "ResBlock")],
                }[kind]
            )
            assert all(each.changed > 0 for each in found.cases)
        assert rows == 0


@pytest.mark.parametrize("inversion", ["edit-friendly", "edict"])
def test_steps_that_an_inversion_leaves_out_are_not_swept(sd, inversion):
    found = swept(sd, "steps", "p2p", image=PHOTO, inversion=inversion, steps=3)
    assert [each.row for each in found.cases] == ["step 1", "step 2"]


@pytest.mark.parametrize("inversion", minedit.INVERSIONS)
def test_a_swap_of_a_photograph_goes_by_the_inversions_that_the_line_names(sd, inversion):
    more = {"image": PHOTO, "inversion": inversion} | ({"inner_steps": 1} if inversion == "null-text" else {})
    if inversion in WHOLE.split(", "):
        assert len(swept(sd, "swap", "p2p", **more).cases) == 1
    else:
        said, rows = refused(sd, "swap", "p2p", **more)
        assert f"inversion {inversion} leaves out some of it; expected --inversion {WHOLE}" in said and not rows


def test_the_same_words_twice_are_refused_before_anything_is_drawn(sd):
    for kind in SWEEPS:
        for more in ({}, {"image": PHOTO}):
            said, rows = refused(sd, kind, "adapedit", ("a boy", "A boy"), **more)
            assert said.startswith("source and target are the same words") and rows == 0
        assert swept(sd, kind, "p2p", ("a boy", "a boy"), reweight={"boy": 3.0}).cases
    assert swept(sd, "words", "sdedit", ("a boy", "a boy"), image=PHOTO).cases  # it draws a target all the same


def test_a_run_without_the_rows_that_a_sweep_needs_ends_at_its_first_step(sd):
    """Found out while it is drawn: no attribute says it of methods, nor of a latent consistency model."""
    steps = []
    for kind, more, line in (
        ("steps", {"guidance": 1.0}, "predicts no noise without the prompt"),
        ("swap", {"source_guidance": 1.0}, "flow computes no source.uncond at step 2"),
    ):
        steps.clear()
        assert line in refused(sd, kind, "flow", on_step=steps.append, steps=4, **more)[0] and len(steps) == 1
    said, _ = refused(other(sd, guidance_dim=8), "steps", "p2p")
    assert said.endswith("a step cannot go without guidance; expected another model")


def test_words_taken_away_are_those_of_the_instruction(eight):
    more = {"image": PHOTO, "instruction": "paint it red"}
    found = swept(eight, "words", "instruct-pix2pix", **more)
    assert [each.row for each in found.cases] == ["paint", "it", "red"]


def test_the_commands_take_the_settings_of_methods_and_photographs(tmp_path, monkeypatch, sd):
    monkeypatch.setattr("minedit.files.checkpoint.load", lambda *_: sd)
    PHOTO.save(tmp_path / "photo.png")
    photo = ("--image", str(tmp_path / "photo.png"))
    few, out = ("--steps", "2", "--guidance", "3"), ("--out", str(tmp_path))
    asked = ("--method", "p2p", "--cross-steps", ".3", "--inversion", "ddim", "--layers", "middle_block.0")
    assert cli.main(["swap", *PAIR, *few, *photo, *asked, *out]) == 0
    assert cli.main(["ablate-steps", *PAIR, *few, "--method", "adapedit+", "--skipped", ".5", *out]) == 0
    told = json.loads((tmp_path / "0001-swap.json").read_text())
    assert (told["cross_steps"], told["inversion"], told["image"]) == (0.3, "ddim", photo[1])
    with (tmp_path / "0001-swap.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    again = swept(sd, "swap", "p2p", image=PHOTO, inversion="ddim", cross_steps=0.3).rows
    assert [row["changed"] for row in rows] == [str(row["changed"]) for row in again]
    with (tmp_path / "0002-ablate-steps.csv").open(newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == ["", "step 1"]


@pytest.mark.parametrize(
    "argv, line",
    [
        (("ablate-words", "--tau", "3"), "--tau: found '3', expected a finite number, from 0 to 1"),
        (("ablate-words", "--strength", ".3"), "adapedit has no setting strength"),
        (("ablate-words", "--inversion", "ddim"), "there is no image to invert"),
        (("swap", "--image", "none.png"), "cannot read none.png"),
        (("swap", "--method", "sdedit"), "swap needs all that the source's layers give"),
    ],
)
def test_a_command_that_cannot_be_is_a_line(argv, line, tmp_path, capsys, monkeypatch, sd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minedit.files.checkpoint.load", lambda *_: sd)
    assert cli.main([argv[0], *PAIR, *argv[1:]]) == 2
    assert line in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_types_of_torch_are_dtypes(tmp_path, sd):
    minedit.save(sd, tmp_path / "model", dtype=torch.bfloat16)
    assert minedit.load(tmp_path / "model", dtype=torch.float16).dtype == torch.float16
    assert minedit.load(tmp_path / "model", device=torch.device("cpu"), dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(MineditError, match="dtype torch.float64 is unknown; expected float32, float16, bfloat16"):
        minedit.load(tmp_path / "model", dtype=torch.float64)
