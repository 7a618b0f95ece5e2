"""A training loop for a GPU, by the clock: a step is recorded once and replayed, the host only sets the learning rate.

All parameters of a module lie in one flat float32 vector, those of equal shape side by side, so that Muon takes them in
batches, and clipping, AdamW and the average are a few operations on the whole. A copy of the module in `dtype` computes
the gradients. On a CPU the same code runs, unrecorded.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from minedit.picturebook.cuda.record import Dice, recorded
from minedit.picturebook.training.fit import learning_rate
from minedit.picturebook.training.muon import all_orthogonalised

Loss = Callable[[nn.Module], dict[str, Tensor]]  # the computing copy -> named scalars; "loss" is minimised
ALIGNED = 64  # numbers: every parameter that is not Muon's begins at a multiple, where fast kernels want it
AHEAD = 2  # steps that the host may be ahead of the device
MOMENTUM, BETAS, EPS = 0.95, (0.9, 0.99), 1e-8
BLOWN = 3.0  # times the least mean loss so far: then training has gone astray


class Learner:
    """Muon for `hidden` matrices and filters of a module, AdamW for the rest, and an average of the parameters."""

    def __init__(
        self, module: nn.Module, hidden: Callable[[str], bool], dtype: torch.dtype, weight_decay: float = 0.0
    ) -> None:
        self.module, self.weight_decay = module, weight_decay
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        whole = next(iter(trained.values()))
        self.device = whole.device
        orthogonal, matrices, vectors = {}, [], []
        for name, p in trained.items():
            rows = p.shape[0]
            if p.ndim > 1 and hidden(name) and p.numel() % ALIGNED == 0:
                orthogonal.setdefault((rows, p.numel() // rows), []).append(name)
            else:
                (matrices if p.ndim > 1 else vectors).append(name)
        self.places: dict[str, int] = {}
        self.groups, end = [], 0  # (begin, n, rows, columns) of matrices of one shape
        for (rows, columns), names in sorted(orthogonal.items()):
            self.groups.append((end, len(names), rows, columns))
            for name in names:
                self.places[name], end = end, end + rows * columns
        self.muon = end
        for names in (matrices, vectors):
            for name in names:
                self.places[name], end = end, end + -(-trained[name].numel() // ALIGNED) * ALIGNED
            self.decayed = end if names is matrices else self.decayed
        self.shapes = {name: trained[name].shape for name in self.places}

        def zeros(count: int = 1) -> Tensor:
            return torch.zeros(count, device=self.device, dtype=whole.dtype)

        self.master, self.gradient = zeros(end), zeros(end)
        for name, view in self.views(self.master).items():
            view.copy_(trained[name].detach())
        self.average = self.master.clone()
        self.momentum, self.first, self.second = zeros(self.muon), zeros(end - self.muon), zeros(end - self.muon)
        self.steps, self.skipped, self.rate, self.share = zeros(), zeros(), zeros(), zeros()
        self.work = copy.deepcopy(module).to(dtype)
        self.values = self.master.to(dtype)
        for name, view in self.views(self.values).items():
            self.work.get_parameter(name).data = view
        self.gradients = self.views(self.gradient)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters' parts of a flat vector; filters channels-last, as convolutions of a GPU like them."""
        found = {}
        for name, shape in self.shapes.items():
            part = flat[self.places[name] : self.places[name] + shape.numel()]
            if len(shape) == 4:
                o, i, h, w = shape
                found[name] = part.view(o, h, w, i).permute(0, 3, 1, 2)
            else:
                found[name] = part.view(shape)
        return found

    def step(self, loss: Loss) -> dict[str, Tensor]:
        """One step, with nothing that waits for the device. A gradient that is not finite counts as zero."""
        values = loss(self.work)
        wanted = [self.work.get_parameter(name) for name in self.gradients]
        found = torch.autograd.grad(values["loss"], wanted, allow_unused=True)
        with torch.no_grad():
            for view, grad in zip(self.gradients.values(), found, strict=True):
                if grad is not None:
                    view.copy_(grad)
            self._update()
        return {name: value.detach().float() for name, value in values.items()}

    def _update(self) -> None:
        norm = torch.linalg.vector_norm(self.gradient)
        sound, clipped = torch.isfinite(norm), self.gradient * (1 / (norm + 1e-6)).clamp(max=1)
        grad = torch.where(sound, clipped, torch.zeros_like(clipped))
        self.steps += 1
        self.skipped += (~sound).float()
        self.master[: self.decayed].mul_(1 - self.rate * self.weight_decay)
        g, split = grad[: self.muon], self.muon
        self.momentum.lerp_(g, 1 - MOMENTUM)
        ahead = g.lerp(self.momentum, MOMENTUM)
        for begin, n, rows, columns in self.groups:
            part = slice(begin, begin + n * rows * columns)
            update = all_orthogonalised(ahead[part].view(n, rows, columns)) * (0.2 * max(rows, columns) ** 0.5)
            self.master[part].sub_(self.rate * update.reshape(-1))
        g, (b1, b2) = grad[split:], BETAS
        self.first.lerp_(g, 1 - b1)
        self.second.mul_(b2).addcmul_(g, g, value=1 - b2)
        lengths = (self.second / (1 - b2**self.steps)).sqrt() + EPS
        self.master[split:].sub_(self.rate * (self.first / (1 - b1**self.steps)) / lengths)
        self.average.lerp_(self.master, self.share)
        self.values.copy_(self.master)

    def averaged(self) -> nn.Module:
        """`module`, in float32, with the averaged parameters."""
        with torch.no_grad():
            for name, view in self.views(self.average).items():
                self.module.get_parameter(name).copy_(view)
        return self.module

    @torch.no_grad()
    def go_back(self) -> None:
        """To the average, with empty momenta."""
        self.average.nan_to_num_()
        for flat in (self.momentum, self.first, self.second, self.steps):
            flat.zero_()
        self.master.copy_(self.average)
        self.values.copy_(self.master)

    def state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).cpu() for name in STATE}

    @torch.no_grad()
    def resume(self, state: dict[str, Tensor]) -> None:
        for name in STATE:
            getattr(self, name).copy_(state[name])
        self.values.copy_(self.master)


STATE = ("master", "average", "momentum", "first", "second", "steps")


def learn(
    part: str,
    learner: Learner,
    loss: Loss,
    dice: Dice,
    *,
    seconds: float,
    batch: int,
    peak: float,
    log: Callable[[dict[str, float | str]], None],
    file: Path,
    between: Callable[[], None] = lambda: None,
    kept: Callable[[], None] = lambda: None,
    every: float = 3.0,
    save_every: float = 60.0,
) -> None:
    """Train for `seconds`, on whose share that is over the learning rate depends. Resumes what is in `file`.

    Args:
        log: takes a row every `every` seconds, after which `between` is called.
        kept: called after each save, `save_every` seconds apart.
    """
    began, before = time.monotonic(), 0.0
    torch.backends.cudnn.benchmark = True  # shapes stay the same here, as they do nowhere else
    if file.exists():
        state = torch.load(file, map_location=learner.device, weights_only=True)
        learner.resume(state["learner"])
        before = state["seconds"]
        print(f"{part}: goes on after {before:.0f} s", flush=True)
    # by the least loss of a stretch it is told whether training has gone astray
    totals, least, scale, taken = None, float("inf"), 1.0, 0

    def run() -> None:
        nonlocal totals
        values = learner.step(loss)
        if totals is None:
            totals = {name: torch.zeros_like(value) for name, value in values.items()}
        for name, value in values.items():
            totals[name] += value

    def set_rate() -> None:
        gone = time.monotonic() - began
        progress = (before + gone) / (before + seconds)
        learner.rate.fill_(scale * learning_rate(1000 * progress, 1000, peak, warmup=40))
        learner.share.fill_(1 / (10 + 0.1 * taken))  # an average over the last tenth of all steps

    set_rate()
    learner.rate.mul_(0.1)  # the steps that warm the kernels up
    replay = recorded(run, dice)
    for total in (totals or {}).values():
        total.zero_()
    queue, saved, tick, done = [], time.monotonic(), time.monotonic(), 0
    while time.monotonic() - began < seconds:
        set_rate()
        replay()
        taken, done = taken + 1, done + 1
        if learner.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            queue.append(event)
            if len(queue) > AHEAD:
                queue.pop(0).synchronize()
        if time.monotonic() - tick < every and time.monotonic() - began < seconds:
            continue
        means = {name: value.item() / done for name, value in totals.items()}
        speed = done * batch / (time.monotonic() - tick)
        row = {"part": part, "step": taken, **means, "samples_s": speed, "rate": learner.rate.item()}
        log(row | {"skipped": learner.skipped.item()})
        for total in totals.values():
            total.zero_()
        if not means["loss"] < BLOWN * least:
            scale /= 2
            print(f"{part}: loss {means['loss']} at step {taken}: back to the average, at half the rate", flush=True)
            learner.go_back()
        else:
            least = min(least, means["loss"])
        if time.monotonic() - saved > save_every:
            _save(file, learner, before + time.monotonic() - began)
            kept()
            saved = time.monotonic()
        between()
        tick, done = time.monotonic(), 0
    torch.backends.cudnn.benchmark = False
    print(f"{part}: {taken} steps of {batch}, {learner.skipped.item():.0f} of them not finite", flush=True)


def _save(file: Path, learner: Learner, seconds: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"learner": learner.state(), "seconds": seconds}, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)
