"""The wheel holds the code and the weights, and what is unpacked from it runs in any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy: a build leaves folders behind."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("minedit", "weights"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("minedit-*-py3-none-any.whl")
    return zipfile.ZipFile(path)


def test_holds_all_code_and_all_weights(wheel):
    code = {path.relative_to(ROOT) for path in (ROOT / "minedit").rglob("*.py")} | {Path("minedit/py.typed")}
    fonts = {path.relative_to(ROOT) for path in (ROOT / "minedit" / "fonts").iterdir()}
    page = {path.relative_to(ROOT) for path in (ROOT / "minedit" / "report").glob("*.[hcj][ts]*")}
    weights = {"minedit" / path.relative_to(ROOT) for path in (ROOT / "weights").rglob("*") if path.is_file()}
    held = {Path(name) for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == code | fonts | page | weights
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_runs_from_any_folder(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    # minedit/weights/ is a folder of files, no package
    show = "import minedit, minedit.files.checkpoint as c, minedit.cli.weights as w; "
    show += "print(c.weights_folder(), c.tokenizer(minedit.SD14).size, w.main.__name__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", show], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "site" / "minedit" / "weights"), "49408", "main"], done.stderr
