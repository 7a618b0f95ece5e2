"""The page of an edit. Oracles: the tape of the same run, float64 formulas, a matrix that is known, html.parser."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from small_model import small_model

import minedit
from minedit.cli import main
from minedit.config import MineditError
from minedit.report import blocks, gather, preview
from minedit.report.arrays import packed, taken, unpacked
from minedit.report.page import xray

PAIR = "a boy in the park", "a sitting boy in the park"
FROM = (0, None, 1, 2, 3, 4)  # for each word of the target, the source's
STEPS, EVERY, SHOWN = 4, 2, [0, 2, 3]
RUN = {"steps": STEPS, "guidance": 3.0}
HALF = 2.0**-10  # float16 holds a number to half of this
CONTROLS = ("button", "input", "select", "canvas", "img")


@pytest.fixture(scope="module")
def sd():
    return small_model()


@pytest.fixture(scope="module")
def both(sd):
    """A page, and the tape of its run."""
    names = ["*.attn2.columns*", "*.attn2.hidden", "x0", "eps.cond"]
    names += ["input_blocks.?.out", "middle_block.out", "output_blocks.?.out"]
    with minedit.recorded(sd, names, budget=None) as tape:
        page = xray(sd, *PAIR, every=EVERY, **RUN)
    return page, tape


class Read(HTMLParser):
    """What a page loads, its controls with their labels, its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads, self.controls, self.labels, self.scripts, self.ids, self.open = [], [], set(), [], set(), []
        self.title = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.loads += [found[name] for name in ("src", "href", "srcset", "action", "data", "poster") if name in found]
        self.ids |= {found["id"]} if "id" in found else set()
        self.labels |= {found["for"]} if tag == "label" and "for" in found else set()
        if tag in CONTROLS:
            wrapped = any(name == "label" for name, _ in self.open)
            self.controls.append((tag, found, wrapped, []))
        if tag == "script":
            self.scripts.append((found.get("type"), []))
        if tag not in ("input", "img", "meta", "br", "link"):
            self.open.append((tag, len(self.controls)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "script":
            self.scripts[-1][1].append(data)
        if self.open and self.open[-1][0] == "title":
            self.title += data
        if self.open and self.open[-1][0] == "button":
            self.controls[-1][3].append(data)


def held(text: str) -> dict:
    (data,) = (parts for kind, parts in Read(text).scripts if kind == "application/json")
    return json.loads("".join(data), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_maps_are_the_tapes(both, sd):
    page, tape = both
    data = held(page.html)
    prompts = [sd.tokenizer.encode(text) for text in PAIR]
    assert data["steps"] == SHOWN and [word["text"] for word in data["words"]] == PAIR[1].split()
    assert len(data["maps"]) == sum(site.kind == "cross" for site in sd.unet.sites)
    for each in data["maps"]:
        found = unpacked(each)  # [S, 3, W, h, w]
        for kind, (row, suffix) in enumerate((("source", ""), ("target", ""), ("target", ".edited"))):
            values = tape[f"{each['site']}.columns{suffix}"].at(row=f"{row}.cond").maps().tensor.double()
            for word, old in enumerate(FROM):
                index = word if row == "target" else old
                if index is None:
                    assert found[:, kind, word].isnan().all()
                    continue
                tokens = list(prompts[row == "target"].words[index].tokens)
                expected = values[SHOWN].mean(1)[..., tokens].sum(-1)
                torch.testing.assert_close(found[:, kind, word].double(), expected, rtol=HALF, atol=1e-7)


def test_latents_and_numbers_are_the_tapes(both, sd):
    page, tape = both
    data = held(page.html)
    x0 = torch.stack([tape["x0"].at(row=row).tensor for row in ("source", "target")], 1)[SHOWN]
    assert torch.equal(unpacked(data["x0"]), x0.half().float())
    numbers, counts, apart = (unpacked(data[name]).double() for name in ("numbers", "counts", "apart"))
    names = [block["name"] for block in data["blocks"]]
    for b, name in enumerate(names):
        values = tape["eps.cond" if name == "out" else f"{name}.out"]
        both_rows = [
            values.at(row=f"{row}.cond" if f"{row}.cond" in values.labels["row"] else row).tensor[SHOWN].double()
            for row in ("source", "target")
        ]
        for r, x in enumerate(both_rows):
            x = x.flatten(1)
            means = x.mean(1)
            std = (x - means[:, None]).square().mean(1).sqrt()
            expected = torch.stack([x.square().mean(1).sqrt(), means, std, x.abs().amax(1)], 1)
            torch.testing.assert_close(numbers[:, r, b], expected, rtol=HALF, atol=1e-4)
            for s in range(len(SHOWN)):
                scaled = ((x[s] - means[s]) / std[s]).clamp(-4, 4).numpy()
                bins = np.histogram(scaled, gather.BINS, (-4, 4))[0] / len(scaled)
                assert np.abs(counts[s, r, b].numpy() - bins).max() <= 2 / len(scaled) + HALF  # at an edge, of float32
        source, target = (x.flatten(1) for x in both_rows)
        gone = (target - source).square().mean(1).sqrt() / source.square().mean(1).sqrt()
        torch.testing.assert_close(apart[:, b], gone, rtol=2 * HALF, atol=1e-4)


def test_words_spatial_and_pictures_are_the_results(both):
    page, tape = both
    data, res = held(page.html), page.result
    assert [(word["tau"], word["kind"]) for word in data["words"]] == [(word.tau, word.kind) for word in res.words]
    assert [word["A"] for word in data["words"]] == list(res.statistics.similarity)
    kept = {(each.site, each.step): each.map for each in res.statistics.spatial}
    places = {(layer["site"], step) for layer in data["maps"] for step in SHOWN}
    assert {(each["site"], each["step"]) for each in data["spatial"]} == places
    for each in data["spatial"]:
        assert torch.equal(unpacked(each), kept[each["site"], each["step"]].half().float())
        assert each["size"] == each["shape"]
        hidden = tape[f"{each['site']}.hidden"].at(row="target.cond", step=each["step"]).tensor.double().squeeze()
        hidden = torch.nn.functional.normalize(hidden - hidden.mean(0), dim=1)  # equation 9
        expected = (hidden @ res.statistics.keys[each["site"]].double()).clamp(0, 1)
        torch.testing.assert_close(unpacked(each).double().flatten(), expected, rtol=HALF, atol=1e-5)
    import base64
    import io

    for name in ("source", "edited"):
        kind, _, code = data["pictures"][name].partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(code))).tobytes() == getattr(res, name).tobytes()


def test_blocks_are_the_models(both, sd):
    data = held(both[0].html)
    embedding = sum(p.numel() for name, p in sd.unet.named_parameters() if name.startswith("time_embed."))
    assert sum(block["params"] for block in data["blocks"]) + embedding == sum(p.numel() for p in sd.unet.parameters())
    assert all(block["ms"] > 0 for block in data["blocks"])
    shapes = {}
    hooks = [
        sd.unet.get_submodule(block["name"]).register_forward_hook(
            lambda _, __, out, name=block["name"]: shapes.update({name: list(out.shape[1:])})
        )
        for block in data["blocks"]
    ]
    blocks.timed(sd, {}, (8, 8))
    for hook in hooks:
        hook.remove()
    assert {block["name"]: block["shape"] for block in data["blocks"]} == shapes


def test_loads_nothing_and_is_labelled(both):
    text = both[0].html
    read = Read(text)
    assert len(text.encode()) <= gather.LIMIT
    assert all(address.startswith("data:") for address in read.loads)
    assert set(re.findall(r"\w+://[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text and "@import" not in text and "url(" not in text
    assert len(read.controls) > 15
    for tag, found, wrapped, inside in read.controls:
        drawn = tag in ("img", "canvas")  # whose label the program says; the browser's test reads it
        assert drawn or wrapped or found.get("aria-label") or found.get("id") in read.labels or "".join(inside), found
    assert read.labels <= read.ids


def test_foreign_letters_stay_text(sd):
    pair = 'ein "Käse" <b> & </script>', "ein 'Käse' <!-- <b>"
    page = xray(sd, *pair, "fixed-seed", steps=2)
    read, data = Read(page.html), held(page.html)
    assert (data["source"], data["target"]) == pair and read.title == " → ".join(pair)
    assert page.html.count("</script") == 2 and page.html.count("<!--") == 0
    assert html.escape(pair[0]) in page.html


@pytest.mark.parametrize("method", ["p2p", "masactrl", "freeprompt", "sdedit", "flow", "adapedit+"])
def test_other_methods(sd, method):
    data = held(xray(sd, *PAIR, method, every=3, **RUN).html)
    assert data["method"] == method and any(text.startswith("S,") for text in data["missing"])
    x0 = unpacked(data["x0"])
    alone = any("draws the edit alone" in text for text in data["missing"])
    assert x0[:, 0].isnan().all() if alone else x0.isfinite().all()
    assert x0[:, 1].isfinite().all() and all(None not in each[1:] for each in data["decoded"].values())


def test_the_same_prompts(sd):
    data = held(xray(sd, PAIR[0], PAIR[0], **RUN).html)
    assert unpacked(data["x0"])[:, 1].isnan().all() and any("the same words" in text for text in data["missing"])


def test_too_large_is_refused_before_it_is_drawn(sd):
    ticks = []
    limit = gather.REST + 90_000
    with pytest.raises(
        MineditError, match=r"^the page would take .* MB for 4 steps, .*; show fewer: --every 2$"
    ) as fault:
        xray(sd, *PAIR, limit=limit, progress=lambda *done: ticks.append(done), **RUN)
    assert not ticks
    fits = int(str(fault.value).rpartition(" ")[2])
    assert xray(sd, *PAIR, limit=limit, every=fits, **RUN).bytes <= limit


def test_preview_finds_a_matrix_that_is_known():
    known = torch.tensor([[0.1, 0.0, -0.05, 0.02, 0.5], [0.0, 0.08, 0.03, -0.1, 0.4], [-0.04, 0.05, 0.1, 0.0, 0.6]])
    x0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    rgb = torch.einsum("ck,bkhw->bchw", known[:, :4], x0) + known[:, 4].view(1, 3, 1, 1)
    big = rgb.repeat_interleave(8, 2).repeat_interleave(8, 3).clamp(0, 1)
    images = [Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy()) for x in big]
    found, r2 = preview.linear(x0, images)
    assert (found - known).abs().max() < 0.01 and r2 > 0.995


def test_arrays():
    x = torch.tensor([[0.0, -1.5, 65504.0], [2.0**-24, float("nan"), 0.1]])
    found = packed(x)
    assert torch.equal(unpacked(found).nan_to_num(7), x.half().float().nan_to_num(7))
    assert len(found["half"]) == taken((2, 3))


def test_command(tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["xray", *PAIR, "--steps", "3", "--every", "2", "--seed", "16", "--out", str(out)]) == 0
    data = held(out.read_text(encoding="utf-8"))
    assert data["settings"]["seed"] == 16 and data["steps"] == [0, 2]
    assert f"wrote {out}" in capsys.readouterr().out


@pytest.mark.parametrize("wrong, said", [(["--seed", "0", "1"], "2 seeds"), (["--pairs", "x.jsonl"], "--pairs makes")])
def test_command_refuses(wrong, said, tmp_path, capsys):
    assert main(["xray", *PAIR, *wrong, "--out", str(tmp_path / "p.html")]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_page_is_saved_from_python(both, tmp_path):
    page, _ = both
    assert minedit.xray is xray
    page.save(tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == page.html
    with pytest.raises(MineditError, match="^cannot write "):
        page.save(tmp_path / "new")
