"""The command `minedit`, which `python -m minedit` is too.

Ctrl-C or a signal ends it without a traceback, while it imports too; a file cut short while it is in use, with a line.
"""

import ctypes
import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

CUT = "a file was cut short while it was in use, perhaps the model's, or a disk is full; run it again when it is whole"


def main() -> int:
    """This process's own command line -> its exit status."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores it
            signal.signal(number, _end)
    held = _on_bus_error()  # noqa: F841 - C knows it by its address alone
    try:
        from minedit.cli import main as run  # here, so that an interruption while it is imported is caught

        return run()
    except KeyboardInterrupt as error:
        print("\nminedit: interrupted", file=sys.stderr)
        return error.args[0] if error.args else 130


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """As Ctrl-C does, so that half-written files are removed."""
    raise KeyboardInterrupt(128 + number)


def _on_bus_error() -> Callable | None:
    """Have a line said where memory that is a file's is not there any more (SIGBUS), in place of nothing.

    Python's own handlers wait until what failed is over, and it would be tried for ever.
    """
    if not hasattr(signal, "SIGBUS") or faulthandler.is_enabled():
        return None

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(number: int) -> NoReturn:
        os.write(2, f"\nminedit: error: {CUT}\n".encode())
        os._exit(2)

    ctypes.CDLL(None).signal(signal.SIGBUS, end)
    return end


if __name__ == "__main__":
    sys.exit(main())
