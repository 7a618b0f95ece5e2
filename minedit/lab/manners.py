"""What a function must not do, right numbers or not: each fault in one line.

It may not write into what it is given, nor beside it; nor hand out what is the caller's, or what its next call writes
into; nor keep an answer for tensors that were written anew; nor leave its work to another stream.
"""

import torch
from torch import Tensor

from minedit.attention.rules import Attend, Rule
from minedit.lab.cases import Case
from minedit.lab.oracle import distance
from minedit.lab.traps import copied, memory, overlapping, tensors, turn, writable

SECOND = 2**16  # pixels times tokens up to which a function is called once more: the real shapes are left out
LATE = 20_000_000  # cycles of a GPU, about 10 ms


def written(given: tuple[Tensor, ...], rule: Rule | None, case: Case) -> str | None:
    """q, k, v and the rule after a call, beside what they were before."""
    for name, x, y in zip("qkv", given, (case.q, case.k, case.v), strict=True):
        if not torch.equal(x, y):
            return f"it writes into the {name} that it was given; q, k and v are the caller's"
        if not torch.equal(memory(x), memory(y)):
            return f"it writes into the memory around the {name} that it was given, which is a view of a larger tensor"
    if not all(torch.equal(x, y) for x, y in zip(tensors(rule), tensors(case.rule), strict=True)):
        return "it writes into the rule that it was given; every layer and step reads it"
    return None


def shared(name: str, found: Tensor, given: tuple[Tensor, ...], rule: Rule | None) -> str | None:
    """Whether a result is memory of the inputs', or of itself."""
    known = [*zip("qkv", given, strict=True), *(("the rule", x) for x in tensors(rule))]
    owner = overlapping(found, known)
    if owner:
        return (
            f"{name} shares its memory with {owner}: whoever writes into one changes both; return a tensor of its own"
        )
    return None if writable(found) else f"{name} is expanded: several of its numbers are one place in memory"


def kept(
    attend: Attend, given: tuple[Tensor, ...], rule: Rule | None, found: Tensor, answer: Tensor, limit: float
) -> str | None:
    """Called once more with other numbers in the same tensors. found: its first result; answer: float64, for that."""
    before = found.clone()
    if not turn(*given, rule):
        return None
    again = attend(*given, rule)
    if not torch.equal(found, before):
        return "its next call writes into the result of this one: it returns the same memory again and again"
    if distance(again, answer.flip(1, 2)) <= limit:
        return None
    if distance(again, answer) <= limit:
        return "it answers as before after q, k, v and the rule were written anew: it keeps results by tensor"
    return (
        "right at first, wrong once q, k, v and the rule are written anew: it keeps some of their numbers between calls"
    )


def late(attend: Attend, case: Case, answer: Tensor, limit: float) -> str | None:
    """CUDA: called on a stream on which the inputs have yet to arrive, and read on that stream alone."""
    given = [copied(x) for x in (case.q, case.k, case.v)]
    if case.q.device.type != "cuda" or not all(map(writable, given)):
        return None
    stream = torch.cuda.Stream(case.q.device)
    stream.wait_stream(torch.cuda.current_stream(case.q.device))
    with torch.cuda.stream(stream):
        for x in given:
            x.zero_()
        torch.cuda._sleep(LATE)
        for x, y in zip(given, (case.q, case.k, case.v), strict=True):
            x.copy_(y)
        found = attend(*given, case.rule).clone()
    stream.synchronize()
    if distance(found, answer) <= limit:
        return None
    return "wrong while the device is busy: it works on another stream than the current one, and nobody waits for that"
