"""Settings that have no effect, and the note that says so. Oracle: the edit without them, bit for bit."""

import re

import pytest
import torch
from small_model import small_model

import minedit
from minedit.cli import main
from minedit.methods.adapedit import AdapEditConfig
from minedit.methods.blending import Blending
from minedit.settings import settings

PAIR = "a boy in the park", "a sitting boy in the park"
RUN = {"seed": 1, "alpha_m": 0.013}  # which masks some pixels of the small model's maps
OTHER = {  # than the default
    **{"lambda_tau": 0.2, "lambda_sv": 0.5, "lambda_s": 0.5, "alpha_m": 0.02, "fwt": False, "dps": False},
    **{"mask": False, "tau": 0.6, "centre": False, "statistics": "mean", "fwt_steps": 1, "inserted": "gated"},
    **{"rest": 0.3, "rest_tau": 0.99, "sigma": 0.5, "reweight": {"boy": 2.0}},
}
SWITCHED = (
    *({}, {"tau": 0.4}, {"fwt": False}, {"dps": False}, {"fwt": False, "dps": False}, {"tau": 0.4, "mask": False}),
    *({"fwt": "one-pass"}, {"fwt": "one-pass", "tau": 0.4, "dps": False}),
)


@pytest.fixture(scope="module")
def sd():
    return small_model()


def named(res) -> set[str]:
    """The settings in the note."""
    said = [note.partition(": ")[2] for note in res.notes if note.startswith("these settings had no effect: ")]
    assert len(said) < 2 and not any("\n" in note for note in said)
    return {name for part in "".join(said).split("; ") for name in re.findall(r"\w+", part.partition(" beside ")[0])}


def test_every_setting_of_adapedit_is_here():
    assert set(OTHER) == set(settings(AdapEditConfig)) - set(settings(Blending))


@pytest.mark.parametrize("given", SWITCHED, ids=str)
def test_what_the_note_names_has_no_effect_and_all_else_has(sd, given):
    run = RUN | {"steps": 3 if given.get("fwt", True) else 5} | given  # of 5, one is not pinned
    base = minedit.edit(sd, *PAIR, **run)
    off = {name for names in AdapEditConfig(**given).off().values() for name in names} & set(OTHER)
    one_pass = given.get("fwt") == "one-pass"  # beside which fwt_steps is refused
    moved = {name: OTHER[name] for name in OTHER if name not in given and not (one_pass and name == "fwt_steps")}
    idle = minedit.edit(sd, *PAIR, **run | {name: moved[name] for name in moved if name in off})
    assert torch.equal(idle.edited_latent, base.edited_latent)
    assert named(idle) == off & (moved.keys() | given.keys())
    for name in moved.keys() - off:
        res = minedit.edit(sd, *PAIR, **run | {name: moved[name]})
        assert name not in named(res) and not torch.equal(res.edited_latent, base.edited_latent), name


@pytest.mark.parametrize(
    "method, given, idle",
    [
        ("adapedit", {}, {"blend_threshold": 0.8, "subtract_threshold": 0.8, "blend_start": 0.7, "blend_maps": "own"}),
        ("p2p", {"blend": ["boy"]}, {"subtract_threshold": 0.8}),
        ("h-edit", {}, {"reconstruction": 0.5}),
        ("masactrl", {"start_step": 0, "start_layer": 0}, {"foreground_level": 0.5}),
    ],
)
def test_of_other_methods(sd, method, given, idle):
    run = {"steps": 2, "seed": 1}
    base, res = (minedit.edit(sd, *PAIR, method, **run, **given, **more) for more in ({}, idle))
    assert torch.equal(res.edited_latent, base.edited_latent) and named(res) == set(idle) and not named(base)


def test_the_command_line_prints_it(tmp_path, capsys):
    minedit.save(small_model(), tmp_path / "small.safetensors")
    line = ["--steps", "1", "--model", str(tmp_path / "small.safetensors"), "--out", str(tmp_path)]
    assert main(["edit", *PAIR, "--tau", "0.5", "--rest", "0.3", "--lambda-tau", "2", *line]) == 0
    said = capsys.readouterr().out
    assert "note: these settings had no effect: lambda_tau, rest beside tau=0.5\n" in said
