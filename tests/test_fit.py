"""The training loop, on a network of a few dozen weights. Oracles: an uninterrupted run, the formula of the rate."""

import csv
import subprocess
import sys

import pytest
import torch
from seeded import normal
from torch import nn

from minedit.config import MineditError
from minedit.picturebook.training.fit import Training, fit, learning_rate


class Stopped(Exception):
    pass


def trained(folder, stop=None, steps=6, muon=None, seed=0):
    """A small network after `steps` steps, or None where `loss` raises at step `stop`."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 3), nn.LayerNorm(3))

    def loss(step):
        if step == stop:
            raise Stopped
        x = normal(f"step {step}", 16, 4)
        error = (module(x) - x[:, :3]).square().mean()
        return {"loss": error, "double": 2 * error}

    run = Training(folder, steps, log_every=1, save_every=3)
    figures = {"peak": 0.1, "ema": 0.9, "weight_decay": 0.1, "evaluate": lambda module: {"eval": module.training}}
    try:
        return fit("toy", module, loss, run, muon=muon, **figures)
    except Stopped:
        return None


def rows(folder):
    return [{**row, "seconds": ""} for row in csv.DictReader((folder / "log.csv").open())]


@pytest.mark.parametrize("stop", (3, 5), ids=("at a save", "between saves"))
@pytest.mark.parametrize("muon", (None, lambda name: name == "0.weight"), ids=("adamw", "muon"))
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, muon, stop):
    whole = trained(tmp_path / "whole", muon=muon)
    assert trained(tmp_path / "parts", stop=stop, muon=muon) is None
    resumed = trained(tmp_path / "parts", muon=muon)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    first, second = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts"))
    assert str(first["optimisers"]) == str(second["optimisers"]) and first["step"] == second["step"] == 6


def test_training_lowers_the_loss_and_logs_it(tmp_path):
    trained(tmp_path, steps=60)
    log = rows(tmp_path)
    assert [int(row["step"]) for row in log] == list(range(1, 61))
    assert float(log[-1]["loss"]) < 0.5 * float(log[0]["loss"])
    assert all(abs(float(row["double"]) - 2 * float(row["loss"])) < 1e-6 for row in log)
    assert [row["eval"] for row in log[:3]] == ["", "", "False"]  # evaluated in eval mode, at saves only


def test_a_finished_run_is_returned_as_it_ended(tmp_path):
    ended = trained(tmp_path)
    again = trained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(ended.parameters(), again.parameters(), strict=True))


def test_what_is_returned_is_the_average(tmp_path):
    module = trained(tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(torch.equal(p, state["ema"][name]) for name, p in module.named_parameters())
    assert not torch.equal(state["ema"]["0.weight"], state["module"]["0.weight"])


def test_the_state_of_another_network_is_refused(tmp_path):
    trained(tmp_path)
    with pytest.raises(MineditError, match="state.pt is the state of another network; remove it"):
        fit("toy", nn.Linear(2, 2), lambda step: {}, Training(tmp_path, 9), peak=0.1)


def test_another_run_is_not_gone_on_with(tmp_path):
    """Its learning rate, its chances or its weights would be another's."""
    trained(tmp_path)
    with pytest.raises(MineditError, match="is another run: steps 6, asked for 9; remove it to start anew, or say --r"):
        trained(tmp_path, steps=9)
    with pytest.raises(MineditError, match="is another run: weights .*, asked for"):
        trained(tmp_path, seed=1)


def test_a_loss_that_explodes_stops_the_run(tmp_path):
    module = nn.Linear(2, 2)
    with pytest.raises(MineditError, match="toy: the gradient is nan at step 0; try a longer --warmup"):
        fit("toy", module, lambda step: {"loss": module.weight.sum() * torch.nan}, Training(tmp_path, 9), peak=0.1)


def test_the_warmup_asked_for(tmp_path):
    """AdamW's first step is as long as the learning rate, whatever the gradient."""
    module = nn.Linear(2, 2, bias=False)
    before = module.weight.detach().clone()
    run = Training(tmp_path, 1, log_every=1, save_every=1, warmup=4)
    fit("toy", module, lambda step: {"loss": module.weight.sum()}, run, peak=0.1, weight_decay=0.0)
    assert torch.allclose(before - module.weight, torch.full((2, 2), 0.1 / 4))


def test_learning_rate():
    rates = [learning_rate(step, 1000, 2.0) for step in range(1001)]
    assert rates[0] == 2.0 / 200 and max(rates) == rates[200] == 2.0
    assert rates[600] == pytest.approx(2.0 * 0.51) and rates[1000] == pytest.approx(2.0 * 0.02)


TOGETHER = """
import sys
from pathlib import Path
import torch
from torch import nn
from minedit.picturebook.training.fit import Training, fit
from minedit.picturebook.training.workers import first_worker_first, together, worker, workers
torch.set_num_threads(1)
folder = Path(sys.argv[1])
threads = lambda: [name for file in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := file.read_text())]
torch.manual_seed(0)
module = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3))
x = torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(1))
run = Training(folder / "run", 6, log_every=1, save_every=3)
drawn = []
def loss(step):
    drawn.append((run.chances("toy", step).random(), run.noise(step).initial_seed()))
    rows = x[step].chunk(workers())[worker()]
    return {"loss": (module(rows) - rows[:, :3]).square().mean()}
with together("gloo"):
    with first_worker_first():
        if worker() == 0:
            (folder / "made").touch()
        assert (folder / "made").exists()
    fit("toy", module, loss, run, peak=0.1, muon=lambda name: name != "2.weight")
    torch.save({"weights": module.state_dict(), "drawn": drawn}, folder / f"{workers()}-{worker()}.pt")
    assert not Path("/proc").exists() or bool(threads()) == (workers() > 1)
assert not threads(), "a thread that lets go of a tensor while Python ends aborts the process"
"""


def test_two_workers_train_as_one_on_both_their_data(tmp_path):
    """The mean of the gradients of two halves of a batch is the gradient of the batch."""
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        done = subprocess.run([*command, script, folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(rows(folder / "run")) == 6
    one, *two = (torch.load(tmp_path / name[0] / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for found in two:
        for name, expected in one["weights"].items():
            assert torch.allclose(found["weights"][name], expected, atol=1e-6), name
    assert two[0]["drawn"] == one["drawn"] and all(
        a != b for a, b in zip(two[0]["drawn"], two[1]["drawn"], strict=True)
    )
