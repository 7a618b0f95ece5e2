"""Is an attention function right? It is asked for one case at a time and compared with float64.

In: a function with the signature of `attention.eager` and a case of cases.py. Out: a Verdict.

The measure is the largest difference from the float64 answer. It may be twice what `eager` errs by in the same dtype on
the same device, or, of the largest entry, which sets the size of what was summed, the larger of two floors where that
is more. FLOOR eps: `eager` computes in float32 and rounds once, but a fused kernel in half precision rounds up to four
times, by half an eps each (probabilities, values that took on a rule's weights, the result of a call, the sum of
several). And what float32 does to a softmax: rounding the largest score changes its exponential by half of it in eps.
A device may take numbers below float32's smallest normal one for 0; those of half precision are rounded like others.
"""

import copy
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from minedit.attention import choose
from minedit.attention.eager import eager
from minedit.attention.rules import Attend, Rule
from minedit.config import MineditError
from minedit.lab.cases import Case
from minedit.lab.hints import TRAPPED, column_hints, hints, mismatches
from minedit.lab.manners import SECOND, kept, late, shared, written
from minedit.lab.oracle import distance, oracle
from minedit.lab.traps import copied

FLOOR = 2.0


@dataclass(frozen=True)
class Answer:
    """What should come out, [B,H,N,D] or [B,N,T] float64, and how far from it one may be."""

    name: str  # "out" | "columns"
    values: Tensor
    eager_error: float
    limit: float


@dataclass(frozen=True)
class Verdict:
    status: str  # "right" | "wrong" | "refused", by a MineditError | "no memory"
    error: float = float("nan")  # max |found - expected| of out, or of what is wrong; nan without a number
    eager_error: float = float("nan")  # of the same
    report: tuple[str, ...] = ()  # where not right: what is wrong, the first mismatches, hints
    fatal: bool = False  # this process cannot use the device any more
    first_ms: float = float("nan")  # of the first call, with what it compiles

    @property
    def ratio(self) -> float:
        """error / eager's error; nan without a number."""
        if self.error == 0:
            return 0.0
        return self.error / self.eager_error if self.eager_error else float("inf")


def answers(case: Case) -> tuple[Answer, ...]:
    """Out and, where the shape asks for them, columns. `eager` has one head at a time: its map of all may not fit."""
    q, k, v, rule = case.q, case.k, case.v, case.rule
    out, columns = oracle(q, k, v, rule, case.shape.columns)
    heads = [eager(*(x[:, h : h + 1] for x in (q, k, v)), rule, case.shape.columns) for h in range(case.shape.H)]
    score = _largest_score(q, k, rule)
    if not case.shape.columns:
        return (_answer("out", out, torch.cat(heads, 1), q.dtype, score),)
    outs, seen = zip(*heads, strict=True)
    return (
        _answer("out", out, torch.cat(outs, 1), q.dtype, score),
        _answer("columns", columns, torch.stack(seen).mean(0), torch.float32, score),
    )


def _answer(name: str, values: Tensor, by_eager: Tensor, dtype: torch.dtype, score: float) -> Answer:
    error = distance(by_eager, values)
    floor = max(FLOOR * torch.finfo(dtype).eps, score / 2 * torch.finfo(torch.float32).eps)
    least = max(FLOOR * torch.finfo(dtype).eps * torch.finfo(dtype).tiny, torch.finfo(torch.float32).tiny)
    return Answer(name, values, error, max(2 * error, floor * values.abs().max().item(), 2 * least))


def _largest_score(q: Tensor, k: Tensor, rule: Rule | None) -> float:
    """Of the rows that the rule reads, without the keys that no row may see."""
    if rule is not None:
        q, k, _ = rule.route(q, k, k)
        if len(rule.masks) == len(k):
            k = k * torch.stack([mask.keys.any(0) for mask in rule.masks]).any(0)[:, None]  # [T, 1]
    pairs = ((q[:, h].float(), k[:, h].float()) for h in range(q.shape[1]))
    return max((a @ b.mT).abs().max().item() for a, b in pairs) / q.shape[-1] ** 0.5


def judge(attend: Attend, case: Case, expected: tuple[Answer, ...], explain: bool = True) -> Verdict:
    """Call `attend` as the UNet's layers do, without columns and with, and compare. explain: look for hints as well."""
    given, rule = tuple(map(copied, (case.q, case.k, case.v))), copy.deepcopy(case.rule)
    began = time.perf_counter()
    try:
        found = _called(attend, *given, rule)
        first_ms = (time.perf_counter() - began) * 1e3
        both = _called(attend, *given, rule, columns=True) if case.shape.columns else None
    except MineditError as error:
        return Verdict("refused", report=(str(error),))
    except torch.OutOfMemoryError as error:
        return Verdict("no memory", report=(str(error).splitlines()[0],))
    except Exception as error:  # whatever a function under test raises is a finding
        return Verdict("wrong", report=(f"it raised {_told(error)}",), fatal="CUDA error" in str(error))
    fault = _fault(case, found, both) or written(given, rule, case) or shared("out", found, given, rule)
    if both is not None:
        fault = fault or shared("columns", both[1], given, rule)
    if fault:
        return Verdict("wrong", report=(fault,))

    pairs = [("out", found, expected[0])]
    if both is not None:
        pairs += [("out with columns=True", both[0], expected[0]), ("columns", both[1], expected[1])]
    compared = [(name, x, answer, distance(x, answer.values)) for name, x, answer in pairs]
    for name, x, answer, error in compared:
        if not error <= answer.limit:  # nor is nan
            head = f"{name}: error {error:.2g}, allowed {answer.limit:.2g} (eager errs by {answer.eager_error:.2g})"
            report = chain((head,), mismatches(answer.name, x, answer.values, answer.limit))
            if explain:
                guesses = _guesses(attend, case, name, x, answer)
                report = chain(report, (f"hint: {guess}" for guess in guesses))
            return Verdict("wrong", error, answer.eager_error, tuple(report))
    error = max(error for _, _, answer, error in compared if answer.name == "out")
    if case.shape.N * case.shape.T <= SECOND:
        truth = expected[0].values, expected[0].limit
        try:
            fault = kept(attend, given, rule, found, *truth) or late(attend, case, *truth)
        except Exception as again:
            return Verdict(
                "wrong", report=(f"called again it raised {_told(again)}",), fatal="CUDA error" in str(again)
            )
    if fault:
        return Verdict("wrong", error, expected[0].eager_error, (fault,))
    return Verdict("right", error, expected[0].eager_error, first_ms=first_ms)


def _called(attend: Attend, *inputs: Tensor | Rule | None, **asked: bool) -> object:
    found = attend(*inputs, **asked)
    if inputs[0].device.type == "cuda":
        torch.cuda.synchronize(inputs[0].device)  # a kernel's fault belongs to its own call
    return found


def _told(error: Exception) -> str:
    """An exception in one line, with the line of the function under test."""
    ours = (choose.__file__, *(str(Path(__file__).with_name(name)) for name in ("check.py", "manners.py", "bounds.py")))
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in ours]
    where = f" (at {Path(own[0].filename).name}:{own[0].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{where}"


def _fault(case: Case, found: object, both: object) -> str | None:
    """What is wrong with the returned values beside their numbers."""
    q = case.q
    fault = _unlike("out", found, list(q.shape), q.dtype, q.device)
    if fault or both is None:
        return fault
    if not isinstance(both, tuple | list) or len(both) != 2:
        return f"with columns=True it returned {_kind(both)}, expected (out, columns)"
    columns = [case.shape.B, case.shape.N, case.shape.T]
    return _unlike("out with columns=True", both[0], list(q.shape), q.dtype, q.device) or _unlike(
        "columns", both[1], columns, torch.float32, q.device
    )


def _unlike(name: str, found: object, shape: list[int], dtype: torch.dtype, device: torch.device) -> str | None:
    if not isinstance(found, Tensor):
        return f"{name}: found {_kind(found)}, expected a tensor {shape}"
    if list(found.shape) != shape:
        return f"{name}: found shape {list(found.shape)}, expected {shape}"
    if found.dtype != dtype:
        return f"{name}: found {found.dtype}, expected {dtype}".replace("torch.", "")
    return None if found.device == device else f"{name}: found it on {found.device}, expected {device}"


def _kind(found: object) -> str:
    if isinstance(found, tuple | list):
        return f"{len(found)} values"
    return "a tensor" if isinstance(found, Tensor) else type(found).__name__


def _guesses(attend: Attend, case: Case, name: str, found: Tensor, answer: Answer) -> list[str]:
    """Hints at why `found` is not the answer."""
    if name == "columns":
        return list(column_hints(case, found, answer.values, answer.limit))
    if name != "out":
        return ["out is right without columns: asking for them must not change it"]
    if case.shape.note in TRAPPED:
        return [TRAPPED[case.shape.note], *hints(case, found, answer.values, answer.limit)]
    if case.shape.note != "contiguous":
        with suppress(Exception):  # then it is no hint
            again = _called(attend, *(x.contiguous() for x in (case.q, case.k, case.v)), case.rule)
            if distance(again, answer.values) <= answer.limit:
                return ["right once q, k and v are contiguous; the layers hand over views of [B,N,H,D]: read strides"]
    return list(hints(case, found, answer.values, answer.limit))
