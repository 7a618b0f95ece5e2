"""The one training loop of the picture book: seeded, resumable, logged.

Every step draws its data from a random stream named by the step, so a run that was stopped and resumed sees what an
uninterrupted one sees. (Dropout, in the judge alone, draws from torch's own stream and does not repeat.) State goes to
`<folder>/state.pt`, written to a temporary name, then renamed; figures go to `<folder>/log.csv`.

Several processes train one module together (workers.py), with the mean of all gradients. The first alone reports and
saves.
"""

import hashlib
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from tqdm import tqdm

from minedit.config import MineditError
from minedit.picturebook.training.log import forget, log
from minedit.picturebook.training.muon import Muon
from minedit.picturebook.training.workers import add_up, worker, workers
from minedit.picturebook.world.draw import stream
from minedit.speed import cpu

Loss = Callable[[int], dict[str, Tensor]]  # step -> named scalars; "loss" is minimised, all are logged
Told = dict[str, float | str]  # what a run is, beside its weights
Evaluate = Callable[[nn.Module], dict[str, float]]  # module -> named figures, logged


@dataclass(frozen=True)
class Training:
    """A training of one module: where it is kept, how long it lasts, what it runs on, where its chances come from."""

    folder: Path  # of state.pt and log.csv
    steps: int  # optimiser steps in all; the learning rate's schedule depends on it
    device: str = "cpu"
    seed: int = 0  # of initial weights, scenes, captions and noise
    log_every: int = 50  # steps a row of the log is the mean of
    save_every: int = 500  # steps; a multiple of log_every, so that no row is lost when a run is stopped
    warmup: int = 200  # steps until the learning rate is at its peak; fewer where a trained network goes on
    compile: bool = False  # the UNet by torch.compile: minutes at the start, then somewhat faster steps

    def noise(self, step: int) -> torch.Generator:
        """The CPU generator of a step's noise, another in each worker."""
        return torch.Generator("cpu").manual_seed(self.seed * 1_000_003 + step + 500_009 * worker())

    def chances(self, name: str, step: int) -> random.Random:
        """The stream of a step's other chances, another in each worker."""
        return stream(self.seed, f"{name}:{step}" + (f":{worker()}" if worker() else ""))

    def bfloat16(self) -> torch.autocast:
        """Inside this block matrix products and convolutions are computed in bfloat16, where that is the faster way.

        A CPU without bfloat16 instructions emulates them: the UNet then takes twice the time of float32.
        """
        device = torch.device(self.device).type
        return torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or bool(cpu.this().bfloat16))

    def told(self) -> str:
        """What it computes on, and in which dtype."""
        device = torch.device(self.device)
        if device.type != "cpu":
            return f"{device}, bfloat16"
        return f"cpu, bfloat16 ({how})" if (how := cpu.this().bfloat16) else "cpu, float32, the faster here"


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then a half cosine down to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class EMA:
    """Exponential moving average of a module's parameters; the decay ramps up so that early steps are forgotten."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        params = dict(module.named_parameters())
        torch._foreach_lerp_(list(self.shadow.values()), [params[name] for name in self.shadow], 1 - decay)


def fit(
    name: str,
    module: nn.Module,
    loss: Loss,
    run: Training,
    *,
    peak: float,
    ema: float | None = None,
    weight_decay: float = 0.01,
    muon: Callable[[str], bool] | None = None,
    evaluate: Evaluate | None = None,
) -> nn.Module:
    """Train `module` for `run.steps` steps with AdamW, or Muon beside it, and return it with its final parameters.

    Resumes from `run.folder` what was stopped there, if that was the same run: steps, warm-up, seed, workers, weights.

    Args:
        name: shown beside the progress bar.
        loss: called once a step; gradients are clipped to norm 1.
        peak: highest learning rate, see `learning_rate`.
        ema: decay of the average of the parameters that is returned in their place; None for no average.
        weight_decay: of matrices and filters; biases and norms have none.
        muon: which matrices and filters, by name, Muon trains in AdamW's place; None for none.
        evaluate: called at every save, on the average if there is one.

    Raises:
        MineditError: the state in the folder is that of another network or another run, or the gradient is not finite.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    optimisers, average = _optimisers(module, peak, weight_decay, muon), EMA(module, ema) if ema else None
    asked = {"steps": run.steps, "warmup": run.warmup, "seed": run.seed, "workers": workers()}
    asked["weights"] = fingerprint(module)
    start, seconds = _resume(run.folder / "state.pt", module, optimisers, average, asked)
    forget(run.folder / "log.csv", start)
    totals: dict[str, float] = {}
    tick, logged = time.monotonic(), start
    first = worker() == 0  # which alone reports and saves
    if first:
        print(f"{name}: {run.told()}")
    bar = tqdm(range(start, run.steps), initial=start, total=run.steps, desc=name, mininterval=5, disable=not first)
    for step in bar:
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = learning_rate(step, run.steps, peak, run.warmup)
        values = loss(step)
        module.zero_grad(set_to_none=True)
        values["loss"].backward()
        _average_gradients(module)
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise MineditError(
                f"{name}: the gradient is {norm.item()} at step {step}; try a longer --warmup or another --seed"
            )
        for optimiser in optimisers:
            optimiser.step()
        if average:
            average.update(module)
        for key, value in values.items():
            totals[key] = totals.get(key, 0.0) + value.item()

        done = step + 1
        saving = first and (done % run.save_every == 0 or done == run.steps)
        if first and (done % run.log_every == 0 or done == run.steps):
            seconds, tick = seconds + time.monotonic() - tick, time.monotonic()
            row = {key: total / (done - logged) for key, total in totals.items()}
            totals, logged = {}, done
            if evaluate and saving:
                with _averaged(module, average):
                    row |= evaluate(module)
                tick = time.monotonic()
            log(run.folder / "log.csv", {"step": done, "seconds": round(seconds), **row})
            bar.set_postfix({key: f"{value:.4f}" for key, value in row.items()})
        if saving:
            _save(run.folder / "state.pt", module, optimisers, average, asked | {"step": done, "seconds": seconds})
    if average:
        module.load_state_dict({**module.state_dict(), **average.shadow})
    return module


def _optimisers(
    module: nn.Module, peak: float, weight_decay: float, muon: Callable[[str], bool] | None
) -> list[Optimizer]:
    orthogonal, matrices, vectors = [], [], []
    for name, p in module.named_parameters():
        (vectors if p.ndim <= 1 else orthogonal if muon and muon(name) else matrices).append(p)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = AdamW(groups, lr=peak, betas=(0.9, 0.99), foreach=True)
    return [adamw, Muon(orthogonal, peak, weight_decay=weight_decay)] if orthogonal else [adamw]


def _average_gradients(module: nn.Module) -> None:
    """Put the mean of all workers' gradients in the place of each one's own."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    add_up(gradients)
    if workers() > 1:
        torch._foreach_div_(gradients, workers())


def fingerprint(module: nn.Module) -> str:
    """A short name of its weights."""
    weights = (p.detach().cpu().contiguous().numpy() for p in module.parameters())
    return hashlib.sha256(b"".join(x.tobytes() for x in weights)).hexdigest()[:8]


def _save(file: Path, module: nn.Module, optimisers: list[Optimizer], average: EMA | None, told: Told) -> None:
    kept = [optimiser.state_dict() for optimiser in optimisers]
    state = {"module": module.state_dict(), "optimisers": kept, **told}
    if average:
        state |= {"ema": average.shadow, "ema_count": average.count}
    torch.save(state, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


def _resume(
    file: Path, module: nn.Module, optimisers: list[Optimizer], average: EMA | None, asked: Told
) -> tuple[int, float]:
    """(steps done, seconds they took), after putting the state in place; (0, 0) where there is none."""
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, map_location=next(module.parameters()).device, weights_only=True)
    other = [
        f"{name} {state.get(name)}, asked for {value}" for name, value in asked.items() if state.get(name) != value
    ]
    try:
        module.load_state_dict(state["module"])
        for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
    except (KeyError, RuntimeError, ValueError) as error:
        raise MineditError(f"{file} is the state of another network; remove it to start anew, or say --runs") from error
    if other:
        raise MineditError(f"{file} is another run: {'; '.join(other)}; remove it to start anew, or say --runs")
    if average:
        average.shadow, average.count = state["ema"], state["ema_count"]
    return state["step"], state["seconds"]


@contextmanager
def _averaged(module: nn.Module, average: EMA | None) -> Iterator[None]:
    """Inside the block the module is in eval mode and holds its averaged parameters, where there is an average."""
    kept = {name: p.detach().clone() for name, p in module.named_parameters()} if average else {}
    _put(module, average.shadow if average else {})
    module.eval()
    try:
        yield
    finally:
        _put(module, kept)
        module.train()


@torch.no_grad()
def _put(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        module.get_parameter(name).copy_(value)
