"""Word maps, sweeps, their commands, docs/tensors.md. Oracles: hooks of torch's own on the projections and outputs."""

from __future__ import annotations

import csv
import json
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_model import small_model

import minedit
from minedit import cli
from minedit.config import SD14, MineditError
from minedit.image import difference
from minedit.record.names import catalogue
from minedit.record.sweeps import SWEEPS
from minedit.record.words import FIRST
from minedit.record.words import STEPS as LOOKS
from minedit.verbs import results

ROOT = Path(__file__).parent.parent
PAIR = "a boy in the park", "a sitting boy in the park"
RUN = {"steps": 3, "guidance": 3.0}


@pytest.fixture(scope="module")
def sd():
    return small_model()


class Hooked:
    """Attention of every cross-attention layer at every call, from what its to_q and to_k gave: float64 [B,H,N,T]."""

    def __init__(self, sd):
        self.q, self.found, self.hooks = {}, {}, []
        for site in sd.unet.sites:
            if site.kind == "cross":
                layer = sd.unet.get_submodule(site.name)
                for part in ("to_q", "to_k"):
                    hook = getattr(layer, part).register_forward_hook(self.note(site, part))
                    self.hooks.append(hook)

    def note(self, site, part):
        def hook(module, args, out):
            x = out.double().unflatten(-1, (site.heads, -1)).transpose(1, 2)
            if part == "to_q":
                self.q[site.name] = x
                return
            q = self.q[site.name]
            self.found.setdefault(site, []).append((q @ x.mT / q.shape[-1] ** 0.5).softmax(-1))

        return hook

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def map(self, row, tokens, keep=lambda site: True):
        maps = []
        for site, calls in self.found.items():
            if keep(site):
                flat = torch.stack(calls)[:, row][..., tokens].sum(-1).mean((0, 1))
                side = int(len(flat) ** 0.5)
                maps.append(flat.view(1, 1, side, side))
        wide = [F.interpolate(each, (8, 8), mode="bilinear", align_corners=False) for each in maps]
        return torch.stack(wide).mean(0)[0, 0].float()


def test_a_words_map_is_its_share_of_attention(sd):
    """Of a batch: a phrase of two words, a plural, a word that stands twice, one that a prompt has not."""
    prompts = ["a red shirt and a red hat", "three dogs"]
    with Hooked(sd) as hooked:
        out = minedit.generate(sd, prompts, seed=5, **RUN)
    maps = minedit.word_maps(out, "red shirt", "red", "dog")
    assert maps.values.shape == (2, 3, 8, 8) and maps.values.labels["picture"] == ("0", "1")
    for row, word, picture, tokens in ((2, "red shirt", "0", [2, 3]), (2, "red", "0", [2, 6]), (3, "dog", "1", [2])):
        assert torch.allclose(maps.map(word, picture), hooked.map(row, tokens), atol=1e-6), word
    assert maps.map("dog", "0").isnan().all()
    coarse = minedit.word_maps(out, "red", layers="middle_block.*")
    oracle = hooked.map(2, [2, 6], lambda site: site.place == "mid")
    assert torch.allclose(
        F.interpolate(coarse.map("red", "0")[None, None], (8, 8), mode="bilinear")[0, 0], oracle, atol=1e-6
    )
    sheet = maps.overlay()
    assert sheet.width > 2 * 256 and sheet.height > 3 * 256
    assert maps.overlay("red", "0").size == (256, 256)


def test_maps_of_an_edit_are_before_and_after(sd):
    res = minedit.edit(sd, *PAIR, "p2p", seed=4, **RUN, cross_steps=1.0)
    maps = minedit.word_maps(res, "boy", "sitting")
    with minedit.recorded(sd, "*.attn2.columns*", rows="cond") as tape:
        minedit.edit(sd, *PAIR, "p2p", seed=4, **RUN, cross_steps=1.0)
    assert maps.values.labels["picture"] == ("source", "target", "edited")
    assert torch.allclose(maps.map("boy", "edited"), maps.map("boy", "source"), atol=1e-6)  # pinned at every step
    assert not torch.allclose(maps.map("boy", "target"), maps.map("boy", "source"), atol=1e-4)
    assert torch.equal(maps.map("sitting", "edited"), maps.map("sitting", "target"))
    assert maps.map("sitting", "source").isnan().all() and len(tape) == 14
    with minedit.recorded(sd, "*.attn2.columns", rows="cond", words=["boy"]) as tape:
        minedit.edit(sd, *PAIR, "p2p", seed=4, **RUN, cross_steps=1.0)
    again = minedit.word_maps(tape, "boy")
    assert torch.equal(again.map("boy", "target.cond"), maps.map("boy", "target"))
    copy = pickle.loads(pickle.dumps(res))
    with pytest.raises(MineditError, match="without its model"):
        minedit.word_maps(copy, "boy")
    assert isinstance(copy, results.EditResult) and torch.equal(copy.edited_latent, res.edited_latent)


def test_maps_of_a_picture(sd):
    """Noised anew to each time from FIRST on: as many calls, the first of pixels that are the picture's and noise."""
    picture = Image.new("RGB", (64, 64), "teal")
    with Hooked(sd) as hooked:
        maps = minedit.word_maps(picture, "dog", sd=sd, prompt="a dog")
    assert all(len(calls) == LOOKS - FIRST for calls in hooked.found.values())
    assert torch.allclose(maps.map(), hooked.map(1, [2]), atol=1e-6)
    for given, fault in (({}, "the model is None"), ({"sd": sd}, "prompt is missing")):
        with pytest.raises(MineditError, match=fault):
            minedit.word_maps(picture, "dog", **given)
    with pytest.raises(MineditError, match="the word 'cat' is in none of the prompts; their words are a, dog"):
        minedit.word_maps(picture, "cat", sd=sd, prompt="a dog")


def test_a_layer_taken_away_is_one_that_adds_nothing(sd):
    """A hook of torch's that zeroes the target's rows gives the same pictures; Prompt-to-Prompt has no other pass."""
    name = "output_blocks.1.1.transformer_blocks.0.attn"
    found = minedit.sweep(sd, "layers", *PAIR, "p2p", layers="output_blocks.1.*", **RUN)
    assert [(each.row, each.column) for each in found.cases] == [
        *[("output_blocks.1.1", "self-attention"), ("output_blocks.1.1", "cross-attention")]
    ]
    for number, case in zip("12", found.cases, strict=True):

        def zeroed(module, args, out):
            out = out.clone()
            out[[1, 3]] = 0
            return out

        hook = sd.unet.get_submodule(name + number).register_forward_hook(zeroed)
        try:
            oracle = minedit.edit(sd, *PAIR, "p2p", **RUN)
        finally:
            hook.remove()
        assert case.image.tobytes() == oracle.edited.tobytes()
        assert case.changed == difference(oracle.edited, found.plain.edited)
        assert case.from_source == difference(oracle.edited, found.plain.source)


def test_each_sweep_takes_away_what_it_says(sd):
    """Recorded while a case's patches hold."""
    site = "output_blocks.1.1.transformer_blocks.0.attn2"
    cases = {kind: list(make(sd, PAIR[1], None, range(RUN["steps"]))) for kind, make in SWEEPS.items()}
    assert [len(cases[kind]) for kind in ("heads", "layers", "words", "steps", "swap")] == [14, 14, 6, 3, 22]

    def recorded(case, *names):
        with minedit.patched(sd, case.patches, steps=case.steps), minedit.recorded(sd, names) as tape:
            minedit.edit(sd, *PAIR, "p2p", **RUN)
        return [tape[name].at(row=tape[name].labels["row"][-1]) for name in names]

    head = next(case for case in cases["heads"] if f"{site}.heads" in case.patches)
    values = recorded(head, f"{site}.heads")[0].tensor
    assert not values[:, 0].any() and values[:, 1].any()
    with minedit.recorded(sd, f"{site}.columns.edited") as before:  # what the patch is given
        columns = recorded(cases["words"][1], f"{site}.columns.edited")[0].tensor
    was = before[f"{site}.columns.edited"].at(row="target.cond").tensor
    rest = was.index_fill(-1, torch.tensor(2), 0)  # the others share what the word had, each by its own part
    assert torch.allclose(columns, rest * (1 + was[..., 2:3] / rest.sum(-1, keepdim=True)), atol=1e-6)
    eps, uncond = recorded(cases["steps"][1], "eps", "eps.uncond")
    assert torch.equal(eps.at(step=1).tensor, uncond.at(step=1).tensor)
    assert not torch.equal(eps.at(step=0).tensor, uncond.at(step=0).tensor)
    swap = next(case for case in cases["swap"] if f"{site}.out" in case.patches)
    with minedit.patched(sd, swap.patches), minedit.recorded(sd, f"{site}.out") as tape:
        minedit.edit(sd, *PAIR, "fixed-seed", **RUN)
    rows = (tape[f"{site}.out"].at(row=row).tensor for row in ("source.cond", "target.cond"))
    assert torch.equal(*rows)
    with pytest.raises(MineditError, match="the sweep 'eyes' is unknown; expected one of heads, layers"):
        minedit.sweep(sd, "eyes", *PAIR)


@pytest.mark.parametrize("verb", ["ablate-layers", "ablate-words"])  # the others are made as these
def test_a_sweep_ends_in_a_picture_and_a_csv(verb, tmp_path, capsys):
    few = ["--layers", "middle_block.1*"] if verb == "ablate-layers" else []
    assert cli.main([verb, "a boy", "a dog", "--steps", "1", *few, "--out", str(tmp_path)]) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"0001-{verb}.{kind}" for kind in ("csv", "json", "png")]
    with (tmp_path / names[0]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        len(rows) == 1 + {"ablate-heads": 4, "ablate-layers": 2, "ablate-words": 2, "ablate-steps": 1, "swap": 2}[verb]
    )
    assert float(rows[1]["from_source"]) >= 0 and json.loads((tmp_path / names[1]).read_text())["edits"] == len(rows)
    with Image.open(tmp_path / names[2]) as picture:
        assert picture.width > 320 and len(picture.getcolors(2**20)) > 100
    assert capsys.readouterr().out


def test_maps_are_written(tmp_path, capsys):
    line = ["maps", "a brown dog in the park", "--words", "dog", "park", "--steps", "2", "--out", str(tmp_path)]
    assert cli.main(line) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"0001-{n}" for n in ("image.png", "map-dog.png", "map-park.png", "maps.png", "maps.json")}
    assert re.search(r"dog: at most \d+ % of a pixel's attention", capsys.readouterr().out)
    image = str(tmp_path / "0001-image.png")
    assert cli.main([*line[:3], "dog", "--image", image, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "0002-map-dog.png").is_file()
    assert cli.main(["maps", "a dog", "--out", str(tmp_path)]) == 2
    assert "no word was given" in capsys.readouterr().err


def test_the_page_of_tensors_is_what_the_code_makes(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
    import make_tensors

    text = (ROOT / "docs" / "tensors.md").read_text(encoding="utf-8")
    assert text == make_tensors.page(), "run: make tensors"
    named = set()
    for table in text.split("\n| module | ")[1:]:
        head, _, *rows = table.split("\n\n")[0].splitlines()
        ends = re.findall(r"`\.([\w.]+)`", head)
        for row in rows:
            name, *cells = (cell.strip(" `") for cell in row.strip("|").split("|"))
            named |= {f"{name}.{end}" for end, cell in zip(ends, cells, strict=True) if cell}
    named |= set(re.findall(r"^\| `(\w[\w.]*)` \| (?:channel|token)", text, re.M))
    assert named == set(catalogue(SD14))


def test_the_page_of_tensors_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tensors.md").read_text(encoding="utf-8"), re.S)
    space: dict = {}
    for block in blocks:
        exec(block, space)
    assert "<step 2, row 1, head 4" in capsys.readouterr().out and len(blocks) == 2 and space["res"].edited
