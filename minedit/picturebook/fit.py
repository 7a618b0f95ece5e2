"""The one training loop of the picture book: seeded, resumable, logged.

Every step draws its data from a random stream named by the step, so a run that was stopped and resumed sees what an
uninterrupted one sees. (Dropout, in the judge alone, draws from torch's own stream and does not repeat.) State goes to
`<folder>/state.pt`, written to a temporary name, then renamed; figures go to `<folder>/log.csv`.

Several processes, started by `torchrun`, train one module together: each on data of its own, with the mean of all
gradients. The first alone reports and saves.
"""

from __future__ import annotations

import csv
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW
from tqdm import tqdm

from minedit.config import MineditError
from minedit.picturebook.draw import stream

Loss = Callable[[int], dict[str, Tensor]]  # step -> named scalars; "loss" is minimised, all are logged
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
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 has none: then float32
        slow = device == "cpu" and not capabilities.get("avx512_bf16")
        return torch.autocast(device, torch.bfloat16, enabled=not slow)


def worker() -> int:
    """0 ... workers() - 1: which of the processes that train together this is. `torchrun` starts several."""
    return dist.get_rank() if dist.is_initialized() else 0


def workers() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def first_worker_first() -> Iterator[None]:
    """The first worker goes through the block before the others, which find on disk what it made there."""
    if worker():
        dist.barrier()
    yield
    if workers() > 1 and not worker():
        dist.barrier()


def share_gradients(module: nn.Module) -> None:
    """Put the mean of all workers' gradients in the place of each one's own."""
    if workers() == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])  # one message instead of hundreds
    dist.all_reduce(flat)
    parts = (flat / workers()).split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


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
    evaluate: Evaluate | None = None,
) -> nn.Module:
    """Train `module` for `run.steps` steps with AdamW, and return it with its final parameters.

    Resumes from `run.folder` what was stopped there.

    Args:
        name: shown beside the progress bar.
        loss: called once a step; gradients are clipped to norm 1.
        peak: highest learning rate, see `learning_rate`.
        ema: decay of the average of the parameters that is returned in their place; None for no average.
        weight_decay: of matrices and filters; biases and norms have none.
        evaluate: called at every save, on the average if there is one.

    Raises:
        MineditError: the state in the folder is that of another network.
        RuntimeError: the gradient is not finite.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    optimiser, average = _optimiser(module, peak, weight_decay), EMA(module, ema) if ema else None
    start, seconds = _resume(run.folder / "state.pt", module, optimiser, average)
    totals: dict[str, float] = {}
    tick, logged = time.monotonic(), start
    first = worker() == 0  # which alone reports and saves
    bar = tqdm(range(start, run.steps), initial=start, total=run.steps, desc=name, mininterval=5, disable=not first)
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, run.steps, peak)
        values = loss(step)
        optimiser.zero_grad(set_to_none=True)
        values["loss"].backward()
        share_gradients(module)
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise RuntimeError(f"{name}: gradient is {norm.item()} at step {step}; lower the learning rate and resume")
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
            _log(run.folder / "log.csv", {"step": done, "seconds": round(seconds), **row})
            bar.set_postfix({key: f"{value:.4f}" for key, value in row.items()})
        if saving:
            _save(run.folder / "state.pt", module, optimiser, average, done, seconds)
    if average:
        module.load_state_dict({**module.state_dict(), **average.shadow})
    return module


def _optimiser(module: nn.Module, peak: float, weight_decay: float) -> AdamW:
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW(groups, lr=peak, betas=(0.9, 0.99), foreach=True)


def _save(file: Path, module: nn.Module, optimiser: AdamW, average: EMA | None, step: int, seconds: float) -> None:
    state = {"module": module.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "seconds": seconds}
    if average:
        state |= {"ema": average.shadow, "ema_count": average.count}
    torch.save(state, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


def _resume(file: Path, module: nn.Module, optimiser: AdamW, average: EMA | None) -> tuple[int, float]:
    """(steps done, seconds they took), after putting the state in place; (0, 0) where there is none."""
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, map_location=next(module.parameters()).device, weights_only=True)
    try:
        module.load_state_dict(state["module"])
    except RuntimeError as error:
        raise MineditError(f"{file} is the state of another network; remove it to start anew, or say --runs") from error
    optimiser.load_state_dict(state["optimiser"])
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


def _log(path: Path, row: dict[str, float]) -> None:
    """Append a row; columns that appear only in some rows stay empty in the others."""
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    columns = list(dict.fromkeys([*(rows[0] if rows else []), *row]))
    if rows and list(rows[0]) == columns:
        with path.open("a", newline="") as file:
            csv.DictWriter(file, columns).writerow(row)
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows([*rows, row])
