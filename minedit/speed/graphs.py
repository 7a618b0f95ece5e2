"""CUDA graphs: a step of the UNet is recorded once and replayed as one launch, with its rules updated in place.

A step of SD-v1.4 is a thousand small kernels; at one or two pictures the CPU that launches them is the slower of the
two. A graph keeps the launches and the addresses they read, so whatever changes from step to step, latents, times, text
and the tensors of the rules, is copied to where the recorded kernels look for it. What cannot change inside a graph,
shapes, rows, which layers have a rule, tells recordings apart: `Recorded` has one for each that it met.
"""

import gc
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from typing import TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

from minedit.attention.rules import Attn, Edit, Gate, Rule, Seen, Split
from minedit.attention.tap import any_held
from minedit.config import MineditError

LIMIT = 16  # recordings kept; an edit makes four to eight
WARM_UP = 2  # runs before recording: kernels are compiled and chosen in them

Result = TypeVar("Result", Tensor, tuple[Tensor, dict[str, Seen]])  # of the UNet: noise, what watched layers saw
Forward = Callable[[Tensor, Tensor, Tensor, Attn, list[Tensor]], Tensor]  # UNet.forward
Record = Callable[[Callable[[], Result]], tuple[Callable[[], None], Result]]


_alive: dict[int, WeakSet[torch.cuda.CUDAGraph]] = {}  # graphs that share memory, by their device


def cuda_graph(
    run: Callable[[], Result], generators: Sequence[torch.Generator] = ()
) -> tuple[Callable[[], None], Result]:
    """Record what `run` launches on the current device. Returns a function that launches it again, and its result.

    All recordings of a device share their memory: one is replayed at a time, and its result read before the next.
    generators: those that `run` draws from, beside torch's own; each launch draws anew. Raises RuntimeError where it
    cannot be recorded; the next one can.
    """
    before, alive = torch.cuda.current_stream(), _alive.setdefault(torch.cuda.current_device(), WeakSet())
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(before)
    with torch.cuda.stream(side):  # a recording that cannot begin would leave its stream the current one
        for _ in range(WARM_UP):
            run()
        for generator in generators:
            graph.register_generator_state(generator)
        pool = _pool(alive)
        try:
            with _uncollected(), torch.cuda.graph(graph, pool=pool, stream=side):  # torch's own is one device's
                result = run()
        except RuntimeError:
            alive.clear()  # torch keeps the memory of a recording that failed
            _undone(pool)
            raise
    before.wait_stream(side)
    alive.add(graph)
    return graph.replay, result


@contextmanager
def _uncollected() -> Iterator[None]:
    """In it Python collects no garbage: a graph, or a kernel of Triton's, that goes meanwhile ends a recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _undone(pool: tuple[int, int]) -> None:
    """What torch, 2.11 at least, leaves behind where a recording fails.

    Its memory counts as recorded into, and no other recording begins; and no random number is drawn on the GPU outside
    of a recording until one has ended well.
    """
    with suppress(RuntimeError, AttributeError):  # other versions have done it, or have another name for it
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream()):
        torch.zeros(1, device="cuda")


def _pool(alive: WeakSet[torch.cuda.CUDAGraph]) -> tuple[int, int]:
    """The memory of the graphs there are. Once the last is gone it takes no other, so the next ones share a new one."""
    return next((graph.pool() for graph in alive), None) or torch.cuda.graph_pool_handle()


@contextmanager
def searched() -> Iterator[None]:
    """In it cuDNN tries its algorithms for each shape of a convolution that it has not met, and takes the fastest."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@dataclass
class _Recording:
    inputs: list[Tensor]  # which the recorded kernels read
    given: list[Tensor]  # what was last copied there
    replay: Callable[[], None]
    result: tuple[Tensor, dict[str, Seen]]


class Repeated:
    """A function of one tensor, of one shape, recorded at its first call: a text encoder, launch for launch.

    What cannot be recorded, as it waits for the GPU, is called as it is.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], record: Record = cuda_graph) -> None:
        self.forward, self.record = forward, record
        self.made: dict[Hashable, tuple[Tensor, Callable[[], None], Tensor] | None] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        if any_held():
            return self.forward(x)
        key = x.shape, x.dtype, x.device
        if key not in self.made:
            self.made[key] = self._recorded(x)
        if (found := self.made[key]) is None:
            return self.forward(x)
        given, replay, result = found
        given.copy_(x)
        replay()
        return result.clone()

    def _recorded(self, x: Tensor) -> tuple[Tensor, Callable[[], None], Tensor] | None:
        with torch.inference_mode(False):
            given = torch.empty_like(x).copy_(x)
        try:
            with torch.cuda.device_of(x):
                return given, *self.record(lambda: self.forward(given))
        except RuntimeError:
            return None


class Recorded:
    """`UNet.forward` that records each kind of step at its first call and replays it at the others.

    The text and rules' tensors must not be written to after they were given: they are told apart by identity. Raises
    MineditError where a step cannot be recorded, as with an attention function that waits for the GPU.
    """

    def __init__(self, forward: Forward, record: Record = cuda_graph) -> None:
        self.forward, self.record = forward, record
        self.recordings: dict[Hashable, _Recording] = {}

    @torch.no_grad()
    def __call__(
        self, x: Tensor, t: Tensor, context: Tensor, attn: Attn | None = None, residuals: list[Tensor] | None = None
    ) -> Tensor:
        attn, residuals = attn or Attn(), residuals or []
        if attn.tap is not None:  # looks at what no replay shows, or changes it
            with searched():
                return self.forward(x, t, context, attn, residuals)
        kind, tensors = taken_apart(attn.rules)
        given = [x, t, context, *residuals, *tensors]
        asked, shapes = tuple(attn.watch.items()), tuple((g.shape, g.dtype) for g in given)
        key = (attn.attend, asked, kind, len(residuals), shapes, x.device, x.stride())
        found = self.recordings.get(key)
        if found is None:
            if len(self.recordings) >= LIMIT:
                self.recordings.clear()
            found = self.recordings[key] = self._recorded(given, attn, len(residuals))
        for i, (kept, new) in enumerate(zip(found.inputs, given, strict=True)):
            if i < 2 or found.given[i] is not new:  # text, or a rule's tensor, given again is not copied again
                kept.copy_(new)
                found.given[i] = new
        found.replay()
        eps, seen = found.result  # the next replay overwrites them
        for name, at in seen.items():
            attn.seen[name] = Seen(at.hidden.clone(), at.columns if at.columns is None else at.columns.clone())
        return eps.clone()

    def _recorded(self, given: list[Tensor], attn: Attn, count: int) -> _Recording:
        """count: of residuals."""
        device = given[0].device
        with torch.inference_mode(False):  # what is made in inference mode could not be written to outside of it
            inputs = [torch.empty_like(g, device=device).copy_(g) for g in given]
        x, t, context, *more = inputs
        residuals, rules = more[:count], put_together(attn.rules, more[count:])

        def run() -> tuple[Tensor, dict[str, Seen]]:
            inner = Attn(attn.attend, rules, attn.watch, {})
            return self.forward(x, t, context, inner, residuals), inner.seen

        try:
            with torch.cuda.device_of(x), searched():
                return _Recording(inputs, list(given), *self.record(run))
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise MineditError(f"a CUDA graph of this step cannot be recorded ({first}); leave out --fast") from error


def taken_apart(rules: Mapping[str, Rule]) -> tuple[Hashable, list[Tensor]]:
    """(all of the rules that is no tensor, their tensors), in the order of the sites' names."""
    kind, tensors = [], []
    for name in sorted(rules):
        rule = rules[name]
        routes = rule.q_rows, rule.k_rows, rule.v_rows
        masks = tuple((mask.row, astuple(mask.keys) if isinstance(mask.keys, Split) else ()) for mask in rule.masks)
        kind.append((name, *routes, tuple(_kind(edit) for edit in rule.edits), masks))
        tensors += [x for edit in rule.edits for x in _tensors(edit)]
        tensors += [mask.keys for mask in rule.masks if isinstance(mask.keys, Tensor)]
    return tuple(kind), tensors


def put_together(rules: Mapping[str, Rule], tensors: list[Tensor]) -> dict[str, Rule]:
    """The rules with these tensors, in the order of `taken_apart`, in the places of their own."""
    rest = iter(tensors)
    found = {}
    for name in sorted(rules):
        edits = tuple([_with(edit, rest) for edit in rules[name].edits])
        masks = (replace(m, keys=next(rest)) if isinstance(m.keys, Tensor) else m for m in rules[name].masks)
        found[name] = replace(rules[name], edits=edits, masks=tuple(masks))
    return found


def _kind(edit: Edit) -> Hashable:
    gate = edit.gate
    numbers = (gate.scale, gate.slope, gate.centre) if isinstance(gate, Gate) else gate is None
    return edit.row, edit.source, edit.columns is None, numbers


def _tensors(edit: Edit) -> list[Tensor]:
    gate = edit.gate.key if isinstance(edit.gate, Gate) else edit.gate
    return [x for x in (edit.columns, edit.pin, edit.blend, edit.own, gate) if x is not None]


def _with(edit: Edit, rest: Iterator[Tensor]) -> Edit:
    columns = None if edit.columns is None else next(rest)
    pin, blend, own = next(rest), next(rest), next(rest)
    gate = edit.gate
    if isinstance(gate, Gate):
        gate = replace(gate, key=next(rest))
    elif gate is not None:
        gate = next(rest)
    return replace(edit, columns=columns, pin=pin, blend=blend, own=own, gate=gate)
