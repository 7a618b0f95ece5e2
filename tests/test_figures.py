"""`minedit ablate`, `sweep`, `gallery`: many edits in one labelled picture, and their data."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat
from small_model import small_model

import minedit
from minedit import cli
from minedit.files import checkpoint
from minedit.image import MARGIN, grid

PAIR = "a boy in the park", "a sitting boy in the park"
SIDE, RUN = 64, {"steps": 2, "guidance": 7.5}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "load", lambda *_: small_model())
    return lambda *argv: cli.main([*map(str, argv), "--steps", "2"])


def made(verb: str) -> tuple[dict, list[dict], Image.Image]:
    (rows,) = (list(csv.DictReader(path.open())) for path in Path("out").glob(f"*-{verb}.csv"))
    return json.loads(Path(f"out/0001-{verb}.json").read_text()), rows, Image.open(f"out/0001-{verb}.png")


def cell(sheet: Image.Image, column: int, wanted: Image.Image) -> int:
    """The height at which a column of the sheet shows a picture."""
    x = MARGIN + column * (SIDE + MARGIN)
    heights = range(sheet.height - SIDE + 1)
    return next(y for y in heights if sheet.crop((x, y, x + SIDE, y + SIDE)).tobytes() == wanted.tobytes())


def change(a: Image.Image, b: Image.Image) -> float:
    return sum(ImageStat.Stat(ImageChops.difference(a, b)).mean) / 3


def near(a: Image.Image, b: Image.Image) -> bool:
    """Whether they are the same but for what another batch rounds otherwise."""
    return max(high for _, high in ImageChops.difference(a, b).getextrema()) <= 1


def test_an_ablation_is_of_adapedits_parts(run):
    assert run("ablate", *PAIR, "--seeds", "3-4", "--lambda-tau", "0.7") == 0
    record, rows, sheet = made("ablate")
    parts = {"AdapEdit": {}, "w/o FWT": {"fwt": False}, "w/o DPS": {"dps": False}, "w/o DPS*": {"mask": False}}
    assert [(row["seed"], row["part"]) for row in rows] == [
        (seed, part) for seed in "34" for part in (*parts, "Prompt-to-Prompt")
    ]
    assert sheet.width == MARGIN + 6 * (SIDE + MARGIN)
    own = [{"target": PAIR[1], "lambda_tau": 0.7, **part} for part in parts.values()]
    asked = [*own, {"target": PAIR[1], "method": "p2p"}]
    results = minedit.edits(small_model(), PAIR[0], asked, seed=4, **RUN)
    heights = {cell(sheet, at, res.edited) for at, res in enumerate(results, 1)} | {cell(sheet, 0, results[0].source)}
    assert len(heights) == 1 and heights.pop() > SIDE  # the second row
    for row, res in zip(rows[5:], results, strict=True):
        assert float(row["changed"]) == pytest.approx(change(res.edited, res.source), abs=1e-3)
        assert float(row["from_whole"]) == pytest.approx(change(res.edited, results[0].edited), abs=1e-3)
    assert json.loads(rows[0]["settings"]) == {"lambda_tau": 0.7} and json.loads(rows[4]["settings"]) == {}
    assert [word["text"] for word in record["rows"][0]["words"]] == ["a", "sitting", "boy", "in", "the", "park"]
    assert record["steps"] == 2 and record["seed"] == [3, 4]


def test_a_sweep_is_a_grid_of_two_settings(run):
    argv = ("--lambda-tau", "0.2,1", "--lambda-s", "0.5,0.9,0.95", "--sigma", "0.3", "--no-mask")
    assert run("sweep", *PAIR, *argv) == 0
    record, rows, sheet = made("sweep")
    values = [(tau, s) for tau in (0.2, 1.0) for s in (0.5, 0.9, 0.95)]
    assert [(float(row["lambda_tau"]), float(row["lambda_s"])) for row in rows] == values
    assert record["swept"] == {"lambda_tau": [0.2, 1.0], "lambda_s": [0.5, 0.9, 0.95]}
    assert json.loads(rows[0]["settings"]) == {"lambda_tau": 0.2, "lambda_s": 0.5, "sigma": 0.3, "mask": False}
    assert sheet.width == MARGIN + 4 * (SIDE + MARGIN)
    last = minedit.edit(small_model(), *PAIR, seed=0, lambda_tau=1, lambda_s=0.95, sigma=0.3, mask=False, **RUN)
    x = MARGIN + 3 * (SIDE + MARGIN)
    assert any(near(sheet.crop((x, y, x + SIDE, y + SIDE)), last.edited) for y in range(sheet.height - SIDE))
    assert float(rows[-1]["changed"]) == pytest.approx(change(last.edited, last.source), abs=0.2)


def test_any_number_of_any_method_is_swept(run):
    assert run("sweep", *PAIR, "--method", "p2p", "--cross-steps", "0,0.5,1", "--seed", 1, 2) == 0
    _, rows, sheet = made("sweep")
    assert [(row["seed"], float(row["cross_steps"])) for row in rows] == [(s, v) for s in "12" for v in (0, 0.5, 1)]
    assert len({row["changed"] for row in rows[:3]}) > 1 and {row["method"] for row in rows} == {"p2p"}


def test_a_gallery_has_a_row_for_each_source(run):
    lines = [
        {"source": PAIR[0], "target": PAIR[1], "seed": 5},
        {"source": "a dog", "target": "a red dog", "method": "p2p", "cross_steps": 0.4},
        {"source": PAIR[0], "target": "a boy in the rain", "seed": 5},
    ]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("gallery", "pairs.jsonl") == 0
    _, rows, sheet = made("gallery")
    assert [(row["source"], row["target"]) for row in rows] == [
        (lines[at]["source"], lines[at]["target"]) for at in (0, 2, 1)
    ]
    assert json.loads(rows[2]["settings"]) == {"cross_steps": 0.4} and rows[2]["method"] == "p2p"
    dog = minedit.edit(small_model(), "a dog", "a red dog", "p2p", cross_steps=0.4, seed=0, **RUN)
    assert cell(sheet, 1, dog.edited) == cell(sheet, 0, dog.source) > SIDE
    x = MARGIN + 2 * (SIDE + MARGIN)  # the second row has one edit only
    assert sheet.crop((x, cell(sheet, 1, dog.edited), sheet.width, sheet.height)).getextrema() == ((255, 255),) * 3


def test_photographs_are_swept_too(run):
    Image.new("RGB", (50, 70), "red").save("photo.png")
    argv = ("--image", "photo.png", "--inversion", "ddim", "--method", "p2p", "--self-steps", "0,1")
    assert run("sweep", *PAIR, *argv) == 0
    assert made("sweep")[0]["inversion"] == "ddim"


def test_an_empty_cell_stays_white():
    sheet = grid([Image.new("RGB", (9, 9), "red"), None], columns=2)
    assert sheet.getpixel((MARGIN, MARGIN)) == (255, 0, 0) and sheet.size == (3 * MARGIN + 18, 2 * MARGIN + 9)
    assert sheet.crop((MARGIN + 9, 0, sheet.width, sheet.height)).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sweep", *PAIR), "0 settings have several values; expected one or two"),
        (("sweep", *PAIR, "--lambda-tau", "0,1", "--lambda-s", "0,1", "--lambda-sv", "0,1"), "3 settings have"),
        (("sweep", *PAIR, "--lambda-tau", "0.2,x"), "found 'x'"),
        (("sweep", *PAIR, "--tau", "0.2,3"), "found '3', expected a finite number, from 0 to 1"),
        (("sweep", *PAIR, "--method", "p2p", "--lambda-tau", "0.2,1"), "p2p has no setting lambda_tau"),
        (("ablate", *PAIR, "--strength", "0.5"), "adapedit has no setting strength"),
        (("gallery", "nothing.jsonl"), "cannot read nothing.jsonl"),
    ],
)
def test_mistakes_are_a_line(run, capsys, words, said):
    assert run(*words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("minedit: error: ") and said in line and not Path("out").exists()
