"""A command that is ended from outside: nothing half-written stays, nothing is a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from small_model import small_model

import minedit.__main__ as command
from minedit import cli, image
from minedit.files import checkpoint
from minedit.picturebook.world.dataset import Drawings

BOY = "a boy in the park"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "load", lambda *_: small_model())
    return lambda *argv: cli.main([*map(str, argv), "--steps", "2"])


def test_an_interruption_while_things_are_imported_is_no_traceback(monkeypatch, capsys):
    class Interrupted:
        def find_spec(self, name, *_):
            if name == "minedit.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "minedit.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert command.main() == 130
    [signal.signal(number, each) for number, each in zip((signal.SIGTERM, signal.SIGHUP), before, strict=True)]
    assert capsys.readouterr().err == "\nminedit: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(tmp_path, monkeypatch, number):
    """SIGTERM ended the process before it could remove the file that it was writing."""

    def write(part):
        part.write_text("half")
        os.kill(os.getpid(), number)

    monkeypatch.setattr(cli, "_run", lambda _: image.write_whole(tmp_path / "a.png", write))
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(number, signal.SIG_DFL)
        assert command.main() == 128 + number
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_is_removed_by_the_next(run, tmp_path, dead):
    """And nothing else: what runs still, and what is no part of ours, stays."""
    others = [f".a.png.{os.getpid()}.part", f".a.png.{os.getppid()}.part", ".a.png.part", f".b.ckpt.{dead}.part"]
    for name in (*others, f".a.png.{dead}.part"):
        (tmp_path / name).write_text("half")
    image.write_whole(tmp_path / "a.png", lambda part: part.write_text("whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others[1:], "a.png"])


def test_what_a_killed_judge_left_is_removed_by_the_next(tmp_path, dead):
    """Runs at the same time have a file each."""
    (tmp_path / f".drawings-unseen-2-16-1-00000000.npy.{dead}.part").write_text("half")
    (tmp_path / f".masks-unseen-2-16-1-00000000.npy.{os.getppid()}.part").write_text("half")
    Drawings(tmp_path, 2, 16, seed=1)
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names == [".masks", "drawings", "masks"]


@pytest.mark.parametrize("place, status", [("a pipe that nobody reads", 141), ("/dev/full", 2)])
def test_output_that_goes_nowhere(run, monkeypatch, capsys, place, status):
    """`minedit ... | head -1`, `minedit ... >/dev/full`."""
    if place == "/dev/full":
        if not os.path.exists(place):
            pytest.skip("needs /dev/full")
        stream = open(place, "w")  # noqa: SIM115
    else:
        reads, writes = os.pipe()
        os.close(reads)
        stream = os.fdopen(writes, "w")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert run("generate", BOY) == status
        stream.close()  # which would fail if anything were left to say
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if status == 2:
        assert "minedit: error: cannot write to the terminal, pipe or file (No space left on device)" in said
