"""How many threads compute, beside other programs. Oracle: what a busy machine's counters say, by hand."""

import pytest
import torch

from minedit.speed import threads


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def test_cores_that_others_use():
    assert threads.others((10.0, 1.0, 100.0), (16.0, 3.0, 102.0)) == 2  # 6 s of work, 2 of them one's own, in 2 s
    assert threads.others((10.0, 1.0, 100.0), (10.0, 3.0, 102.0)) == 0


@pytest.mark.parametrize("used, expected", [(0, 4), (0.4, 4), (1.0, 3), (2.9, 1), (9, 1)])
def test_threads_are_the_cores_left(used, expected):
    assert threads.free(4, 4, used) == expected


def test_a_busy_machine_gets_fewer_and_says_so(monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(threads, "look", lambda: (20.0, 5.0, 110.0))
    assert threads.choose(2, (10.0, 5.0, 100.0)) == ", threads 2"  # asked for
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.choose(None, (10.0, 5.0, 100.0)) == ", threads 2"  # asked for otherwise
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.choose(None, None) == ", threads 2"
    assert threads.choose(None, (20.0, 5.0, 100.0)) == ", threads 2"  # nobody else
    assert "threads 1 of 2, as others use 1.0 cores" in threads.choose(None, (10.0, 5.0, 100.0))
    assert torch.get_num_threads() == 1
