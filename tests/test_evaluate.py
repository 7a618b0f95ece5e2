"""Benchmarks: read, made, kept, averaged. Oracles: the renderer's truth, transformers' CLIP, counts by hand."""

import csv
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from minedit.cli import main
from minedit.config import PICTUREBOOK, MineditError
from minedit.files.checkpoint import tokenizer, weights_folder
from minedit.metrics import closed, kept, piebench, table
from minedit.metrics.asked import Task, few, tasks
from minedit.metrics.clip import load_clip, score
from minedit.metrics.columns import COLUMNS
from minedit.metrics.evaluate import parsed
from minedit.metrics.measured import OWN_CLIP, background, unit
from minedit.picturebook.score import rendered
from minedit.picturebook.training.train_text import clip_model, write_clip
from minedit.picturebook.world.edits import KINDS, pairs, written

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
FEW = ["--steps", "2", "--methods", "copy,p2p:cross_steps=0.5"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of random weights."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(3)
    text, vision = {**SMALL, "eos_token_id": 49407}, {**SMALL, "image_size": 64, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((weights_folder() / "tokenizer" / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def pie(tmp_path_factory):
    """Two edits as PIE-Bench has them, the second of the whole picture."""
    folder = tmp_path_factory.mktemp("pie")
    (folder / "annotation_images" / "5_pose").mkdir(parents=True)
    rows = {}
    for at, mask in enumerate(([512 * 100 + 100, 200, 512 * 101 + 100, 200], [0, 512 * 512])):
        rendered(pairs("tune")[at], 512)[0].save(folder / "annotation_images" / "5_pose" / f"{at}.png")
        rows[f"{at:012}"] = {
            **{"image_path": f"5_pose/{at}.png", "original_prompt": "a [standing] boy", "mask": mask},
            **{"editing_prompt": "a [sitting] boy", "editing_instruction": "[sit]", "editing_type_id": "5"},
        }
    (folder / "mapping_file.json").write_text(json.dumps(rows))
    return folder


def lines(tmp_path, *rows):
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(file)


def test_benchmarks_are_read(tmp_path, pie):
    ours = pairs("tune")[40]
    found = tasks(
        lines(
            tmp_path,
            {"input": "a boy", "edit": "make him sit", "output": "a sitting boy"},
            {"category": "Pose", "source": "a", "target": "b", "instruction": "c", "seed": 4, "id": "x"},
            written(ours),
        )
    )
    assert found[0] == Task("1", "", "a boy", "a sitting boy", "make him sit")
    assert found[1] == Task("x", "Pose", "a", "b", "c", 4)
    assert found[2].world == ours and (found[2].seed, found[2].kind) == (ours.seed, ours.kind)
    first, second = tasks(str(pie))
    assert (first.source, first.target, first.instruction) == ("a standing boy", "a sitting boy", "sit")
    assert first.kind == "change pose" and first.image.name == "0.png" and second.mask == (0, 512 * 512)
    assert len(tasks("picturebook", "tune")) == len(pairs("tune"))
    assert [task.kind for task in few(tasks("picturebook"), 2)] == 2 * list(KINDS)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 1 cannot be read"),
        ({"source": "a"}, "lacks a text"),
        ({"source": "a", "target": "b", "seed": "c"}, "seed"),
        ({"source": "a", "target": "b", "before": {"subject": "ox"}, "changes": {}, "factor": "pose"}, "closed world"),
        ("", "no edit"),
    ],
)
def test_what_is_no_benchmark_is_said(tmp_path, row, said):
    with pytest.raises(MineditError, match=said):
        tasks(lines(tmp_path, row))


def test_pictures_beside_the_folder_are_not_read(tmp_path, pie):
    rows = json.loads((pie / "mapping_file.json").read_text())
    for wrong in ({"image_path": "../../x.png"}, {"mask": [1]}, {"mask": ["a", 1]}, {"editing_type_id": 12}):
        (tmp_path / "mapping_file.json").write_text(json.dumps({"a": rows["0" * 12] | wrong}))
        with pytest.raises(MineditError, match="mapping_file.json, a"):
            tasks(str(tmp_path))


def test_a_method_is_asked_for_in_a_word():
    assert parsed("p2p:cross_steps=0.6:spread=sum") == ("p2p", {"cross_steps": 0.6, "spread": "sum"})
    for none, false in (("null", "false"), ("None", "False")):
        assert parsed(f"adapedit:sigma={none}:dps={false}") == ("adapedit", {"sigma": None, "dps": False})
    for wrong in ("p3p", "p2p:cross_steps", "copy:a=1"):
        with pytest.raises(MineditError):
            parsed(wrong)


def test_rows_survive_a_kill_at_any_byte(tmp_path):
    """What was cut off is made again; none is lost, none is there twice."""
    file, told = tmp_path / "rows.jsonl", {"model": "m", "steps": 50}
    wanted = [{"method": method, "id": str(at), "figures": {"lpips": at / 7}} for at in range(5) for method in "ab"]

    def make():
        with kept.rows(file, told) as rows:
            for row in wanted:
                if not rows.of((row["method"], row["id"]), {}):
                    rows.add(row)

    make()
    whole = file.read_bytes()
    for at in random.Random(2).sample(range(len(whole)), 20):
        file.write_bytes(whole[:at])
        make()
        assert file.read_bytes() == whole
    with kept.rows(file, {**told, "steps": 20}) as rows:
        assert not rows.found  # made otherwise
        with pytest.raises(MineditError, match="another run"), kept.rows(file, told):
            pass
    with kept.rows(file, told) as rows:
        assert rows.of(("a", "3"), {"source": "another"}) is None and rows.of(("a", "3"), {"id": "3"}) is not None
    file.write_text("no row\n")
    with pytest.raises(MineditError, match="line 1"), kept.rows(file, told):
        pass


def test_a_table_counts_what_is_missing():
    asked = [Task(str(at), kind, "a", "b") for at, kind in enumerate(("x", "x", "y"))]
    values = (0.25, None, 0.75)
    rows = {
        ("m", task.id): {"seconds": 2.0, "figures": {"ssim": value}} for task, value in zip(asked, values, strict=True)
    }
    rows["n", "0"], rows["n", "1"] = {"error": "too long"}, {"seconds": 1.0, "figures": {"ssim": 1.0}}
    rows["n", "2"] = {"error": "too long"}
    found = table.summary(["m", "n"], asked, rows)
    assert [(line["method"], line["kind"], line["edits"], line["failed"]) for line in found] == [
        *(
            ("m", "all", 3, 0),
            ("m", "x", 2, 0),
            ("m", "y", 1, 0),
            ("n", "all", 3, 2),
            ("n", "x", 2, 1),
            ("n", "y", 1, 1),
        )
    ]
    assert found[0]["figures"]["ssim"][::3] == (0.5, 2) and found[3]["seconds"] == 1
    (first, *_, last) = csv.DictReader(table.as_csv(found, {"steps": 50}).splitlines())
    assert first["ssim"] == "0.5000" and first["ssim_missing"] == "1" and first["steps"] == "50" and last["ssim"] == ""
    text = table.as_markdown(found, {}, "t")
    assert "| m | 0.500 [0.250, 0.750] of 2 | 0 | 2.00 |" in text and "| n | – | 1 | nan |" in text
    assert "judge" not in text


def test_a_table_says_how_far_its_judge_lets_an_edit_come():
    """By the row of the truth alone, which is measured; without it, where the judge's error is told."""
    known = {"s": (0.9, 0.8, 1.0, 4), "p": (0.98, 0.97, 0.99, 4)}
    lines = [
        {"method": name, "kind": kind, "edits": 4, "failed": 0, "seconds": 1.0, "figures": each}
        for name, kind, each in (
            ("copy", "all", dict.fromkeys(known, (0.1, 0.1, 0.1, 4))),
            ("re-render", "pose", dict.fromkeys(known, (0.2, 0.2, 0.2, 4))),
            ("re-render", "all", known),
        )
    ]
    said = "what its S 0.900 [0.800, 1.000] and P 0.980 [0.970, 0.990] lack of 1 is the judge's error"
    assert said in table.as_markdown(lines, {}, "t")
    text = table.as_markdown(lines[:1], {}, "t")
    assert "what its S" not in text and "docs/training.md#the-judge" in text


def test_what_the_renderer_leaves_is_the_background():
    for pair in pairs("tune")[5::23]:
        before, after = rendered(pair)
        exact, wide = (closed.background(pair, 128, photograph)[0, 0].numpy() for photograph in (True, False))
        assert closed.apart(before, after)[exact == 1].max(initial=0) == 0
        assert wide.mean() <= exact.mean()
        assert pair.kind == "place" or exact.any() == (pair.kind != "time")  # between places the sky may stay
        assert closed.beside_truth(pair, before, after)["truth_error"] == 0
        assert closed.beside_truth(pair, before, after)["iou"] in (1, None)
        assert closed.beside_truth(pair, before, before)["iou"] in (0, None)


def test_a_mask_fits_its_picture(pie):
    task = tasks(str(pie))[0]
    small, whole = background(task, (128, 128), True), background(task, (512, 512), True)
    assert whole[0, 0, 100:102, 100:300].sum() == 0 and whole.sum() == 510 * 510 - 400
    assert small.shape == (1, 1, 128, 128) and 126 * 126 - 50 * 2 <= small.sum() <= 126 * 126


def test_clip_is_transformers_own(clip_folder):
    model, ours = CLIPModel.from_pretrained(clip_folder).eval(), load_clip(clip_folder)
    picture = rendered(pairs("tune")[0], 64)[0]
    ids = ours.ids(["a boy"])[0]
    x = (unit(picture) - torch.tensor(ours.mean)[:, None, None]) / torch.tensor(ours.std)[:, None, None]
    with torch.no_grad():
        wanted = model(input_ids=ids, pixel_values=x)
    found = score(ours.images([picture]), ours.texts(["a boy"]))
    assert torch.allclose(found, 100 * wanted.logits_per_image[0] / model.logit_scale.exp(), atol=1e-4)
    assert ours.ids(["a dog" * 500])[0].shape == (1, 77) and ours.seen(Image.new("RGB", (100, 70))).shape == (3, 64, 64)


def test_the_embedded_clip_reads_the_world(tmp_path):
    """Oracles: the tokenizer that captions were trained with; the renderer's counterfactuals."""
    small = replace(PICTUREBOOK.text, width=16, layers=1, heads=2, mlp=32)
    write_clip(clip_model(replace(PICTUREBOOK, text=small)), tmp_path)
    ours, own = load_clip(tmp_path), tokenizer(PICTUREBOOK)
    asked = [pair for pair in pairs("tune") if pair.kind in ("colour", "place", "time")]
    for pair in asked:
        prompt = own.encode(pair.target)
        assert ours.ids([pair.target])[0][0].tolist() == list(prompt.ids[: prompt.length])
    by = load_clip(weights_folder() / OWN_CLIP)
    before, after = (by.images(each) for each in zip(*map(rendered, asked), strict=True))
    fits = score(after, by.texts([pair.target for pair in asked])) > score(
        before, by.texts([pair.target for pair in asked])
    )
    assert fits.float().mean() > 0.9


def test_a_benchmark_goes_on_where_it_was_stopped(tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        "evaluate",
        lines(tmp_path, written(pairs("tune")[30]), written(pairs("tune")[120])),
        "--out",
        str(out),
        *FEW,
    ]
    assert main([*command, "--seconds", "0"]) == 0 and not (out / "table.csv").exists()
    assert main([*command, "--limit", "1", "--alone", "--pictures", str(tmp_path / "pictures")]) == 0
    rows = (out / "rows.jsonl").read_text()
    assert main(command) == 0 and "wrote" in capsys.readouterr().out
    assert (out / "rows.jsonl").read_text() == rows  # both are of other kinds: one of each was all
    assert len(rows.splitlines()) == 4
    assert {path.name for path in (tmp_path / "pictures").rglob("*.png")} == {
        "source.png",
        "copy.png",
        "p2p_cross_steps=0.5.png",
    }
    (copy, edit) = (row for row in csv.DictReader((out / "table.csv").open()) if row["kind"] == "all")
    assert float(copy["p"]) == 1 and float(copy["lpips"]) == 0 and copy["psnr"] == "138.000"
    assert 0 < float(edit["lpips"]) < 1 and edit["method"] == "p2p:cross_steps=0.5" and edit["edits"] == "2"
    assert all(
        f"- {COLUMNS[name].title}: " in (out / "table.md").read_text() for name in ("s", "lpips", "psnr_background")
    )


def test_photographs_have_published_columns_and_honest_ones(tmp_path, pie, clip_folder, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(piebench, "EDITS", 2)
    assert main(["evaluate", "--pairs", str(pie), "--out", str(out), "--clip", str(clip_folder), *FEW]) == 0
    said = capsys.readouterr().out
    assert "dino is left out (no weights: --dino FOLDER)" in said and "squeezenet1_1" in said
    (_, edit) = csv.DictReader((out / "table.csv").open())
    assert edit["psnr_published_missing"] == edit["lpips_background_missing"] == "1"  # the second has no background
    assert float(edit["psnr_published"]) > float(edit["psnr_background"]) and edit["clip_edited_missing"] == "0"
    assert np.isfinite(float(edit["clip_direction"])) and "lpips_published" not in edit
    psnr = (
        line for line in (out / "pie-bench.md").read_text().splitlines() if line.startswith("| p2p:cross_steps=0.5")
    )
    assert f"| {float(edit['psnr_published']):.2f} [" in next(psnr)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "what to evaluate is missing"),
        (["picturebook", "--methods", "p3p"], "no method 'p3p'"),
        (["picturebook", "--methods", "p2p:cross_steps=2"], "cross_steps is 2"),
        (["picturebook", "--methods", "instruct-pix2pix"], "needs a model"),
        (["picturebook", "--metrics", "dino"], "--dino FOLDER"),
        (["picturebook", "--clip", "nowhere"], "does not exist"),
        (["picturebook", "--height", "64"], "are square"),
        (["nowhere.jsonl"], "cannot read nowhere.jsonl"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, capsys, arguments, said):
    assert main(["evaluate", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and not (tmp_path / "out").exists()


def test_what_cannot_be_drawn_is_a_row_too(tmp_path, capsys):
    file = lines(tmp_path, {"source": "a boy", "target": "a boy " * 90}, {"source": "a boy", "target": "a sitting boy"})
    assert main(["evaluate", file, "--out", str(tmp_path / "out"), "--steps", "2", "--methods", "copy,p2p"]) == 0
    rows = [json.loads(row) for row in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and [row["method"] for row in rows if "error" in row] == ["p2p"]
    assert "1 edits could not be made" in capsys.readouterr().out
