"""The roofline picture. Oracle: flops and bytes worked out by hand, pixels where the axes put them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from minedit import cli
from minedit.lab import roofline
from minedit.lab.rows import FIELDS, append

KNOWN = Path(__file__).parent.parent / "benchmarks" / "kernels.csv"


def row(attention: str, rule: str, ms: float, gb_s: float, **more: object) -> dict[str, object]:
    """4 rows, 8 heads, 64 pixels, 77 tokens, width 160: 4 · 8 · 64 · 77 · 160 = 25 231 360 flops a row."""
    sizes = {"kind": "cross", "batch": 4, "heads": 8, "pixels": 64, "tokens": 77, "width": 160, "note": ""}
    told = {"device": "cpu here", "dtype": "float32", "torch": "2", "threads": 1, "date": "today", "columns": False}
    ceilings = {"ceiling_gb_s": 20.0, "ceiling_gflop_s": 100.0}
    times = {"attention": attention, "rule": rule, "ms": ms, "gb_s": gb_s, "status": "right"}
    return {**sizes, **told, **ceilings, **times, **more}


def texts(rows: list[dict[str, object]]) -> list[dict[str, str]]:
    return [{name: str(each.get(name, "")) for name in FIELDS} for each in rows]


def test_points_by_hand():
    """An edit is one row more. 2 ms at 5 GB/s: 10 MB. The last row of a function and case counts."""
    plain, edit, both = (row("sdpa", rule, 2.0, 5.0) for rule in ("plain", "dps", "two-rows"))
    found = roofline.points(
        texts([row("sdpa", "plain", 9.0, 1.0), plain, edit, both, row("sdpa", "fwt", 0, 0) | {"ms": ""}])
    )
    assert [p.case.split()[-1] for p in found] == ["plain", "dps", "two-rows"]
    for p, rows in zip(found, (4, 5, 6), strict=True):
        assert p.speed == pytest.approx(rows * 25_231_360 / 2e-3) and p.intensity == pytest.approx(rows * 2.5231360)


def test_the_roof_by_hand():
    roof = roofline.Roof(20e9, 100e9)
    assert (roof.at(1), roof.at(5), roof.at(50)) == (20e9, 100e9, 100e9)


def test_points_and_ceiling_lie_where_the_axes_say():
    """Both axes logarithmic; colours are the functions'. A point on the ceiling would cover its line."""
    rows = texts([row("sdpa", "plain", 2.0, 5.0), row("eager", "plain", 8.0, 1.25), row("eager", "dps", 4.0, 2.5)])
    picture = roofline.drawn(rows, "title")
    assert picture.size[0] == 1200
    found = roofline.points(rows)
    left, top, right, low = (roofline.LEFT, roofline.TOP, 1200 - roofline.KEY - 24, picture.height - roofline.LOW)
    x, y = [p.intensity for p in found] + [5 / 6], [p.speed for p in found] + [100e9, 20e9 * 5 / 6]
    x, y = ((math.log10(min(v)) - 0.25, math.log10(max(v)) + 0.35) for v in (x, y))

    def at(intensity: float, speed: float) -> tuple[int, int]:
        across, upwards = (math.log10(intensity) - x[0]) / (x[1] - x[0]), (math.log10(speed) - y[0]) / (y[1] - y[0])
        return round(left + across * (right - left)), round(low - upwards * (low - top))

    for p, colour in zip(found, (roofline.COLOURS[0], roofline.COLOURS[1], roofline.COLOURS[1]), strict=True):
        assert picture.getpixel(at(p.intensity, p.speed)) == ImageColor.getrgb(colour)
    for intensity in (1.1, 2.0, 8.0, 20.0):
        assert picture.getpixel(at(intensity, min(intensity * 20e9, 100e9))) == ImageColor.getrgb(roofline.INK)


def test_the_command_draws_the_last_devices_rows(tmp_path, capsys):
    out = tmp_path / "roofline.png"
    assert cli.main(["kernels", "roofline", "--csv", str(KNOWN), "--device", "H200", "--out", str(out)]) == 0
    assert "cuda NVIDIA H200, float16" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width == 1200
    table = tmp_path / "table.csv"
    append(table, [row("sdpa", "plain", 2.0, 5.0)])
    for argv, said in (
        (("--rules", "fwd"), "--rules has 'fwd'; expected some of plain"),
        (("--device", "cuda"), "has no row for --device and --dtype; it has cpu here float32"),
        (("--rules", "dps"), "has no row of cpu here, float32 with these --rules"),
    ):
        assert cli.main(["kernels", "roofline", "--csv", str(table), "--out", str(out), *argv]) == 2
        assert said in capsys.readouterr().err
