"""What was compiled, in a folder; two such folders compared.

In a folder: compiled.json, a line a kernel, and of each kernel its ttir, ttgir, ptx and sass.
"""

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from minedit.config import MineditError
from minedit.image import write_whole

TABLE = "compiled.json"
NUMBERS = ("registers", "shared", "spilled")
# What differs between two versions without meaning anything: numbers of values and registers, places in the source.
NOISE = (
    (re.compile(r"\s*loc\(.*?\)+$|^\s*#loc.*$|^\s*//.*$|\s*\.loc.*$|/\*[0-9a-f]{4,5}\*/"), ""),
    (re.compile(r"%([a-z_]*)\d+|\bU?[RP]\d+\b|\$\w+tmp\d+"), r"%\1"),
)


@dataclass(frozen=True)
class Compiled:
    """A kernel as it was compiled."""

    name: str  # of the kernel
    target: int  # 90: sm_90
    registers: int  # a thread
    shared: int  # bytes a block
    spilled: int  # bytes a thread stores to memory for want of registers
    warps: int
    kinds: dict[str, int] = field(default_factory=dict)  # of machine instructions: how many
    texts: dict[str, str] = field(default_factory=dict)  # ttir, ttgir, ptx, sass


Kernels = dict[str, dict[str, object]]  # name -> its numbers and kinds


def written(folder: Path, what: str, dtype: str, kernel: Compiled) -> str:
    """Add a kernel, one that is there under this name is replaced; its name."""
    name = re.sub(r"[^\w.]+", "-", f"sm_{kernel.target} {kernel.name} {dtype} {what}").strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    known = read(folder) if (folder / TABLE).exists() else {}
    known[name] = {each: getattr(kernel, each) for each in (*NUMBERS, "warps", "kinds")}
    for language, text in kernel.texts.items():
        (folder / f"{name}.{language}").write_text(text)
    lines = ",\n".join(f" {json.dumps(each)}: {json.dumps(numbers)}" for each, numbers in known.items())
    write_whole(folder / TABLE, lambda part: part.write_text(f"{{\n{lines}\n}}\n"))
    return name


def read(folder: Path) -> Kernels:
    """Raises MineditError where that is no such folder."""
    try:
        return json.loads((folder / TABLE).read_text())
    except (OSError, ValueError) as error:
        raise MineditError(
            f"{folder} has no {TABLE} ({error}); expected a folder that `kernels compiled` wrote"
        ) from error


def compared(a: Path, b: Path, language: str) -> Iterator[str]:
    """Lines: a summary of every kernel of both, then of what differs a unified diff. Raises MineditError."""
    before, after = read(a), read(b)
    both = [name for name in before if name in after]
    if not both:
        raise MineditError(f"{a} and {b} have no kernel in common; expected two versions of one function")
    for folder, known, other in ((a, before, after), (b, after, before)):
        yield from (f"only in {folder}: {name}" for name in known if name not in other)
    for name in both:
        yield from _summary(name, before[name], after[name])
    for name in both:
        texts = [_bare(folder / f"{name}.{language}") for folder in (a, b)]
        yield from difflib.unified_diff(*texts, *(f"{folder}/{name}.{language}" for folder in (a, b)), lineterm="", n=2)


def _summary(name: str, before: dict, after: dict) -> Iterator[str]:
    yield name
    kinds = [before["kinds"], after["kinds"]]
    totals = [sum(each.values()) for each in kinds]
    numbers = [f"{each} {_change(before[each], after[each])}" for each in (*NUMBERS, "warps")]
    yield f"    {', '.join(numbers)}, instructions {_change(*totals)}"
    moved = {kind: [each.get(kind, 0) for each in kinds] for kind in {**kinds[0], **kinds[1]}}
    moved = sorted((abs(y - x), kind, x, y) for kind, (x, y) in moved.items() if x != y)
    if moved:
        yield "    " + ", ".join(f"{kind} {_change(x, y)}" for _, kind, x, y in reversed(moved))


def _change(x: int, y: int) -> str:
    return str(x) if x == y else f"{x} -> {y}"


def _bare(path: Path) -> list[str]:
    """The lines of a kernel's code but for what means nothing."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise MineditError(f"cannot read {path} ({error})") from error
    for pattern, to in NOISE:
        lines = [pattern.sub(to, line) for line in lines]
    return [line.rstrip() for line in lines if line.strip()]
