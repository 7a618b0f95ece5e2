"""What needs no model does not wait for torch, and minedit's names are there all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minedit.cli import options

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "PIL", "numpy")
RUN = f"""
import sys
from minedit.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as stopped:
    status = stopped.code
print(status, *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=path, capture_output=True, text=True)


VERBS = ("generate", "edit", *options.ELSEWHERE, *(f"weights {verb}" for verb in ("verify", "convert", "fetch")))


@pytest.mark.parametrize("line", ["--help", "--version", *(f"{verb} --help" for verb in VERBS), "kernels check --help"])
def test_help_does_not_wait_for_torch(line):
    done = python(RUN, *line.split())
    assert done.stdout and done.stderr.split() == ["0"]


WRONG = ("edit a --steps x", "edit", "generate", "edit a b --method none", "train paint", "kernels check --rules no")


@pytest.mark.parametrize("line", WRONG)
def test_nor_does_a_mistake(line):
    done = python(RUN, *line.split())
    last = done.stderr.splitlines()[-1].split()
    assert "minedit: error:" in done.stderr and last[0] == "2" and not {"torch", "transformers"} & set(last)


def test_the_package_names_what_it_has():
    code = f"""
import sys, minedit
assert set(minedit.__all__) <= set(dir(minedit)) and list(minedit.METHODS)[0] == "adapedit"
assert not [name for name in {HEAVY} if name in sys.modules]
from minedit import load, edit, generate, UNet, VAE
import minedit.verbs.edit
assert minedit.edit is edit is minedit.verbs.edit.edit and callable(minedit.load)
assert not hasattr(minedit, "nothing")
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_transformers_bars_do_not_warn_in_a_notebook():
    code = "import warnings, tqdm.notebook, minedit.stack; "
    code += "warnings.warn(tqdm.notebook.WARN_NOIPYW, tqdm.TqdmWarning); print('quiet')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "quiet\n", done.stderr
