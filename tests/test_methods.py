"""The one face of methods: a toy method of a few lines, and settings that are written once."""

import json
import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import small_model

import minedit
from minedit import cli, image
from minedit.cli import origin
from minedit.config import MineditError
from minedit.files import checkpoint
from minedit.methods import Told, Way, WordPlan
from minedit.methods.adapedit import AdapEditConfig
from minedit.methods.p2p import P2PConfig
from minedit.sampling.loop import Run
from minedit.settings import Setting, Settings, setting, settings

ROOT = Path(__file__).parent.parent
BOY, SITTING = "a boy in the park", "a sitting boy in the park"
KINDS = [Run, *minedit.METHODS.values()]


# --- a method in under 30 lines --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToyConfig(Settings):
    """Draw the target's latents towards the source's after every step, from a later step on."""

    share: float = setting(0.25, "share of the source's latents", low=0, high=1)
    skipped: int = setting(1, "steps left out", int, low=0, unit="steps")

    def prepare(self, job):
        def after(step):
            source, target = step.latents.split(1)
            return torch.cat([source, torch.lerp(target, source, self.share)])

        def told():
            words = tuple(WordPlan(word.text, "kept", 0.0) for word in job.target.words)
            return Told(words, (f"{self.share:g} of the source",))

        return Way(after=after, first=self.skipped, told=told)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(minedit.METHODS, "toy", ToyConfig)


def test_a_toy_method_is_a_method(toy, tmp_path, monkeypatch, capsys):
    sd, run = small_model(), {"seed": 3, "steps": 4}
    done = []
    res = minedit.edit(sd, BOY, SITTING, "toy", share=1, progress=lambda *at: done.append(at), **run)
    assert torch.equal(res.source_latent, res.edited_latent) and res.notes[0] == "1 of the source"
    assert done == [(1, 3), (2, 3), (3, 3)] and res.settings["share"] == 1
    plain = minedit.edit(sd, BOY, SITTING, "fixed-seed", **run)
    none = minedit.edit(sd, BOY, SITTING, "toy", share=0, skipped=0, **run)
    assert torch.equal(none.edited_latent, plain.edited_latent)
    with pytest.raises(MineditError, match="share is 2, expected a finite number, from 0 to 1"):
        minedit.edit(sd, BOY, SITTING, "toy", share=2, **run)

    monkeypatch.chdir(tmp_path)
    checkpoint.save(sd, tmp_path / "small.safetensors")
    words = ["edit", BOY, SITTING, "--method", "toy", "--share", "0.5", "--steps", "3", "--model", "small.safetensors"]
    assert cli.main(words) == 0
    stored = image.settings("out/0001-edited.png")
    assert stored["method"] == "toy" and stored["share"] == 0.5 and stored["skipped"] == 1
    assert cli.main(["edit", "--from", "out/0001-edited.png", "--out", "again"]) == 0
    assert Path("out/0001-edited.png").read_bytes() == Path("again/0001-edited.png").read_bytes()
    with pytest.raises(SystemExit):
        cli.main(["edit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "settings of --method toy" in said and "share of the source's latents, 0 to 1 (default: 0.25)" in said


def test_two_methods_may_have_a_setting_of_one_name(monkeypatch, tmp_path, capsys):
    @dataclass(frozen=True)
    class Other(Settings):
        """Another method."""

        sigma: int = setting(3, "something else", low=0, high=9)

    monkeypatch.setitem(minedit.METHODS, "other", Other)
    monkeypatch.chdir(tmp_path)
    for method, value, status in (("other", "7", "of no model"), ("other", "0.5", "sigma is 0.5"), ("p2p", "7", "p2p")):
        assert cli.main(["edit", BOY, SITTING, "--method", method, "--sigma", value, "--model", "of no model"]) == 2
        assert status in capsys.readouterr().err


def test_none_can_be_typed_where_it_is_a_value():
    own = settings(minedit.METHODS["adapedit"])
    assert own["sigma"].read("None") is None and own["sigma"].read("0.5") == 0.5
    with pytest.raises(ValueError):
        own["rest"].read("None")


def test_edit_names_no_method():
    code = (ROOT / "minedit" / "verbs" / "edit.py").read_text().lower()
    assert not [name for name in (*minedit.METHODS, "adapedit", "p2p", "prompt-to-prompt", "fixed") if name in code]


def test_a_method_sees_what_its_rows_and_predictions_are():
    """Every part of a Way: own latents to start from, own noise, layers that report, one row."""
    seen = []

    @dataclass(frozen=True)
    class Every(Settings):
        """All of it."""

        def prepare(self, job):
            start = torch.zeros(1, 4, 8, 8)

            def predict(latents, step, t, attn, context):
                seen.append((step, t, dict(attn.watch)))
                return latents

            told = Told(tuple(WordPlan(word.text, "kept", 0.0) for word in job.target.words))
            hooks = {"watch": lambda step: {"layer": bool(step)}, "predict": predict, "start": start}
            return Way(prompts=(job.source.text,), told=lambda: told, **hooks)

    minedit.METHODS["every"] = Every
    try:
        res = minedit.edit(small_model(), BOY, SITTING, "every", steps=2)
    finally:
        del minedit.METHODS["every"]
    assert seen == [(0, 501, {"layer": False}), (1, 1, {"layer": True})]
    assert not res.source_latent.any() and not res.edited_latent.any()


# --- a setting is written once ---------------------------------------------------------------------------------------


def test_every_setting_says_what_it_is(capsys):
    with pytest.raises(SystemExit):
        cli.main(["edit", "--help"])
    said = " ".join(re.sub(r"-\n\s+", "-", capsys.readouterr().out).split())
    for kind in KINDS:
        assert set(settings(kind)) == {field.name for field in fields(kind)}
        for name, each in settings(kind).items():
            assert each.help and f"--{name.replace('_', '-')}" in said and each.help in said


@pytest.mark.parametrize("kind", KINDS)
def test_numpys_numbers_are_numbers_and_bools_are_not(kind):
    for name, each in settings(kind).items():
        if each.kind in (int, float) and not each.late:
            limit = np.float32(0.5) if each.kind is float else np.int64(7)
            made = kind(**{name: limit})
            assert getattr(made, name) == limit and type(getattr(made, name)) is each.kind
            json.dumps(getattr(made, name))
            for wrong in (True, "1", float("nan"), float("inf"), -1, None if not each.none else [], 10**400):
                with pytest.raises(MineditError, match=f"^{name} is .*, expected a (whole|finite) number"):
                    kind(**{name: wrong})


def test_factors_of_words():
    assert P2PConfig(reweight={"boy": 2, 3: np.float64(0.5)}).reweight == (("boy", 2), (3, 0.5))
    for wrong in ("boy=2", 5, None, [["boy"]], {"boy": "2"}, {"boy": True}, {1.5: 2}, {True: 2}, {"boy": float("nan")}):
        with pytest.raises(MineditError, match="reweight") as error:
            P2PConfig(reweight=wrong)
        assert "\n" not in str(error.value)


def test_a_wrong_value_is_shown_in_part():
    with pytest.raises(MineditError, match=r"x is '9{59} \.\.\., expected a or b"):
        Setting("", str, choices=("a", "b")).check("x", "9" * 10**5)
    with pytest.raises(MineditError, match="fwt_steps is 5, expected None: one-pass"):
        AdapEditConfig(fwt="one-pass", fwt_steps=5)


@pytest.mark.parametrize(
    "name, value", [("steps", "50"), ("guidance", None), ("lambda_s", [1]), ("dps", 1), ("tau", "x")]
)
def test_settings_in_a_picture_are_checked_too(name, value, tmp_path, capsys):
    stored = {"verb": "edit", "source": BOY, "target": SITTING, "method": "adapedit", "seed": 0, "model": None}
    picture = tmp_path / "x.png"
    image.save(picture, image.Image.new("RGB", (8, 8)), {**stored, "attention": "auto", name: value})
    assert cli.main(["edit", "--from", str(picture)]) == 2
    assert f"the {name} in {picture} is {value!r}, expected" in capsys.readouterr().err


def test_the_page_of_methods_is_current(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_methods

    assert (ROOT / "docs" / "methods.md").read_text() == make_methods.page(), "run: make methods"


def test_each_has_a_picture_and_the_command_that_draws_it(monkeypatch):
    """docs/methods.md; the command and the caption name the same edit, of that method or inversion."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from examples import INSTRUCTED, STRIPS

    sections = re.split(r"^##+ ", (ROOT / "docs" / "methods.md").read_text(), flags=re.M)
    sections = {text.partition("\n")[0]: text for text in sections}
    sizes = {file: file.stat().st_size for file in (ROOT / "docs" / "methods").iterdir()}
    assert max(sizes.values()) < 25 * 1024 and sum(sizes.values()) < 300 * 1024
    for name in (*minedit.METHODS, *minedit.INVERSIONS):
        (file,) = re.findall(r"^!\[.+\]\((methods/[\w-]+\.webp)\)$", sections[name], re.M)
        with image.Image.open(ROOT / "docs" / file) as strip:
            assert strip.width > 500 and len(strip.convert("RGB").getcolors(2**20)) > 1000
        (line,) = re.findall(r"^```sh\nminedit (edit .+)\n```$", sections[name], re.M)
        args = origin.parse(shlex.split(line))
        if name in minedit.INVERSIONS:
            assert args.inversion == name and args.image.is_relative_to("docs/methods")
            continue
        (source, target, seed), *_ = STRIPS.get(name) or INSTRUCTED[name]
        assert (args.method, args.target, args.seed) == (name, target, [seed])
        assert args.source == source or args.image == Path(f"docs/methods/{source}.png")
