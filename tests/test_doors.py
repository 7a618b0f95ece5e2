"""Files that are none, that cannot be reached, or that change: a line each at every door, and no dead process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from weight_files import slim

import minedit
from minedit import cli, image
from minedit.config import MineditError
from minedit.files import stored
from minedit.files.checkpoint import load, save
from minedit.picturebook.world import dataset
from minedit.picturebook.world.dataset import Drawings

LONG = "n" * 300


def failed(capsys, *argv: object) -> str:
    assert cli.main([*map(str, argv)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("minedit: error: ") and "\n" not in said and len(said) < 1500
    return said


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "slim.safetensors"
    save(slim(), path)
    return path


def doors(model: Path, place: Path) -> list[tuple[object, ...]]:
    draw = ("generate", "a", "--steps", "1", "--model", model)
    return [
        ("generate", "a", "--model", place),
        (*draw, "--lora", place),
        (*draw, "--vae", place),
        (*draw, "--from", place),
        ("weights", "verify", place),
        ("weights", "convert", place, "out.safetensors"),
        ("weights", "convert", model, f"{place}.safetensors"),
        *([("generate", "a", "--steps", "1", "--model", model, "--out", place)] if str(place)[0] != "~" else []),
    ]


@pytest.mark.parametrize("place", [LONG, "~nobody-of-that-name/x", f"{LONG}/x"])
def test_names_that_cannot_be(model, tmp_path, capsys, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    for argv in doors(model, place):
        said = failed(capsys, *argv)
        assert "cannot" in said or "does not exist" in said


@pytest.mark.parametrize("call", ["exists", "is_file", "is_dir"])
def test_a_folder_without_permission(model, tmp_path, capsys, monkeypatch, call):
    """As a path inside it answers; the tests may run as root, who may enter any."""
    place, found = tmp_path / "closed" / "x", getattr(Path, call)

    def refuse(path: Path, *more: object, **options: object) -> bool:
        if path.parent == place.parent:
            raise PermissionError(errno.EACCES, "Permission denied")
        return found(path, *more, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, call, refuse)
    for argv in doors(model, place)[:-2]:
        if call == "exists" or argv[-2] != "--from":
            said = failed(capsys, *argv)
            assert "Permission denied" in said or "does not exist" in said


def test_a_pipe_is_no_picture_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(MineditError, match="expected a PNG"):
            image.settings(path)


def test_a_small_model_outlives_its_file_cut_short(model, tmp_path):
    """It was mapped, and the process died of SIGBUS at the first use of what was cut off."""
    path = tmp_path / "model"
    path.write_bytes(model.read_bytes())
    held = load(path)
    os.truncate(path, 100)
    assert all(torch.isfinite(x).all() for x in held.unet.state_dict().values())


def test_a_large_file_stays_where_it_is_and_is_checked_at_each_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "STAYS", 1)
    save_file({"a": torch.arange(5000.0), "b": torch.ones(9)}, tmp_path / "file")
    from minedit.files.formats import read

    tensors, _ = read(tmp_path / "file")
    with stored.Files() as files:
        first = tensors["a"].read(torch.float32, files)
        assert torch.equal(first, torch.arange(5000.0))
        os.replace(tmp_path / "file", tmp_path / "moved")
        assert torch.equal(tensors["b"].read(torch.float32, files), torch.ones(9))  # of the same file still
        first[0] = 7
        os.truncate(tmp_path / "moved", (tmp_path / "moved").stat().st_size - 4)
        with pytest.raises(MineditError, match="has become shorter"):
            tensors["b"].read(torch.float32, files)


def test_a_large_model_whose_file_was_written_to_is_a_line_before_it_is_used(model, tmp_path, monkeypatch):
    """The next run died of SIGBUS, or drew with other weights."""
    monkeypatch.setattr(stored, "STAYS", 1)
    path, moved = tmp_path / "model", tmp_path / "moved"
    path.write_bytes(model.read_bytes())
    held = load(path)
    minedit.generate(held, "a boy", steps=1)
    os.replace(path, moved)
    path.write_bytes(b"")  # another file
    minedit.generate(held, "a boy", steps=1)
    os.replace(moved, path)
    os.utime(path, ns=(0, 1))
    with pytest.raises(MineditError, match="was written to while its model was in use; load the model again"):
        minedit.edit(held, "a boy", "a dog", "fixed-seed", steps=1)
    os.truncate(path, 4096)
    for use in (lambda: minedit.generate(held, "a boy", steps=1), lambda: save(held, tmp_path / "again")):
        with pytest.raises(MineditError, match="was cut short while its model was in use; load the model again"):
            use()


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="Windows has no SIGBUS")
def test_a_large_model_whose_file_is_cut_short_amid_a_run_is_a_line(model, tmp_path):
    (tmp_path / "model").write_bytes(model.read_bytes())
    code = """
import os, sys
from minedit import __main__
from minedit.files import stored
from minedit.sampling import loop
stored.STAYS = 1
whole = loop.guided
loop.guided = lambda *parts: os.truncate("model", 4096) or whole(*parts)  # the file has been checked before
sys.exit(__main__.main())
"""
    line = ["generate", "a boy", "--model", "model", "--threads", "2", "--steps", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *line],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(stored.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("minedit: error: a file was cut short while it was in use")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files in /proc")
def test_a_large_model_does_not_keep_a_file_open_for_each_tensor(model, monkeypatch):
    """Stable Diffusion v1 has 1130, and a process of Linux may open 1024."""
    monkeypatch.setattr(stored, "STAYS", 1)
    monkeypatch.setattr(stored, "WINDOW", 2**20)
    before = len(os.listdir("/proc/self/fd"))
    held, small = load(model), load_small(model, monkeypatch)
    windows = -(-model.stat().st_size // 2**20)
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * windows < len(held.unet.state_dict())
    for name, tensor in small.unet.state_dict().items():
        assert torch.equal(tensor, held.unet.state_dict()[name]), name


def load_small(path, monkeypatch):
    monkeypatch.setattr(stored, "STAYS", 2**40)
    return load(path)


def test_a_full_disk_is_a_line(tmp_path, monkeypatch):
    """The drawings are mapped: writing to pages that the disk has no place for is SIGBUS. So it is asked for before."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dataset, "_reserve", full)
    with pytest.raises(MineditError, match="cannot write .*No space left on device"):
        Drawings(tmp_path, 2, 16, seed=1)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert len(Drawings(tmp_path, 2, 16, seed=1)) == 2 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the size of files")
def test_the_place_of_the_drawings_is_there_before_they_are_drawn(tmp_path):
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from pathlib import Path
from minedit.config import MineditError
from minedit.picturebook.world.dataset import Drawings
try:
    Drawings(Path({str(tmp_path)!r}), 4, 128, seed=1)
except MineditError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "cannot write" in done.stdout
    assert np.prod((4, 128, 128, 3)) > 4096
