"""The command `minedit`, which `python -m minedit` is too.

Ctrl-C or a signal ends it without a traceback, while it imports too.
"""

import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> int:
    """This process's own command line -> its exit status."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores it
            signal.signal(number, _end)
    try:
        from minedit.cli import main as run  # here, so that an interruption while it is imported is caught

        return run()
    except KeyboardInterrupt as error:
        print("\nminedit: interrupted", file=sys.stderr)
        return error.args[0] if error.args else 130


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """As Ctrl-C does, so that half-written files are removed."""
    raise KeyboardInterrupt(128 + number)


if __name__ == "__main__":
    sys.exit(main())
