"""Benchmarks' tables: rows are added under the header that is there, commas in its names or not."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from table import append  # noqa: E402


def test_rows_are_added(tmp_path):
    for value in (1, 2):
        append(tmp_path / "a.csv", [{"off, by": value, "way": "x"}])
    assert (tmp_path / "a.csv").read_text().split() == ['"off,', 'by",way', "1,x", "2,x"]
    with pytest.raises(SystemExit, match="other columns"):
        append(tmp_path / "a.csv", [{"off": 3}])
    assert (tmp_path / "a.new.csv").read_text().split() == ["off", "3"]
