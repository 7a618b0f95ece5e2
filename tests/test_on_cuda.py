"""`make cuda`, rehearsed: what it runs is found, what fails is told and the rest goes on, what is done stays done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import on_cuda  # noqa: E402

SHELL = [sys.executable, "-c"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the whole of it runs")
def test_a_rehearsal_runs_and_reports(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "on_cuda.py", "--tiny", "--out", tmp_path]
    done = subprocess.run(
        [*command, "--parts", "smallest", "sanitizer", "gpu-attention"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "report.txt").read_text()
    assert "largest difference from eager" in report and "needs a CUDA GPU and compute-sanitizer" in report
    assert (tmp_path / "gpu.csv").read_text().count("cross 4x2x64x77x40") >= 4
    assert len(list(tmp_path.iterdir())) <= 8


def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "on_cuda.py"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("skipped: torch finds no CUDA GPU")


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path):
    state = on_cuda.Ledger(tmp_path, again=False)
    good = on_cuda.Part("good", [*SHELL, "print('fine')"], 30)
    bad = on_cuda.Part("bad", [*SHELL, "raise SystemExit('broken')"], 30)
    slow = on_cuda.Part("slow", [*SHELL, "import time; print('begun', flush=True); time.sleep(60)"], 1)
    on_cuda.together([bad, slow, good], state)
    known = json.loads((tmp_path / "parts.json").read_text())
    assert {name: entry["status"] for name, entry in known.items()} == {
        "good": "done",
        "bad": "failed 1",
        "slow": "too long",
    }
    again = on_cuda.Ledger(tmp_path, again=False)
    assert again.done(good) and not again.done(bad) and not again.done(slow)
    assert not on_cuda.Ledger(tmp_path, again=True).done(good)
    assert "broken" in (tmp_path / "log.txt").read_text()


def test_tables_of_parts_that_ran_together_become_one(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"x,y\n1,{name}\n")
        on_cuda.merge(tmp_path / name, tmp_path / "all.csv")
    assert (tmp_path / "all.csv").read_text() == "x,y\n1,a\n1,b\n" and not (tmp_path / "a").exists()
