"""The command line: one verb per job. In: arguments. Out: pictures and JSON in a folder; on the terminal, what it did.

Exit status: 0 done, 1 a kernel that `minedit kernels` finds wrong, 2 a mistake that one line on stderr explains, 130
interrupted, 141 nobody reads what it says. A file appears whole or not at all, and every picture carries the settings
that make it again (`--from`).

Read in this order:
```
parser.py    argparse, as it is wanted here
options.py   what may be asked
origin.py    what is asked: argv, and the settings in a picture → arguments
output.py    what comes out: files, and words on the terminal
pairs.py     what edits are asked for
steering.py  a ControlNet and its hint
generate.py  a verb each, from here on
edit.py
compare.py
figures.py
report.py
evaluate.py
maps.py
sweeps.py
xray.py
live.py
train.py
judge.py
compiled.py
roofline.py
kernels.py
words.py
fetch.py
weights.py
```
"""

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from minedit.cli import options, origin
from minedit.config import MineditError, shown

LONGEST = 2000  # characters of an error's line: what is said of foreign files is shorter


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. argv: without the program's name; None for this process's own."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without τ shows a question mark
    try:
        try:
            return _run(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a pipe that nobody reads or a full disk can be said
    except MineditError as error:
        return _failed(" ".join(str(error).splitlines()))
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's: without an error there is no need to import it
            return _failed("the device ran out of memory; try --dtype float16 or another --device")
        if "can't allocate memory" not in str(error):  # the CPU's allocator has no exception of its own
            raise
        return _failed("memory ran out; try a smaller --height and --width, or fewer prompts at once")
    except KeyboardInterrupt as error:
        print("\nminedit: interrupted", file=sys.stderr)
        return error.args[0] if error.args else 130  # its number, of a signal
    except BrokenPipeError:
        _silence()
        return 141
    except OSError as error:
        _silence()
        what = f"cannot use {error.filename}" if error.filename else "cannot write to the terminal, pipe or file"
        return _failed(f"{what} ({error.strerror or error}); choose another place, or make room")


def _run(argv: list[str]) -> int:
    if argv[:1] and argv[0] in options.ELSEWHERE:
        for verbs, file in ((options.SWEEPS, "sweeps"), (options.FIGURES, "figures")):
            if argv[0] in verbs:
                return importlib.import_module(f"minedit.cli.{file}").main(argv) or 0
        return importlib.import_module(f"minedit.cli.{argv[0]}").main(argv[1:]) or 0
    args = origin.parse(argv)
    importlib.import_module(f"minedit.cli.{args.verb}").run(args)
    return 0


def _silence() -> None:
    """What is still to be said goes nowhere, so that Python does not fail once more as it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(line: str) -> int:
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    with suppress(OSError):
        print(f"minedit: error: {shown(line, LONGEST)}", file=sys.stderr)
    return 2
