"""Charts of known figures, read back pixel by pixel; Table 1; edits that share a run or its processes."""

import csv
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_model import small_model

import minedit.metrics.evaluate
from minedit.cli import main
from minedit.config import MineditError
from minedit.metrics import kept, paper, piebench
from minedit.metrics.asked import Task
from minedit.metrics.charts import BAR, MARK, bars, plane
from minedit.metrics.evaluate import How, evaluated, groups
from minedit.metrics.measured import Tools
from minedit.picturebook.world.edits import pairs, written
from minedit.sampling.numbers import Numbers

ROOT = Path(__file__).parent.parent


def figure(value, low=None, high=None, count=9):
    return (value, value if low is None else low, value if high is None else high, count)


def runs(line: np.ndarray) -> list[tuple[int, int]]:
    """Where a line of booleans is True: first and last of each stretch."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def coloured(chart, colour) -> np.ndarray:
    return (np.asarray(chart.convert("RGB")) == np.array(colour)).all(-1)


def test_bars_are_as_long_as_their_figures():
    """Oracle: lengths of one panel are in the ratio of the numbers; a missing figure has no bar."""
    missing = (float("nan"), float("nan"), float("nan"), 0)
    methods = [
        ("one", {"s": figure(0.2), "clip_direction": figure(-0.1)}),
        ("two", {"s": figure(0.8), "clip_direction": figure(0.2)}),
        ("none", {"s": missing, "clip_direction": figure(0.1)}),
    ]
    found = coloured(bars(["s", "clip_direction"], methods, "t"), BAR)
    rows = [first for first, _ in runs(found.any(1))]
    assert len(rows) == 3
    one, two, none = (runs(found[at + 2]) for at in rows)  # above the whiskers
    assert [len(each) for each in (one, two, none)] == [2, 2, 1]
    length = lambda each: each[1] - each[0]  # noqa: E731
    assert length(two[0]) / length(one[0]) == pytest.approx(4, rel=0.06) and abs(two[0][0] - one[0][0]) <= 1
    assert length(two[1]) / length(none[0]) == pytest.approx(2, rel=0.06)
    assert abs(one[1][1] - two[1][0]) <= 2  # it ends at 0, where the other begins
    assert length(one[1]) == pytest.approx(length(none[0]), abs=2)


def test_a_whisker_spans_its_interval():
    wide = [("m", {"s": figure(0.5, 0.25, 0.75)}), ("n", {"s": figure(1.0)})]
    chart = bars(["s"], wide, "")
    bar, black = coloured(chart, BAR), coloured(chart, (0, 0, 0))
    first, second = (runs(bar.any(1))[at] for at in (0, -1))
    zero, one = runs(bar[second[0] + 1])[0]
    middle = (first[0] + first[1]) // 2
    span = max(
        (max(runs(black[y, zero + 5 : one]), key=lambda r: r[1] - r[0]) for y in (middle, middle + 1, middle - 1)),
        key=lambda r: r[1] - r[0],
    )
    scale = one - zero
    assert (span[0] + 5) / scale == pytest.approx(0.25, abs=0.02) and (span[1] + 5) / scale == pytest.approx(
        0.75, abs=0.02
    )


def test_points_stand_where_their_figures_are():
    """Oracle: three points on a line at 0, 1/4 and 1 of it; a method without a figure is left out."""
    at = {"a": (0.2, 0.5), "b": (0.3, 0.6), "c": (0.6, 0.9)}
    methods = [(name, {"s": figure(x), "p": figure(y)}) for name, (x, y) in at.items()]
    chart = coloured(plane("s", "p", [*methods, ("d", {"s": figure(1)})], "t"), MARK)
    heights = runs(chart.any(1))
    middles = [(first + last) / 2 for first, last in heights]
    assert len(middles) == 3 and (middles[2] - middles[1]) / (middles[2] - middles[0]) == pytest.approx(0.25, abs=0.02)
    sides = [np.flatnonzero(chart[first : last + 1].any(0)) for first, last in reversed(heights)]
    x = [(side[0] + side[-1]) / 2 for side in sides]
    assert x[0] < x[1] < x[2] and (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(0.25, abs=0.02)
    assert plane("s", "iou", methods, "t") is None


def test_settings_of_one_method_are_joined():
    spread = [0.2, 0.4, 0.8]
    same = [(f"m:guidance={x}", {"s": figure(x), "p": figure(x)}) for x in spread]
    others = [(name, found) for name, (_, found) in zip("abc", same, strict=True)]
    joined, apart = (coloured(plane("s", "p", each, "t"), MARK) for each in (same, others))
    frame = slice(0, apart.shape[0] - 60)  # above the legend
    assert joined[frame].sum() > apart[frame].sum() + 200


def test_table_1_is_of_all_700_edits():
    edits = [Task(str(at), "", f"a {at}", "b", "make it so") for at in range(700)]
    figures = dict.fromkeys(paper.NAMES)
    assert paper.asked(edits, figures) and not paper.asked(edits[1:], figures)
    assert not paper.asked(edits, {"lpips": None}) and not paper.asked(
        [replace(e, instruction="") for e in edits], figures
    )
    found = {"lpips": figure(0.3), "clip": figure(25.0, 24, 26), "clip_direction": figure(0.1, count=0)}
    lines = [{"method": name, "kind": "all", "edits": 9, "figures": found} for name in ("p2p", "own")]
    vision = SimpleNamespace(hidden_size=1024, num_hidden_layers=24, patch_size=14)
    clip = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(vision_config=vision)))
    text = paper.as_markdown(lines, "m", clip)
    assert "| P-to-P (2022): `p2p` | 0.33 | 26.05 | 0.11 | 0.300 [0.300, 0.300] | 25.00 [24.00, 26.00] | – |" in text
    assert "| AdapEdit (Ours): `adapedit` | 0.29 | 27.08 | 0.13 | – | – | – |" in text and "| own | – | – | – |" in text
    assert "another than ViT-L/14" not in text
    vision.patch_size = 16
    assert "another than ViT-L/14" in paper.as_markdown(lines, "m", clip)


def test_what_is_published_of_pie_bench_stands_beside_all_of_it(tmp_path):
    edits = [Task(str(at), "", "a", "b", image=tmp_path / f"{at}.jpg", mask=(0, 9)) for at in range(700)]
    assert piebench.asked(edits, {"psnr_published": None}) and not piebench.asked(edits, {"psnr": None})
    assert not piebench.asked(edits[1:], {"psnr_published": None})
    assert not piebench.asked([replace(e, mask=None) for e in edits], {"psnr_published": None})
    found = {"psnr_published": figure(27.0, 26, 28), "lpips_published": figure(0.0546, 0.05, 0.06, count=8)}
    lines = [{"method": name, "kind": "all", "edits": 9, "figures": found} for name in ("copy", "p2p", "adapedit")]
    tools = Tools(("pixels", "lpips"), {}, None, None, None)
    own = "– | 27.00 [26.00, 28.00] | 54.6 [50.0, 60.0] of 8 | – |"
    text = piebench.as_markdown(lines, "m", tools, None)
    assert f"| direct inversion + P2P: `p2p` | Ju et al., ICLR 2024 | 11.65 | 27.22 | 54.6 | 25.02 | {own}" in text
    assert "| h-Edit-D + P2P | Nguyen et al., CVPR 2025 | 11.7 | 27.87 | 48.5 | 25.3 | – | – | – | – |" in text
    assert f"| copy | – | – | – | – | – | {own}" in text and f"| adapedit | – | – | – | – | – | {own}" in text
    assert "another than" not in text and text.count("\n| ") == 2 + 4 + 2
    apart = piebench.as_markdown(lines, "m", tools, "ddim")  # another inversion's is not what is published
    assert "| direct inversion + P2P | Ju" in apart and f"| p2p | – | – | – | – | – | {own}" in apart
    dino = SimpleNamespace(config=SimpleNamespace(hidden_size=384, patch_size=16))
    vision = SimpleNamespace(hidden_size=768, num_hidden_layers=12, patch_size=16)
    clip = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(vision_config=vision)))
    text = piebench.as_markdown(lines, "m", replace(tools, clip=clip, dino=dino), None)
    assert "another than ViT-L/14" in text and "another than ViT-B/8" in text


def test_edits_of_one_source_share_its_run(tmp_path, monkeypatch):
    """Rows are those of edits that are made one by one; a source is drawn once for all of them."""
    asked = [
        Task(str(at), "", source, target, seed=seed)
        for at, (source, target, seed) in enumerate(
            [("a boy", "a red boy", 0), ("a dog", "a red dog", 0), ("a boy", "a sad boy", 0), ("a boy", "a big boy", 1)]
        )
    ]
    how, tools, calls = (
        How(("copy", "p2p", "fixed-seed"), Numbers(steps=2)),
        Tools(("pixels",), {}, None, None, None),
        [],
    )
    shared = groups(asked, how)
    assert [[task.id for task in group] for group in shared] == [["0", "2"], ["1"], ["3"]]
    assert len(groups([replace(asked[0], id=str(at)) for at in range(9)], how)) == 3  # 12 edits a batch
    real = minedit.metrics.evaluate.edits
    monkeypatch.setattr(minedit.metrics.evaluate, "edits", lambda *a, **k: calls.append(a[1]) or real(*a, **k))
    found = []
    for name, parts in (("together", shared), ("apart", [[task] for task in asked])):
        calls.clear()
        with kept.rows(tmp_path / name, {}) as rows:
            for part in parts:
                assert len(list(evaluated(small_model(), tools, part, how, rows))) == 3 * len(part)
        assert len(calls) == len(parts)
        found.append(rows.found)
    assert found[0].keys() == found[1].keys() and len(found[0]) == 12
    for key, row in found[0].items():
        assert row["figures"] == pytest.approx(found[1][key]["figures"], abs=0.3)


def test_parts_are_taken_once(tmp_path):
    """A run that is killed while it takes another process's rows leaves none twice; others are not taken from it."""
    file = tmp_path / "rows.jsonl"
    part = kept.part(file, 1)
    with kept.rows(file, {"m": 1}) as first, kept.rows(part, {"m": 1}, beside=file) as second:
        first.add({"method": "a", "id": "0"})
        second.add({"method": "a", "id": "1"})
        second.add({"method": "a", "id": "2"})
        with pytest.raises(MineditError, match="another run"):
            first.take()
    lines = part.read_bytes().splitlines(keepends=True)
    file.write_bytes(file.read_bytes() + lines[0] + lines[1][:5])
    part.write_bytes(b"".join(lines) + b'{"method"')
    with kept.rows(file, {"m": 1}) as rows:
        assert sorted(key[1] for key in rows.found) == ["0", "1", "2"]
    assert len(file.read_text().splitlines()) == 3 and not part.exists()


def test_two_processes_make_the_table_of_one(tmp_path):
    """No row is lost or doubled; every figure is the same."""
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(written(pair) for pair in pairs("tune")[::60]))
    count = len(file.read_text().splitlines())
    argv = ["evaluate", str(file), "--methods", "copy,p2p", "--steps", "1", "--metrics", "judge,pixels"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # what torchrun says to its processes
    command = [sys.executable, "-m", "minedit", *argv, "--threads", "1", "--out", str(tmp_path / "two")]
    started = [
        subprocess.Popen(command, env={**here, "RANK": rank, "LOCAL_RANK": rank}, text=True, stdout=-1, stderr=-1)
        for rank in "01"
    ]
    (said, error), (silent, other) = (each.communicate(timeout=300) for each in started)
    assert [each.returncode for each in started] == [0, 0], error + other
    assert said.count("wrote") == 1 and not silent
    assert main([*argv, "--threads", "1", "--out", str(tmp_path / "one")]) == 0
    rows, tables = [], []
    for name in ("one", "two"):
        lines = [json.loads(line) for line in (tmp_path / name / "rows.jsonl").read_text().splitlines()]
        rows.append(sorted((row["method"], row["id"], json.dumps(row["figures"]), str(row["read"])) for row in lines))
        with (tmp_path / name / "table.csv").open() as table:
            own = ("seconds", "command")
            tables.append([{key: row[key] for key in row if key not in own} for row in csv.DictReader(table)])
    assert len(rows[1]) == len({row[:2] for row in rows[1]}) == 2 * count
    assert rows[0] == rows[1] and tables[0] == tables[1]
    assert {"bars.png", "s-p.png", "table.md"} <= {path.name for path in (tmp_path / "two").iterdir()}
    assert not list((tmp_path / "two").glob("*.rank*"))
