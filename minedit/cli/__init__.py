"""The command line: one verb per job. In: arguments. Out: pictures and JSON in a folder; on the terminal, what it did.

Exit status: 0 done, 1 a kernel that `minedit kernels` finds wrong, 2 a mistake that one line on stderr explains, 130
interrupted. A file appears whole or not at all, and every picture carries the settings that make it again (`--from`).

Read in this order:
```
options.py   what is asked: argv → arguments
output.py    what comes out: files, and words on the terminal
generate.py  a verb each, from here on
edit.py
train.py
judge.py
kernels.py
weights.py
```
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from minedit.cli import options
from minedit.config import MineditError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. argv: without the program's name; None for this process's own."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without τ shows a question mark
    try:
        if argv[:1] and argv[0] in options.ELSEWHERE:
            return importlib.import_module(f"minedit.cli.{argv[0]}").main(argv[1:]) or 0
        args = options.parse(argv)
        importlib.import_module(f"minedit.cli.{args.verb}").run(args)
    except MineditError as error:
        return _failed(" ".join(str(error).splitlines()))
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's: without an error there is no need to import it
            return _failed("the device ran out of memory; try --dtype float16 or another --device")
        if "can't allocate memory" not in str(error):  # the CPU's allocator has no exception of its own
            raise
        return _failed("memory ran out; try a smaller --height and --width, or fewer prompts at once")
    except KeyboardInterrupt:
        print("\nminedit: interrupted", file=sys.stderr)
        return 130
    return 0


def _failed(line: str) -> int:
    print(f"minedit: error: {line}", file=sys.stderr)
    return 2
