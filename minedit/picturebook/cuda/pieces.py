"""A file in pieces small enough for any place, and whole again: `NAME.00`, `NAME.01` ... and `NAME.sha256`."""

import hashlib
from pathlib import Path

from minedit.config import MineditError
from minedit.image import write_whole

LARGEST = 16 * 2**20  # bytes of a piece


def split(file: Path, folder: Path, largest: int = LARGEST) -> list[Path]:
    """Write the pieces of `file` to `folder`, then the line that tells the sum of the whole; returns the pieces."""
    whole, pieces = file.read_bytes(), []
    for i, begin in enumerate(range(0, len(whole), largest)):
        pieces.append(folder / f"{file.name}.{i:02}")
        part = whole[begin : begin + largest]
        write_whole(pieces[-1], lambda path, part=part: path.write_bytes(part))
    line = f"{hashlib.sha256(whole).hexdigest()}  {file.name}  {len(pieces)} pieces\n"
    write_whole(folder / f"{file.name}.sha256", lambda path: path.write_text(line))
    return pieces


def join(folder: Path, out: Path | None = None) -> Path:
    """Put what `split` wrote to `folder` together, there or in the folder `out`; returns the file.

    Raises MineditError where there are no pieces, and where their sum is another.
    """
    told = sorted(folder.glob("*.sha256"))
    if len(told) != 1:
        raise MineditError(f"{folder} has {len(told)} files .sha256, expected one, beside the pieces that it tells of")
    digest, name, count = told[0].read_text().split()[:3]
    pieces = [folder / f"{name}.{i:02}" for i in range(int(count))]
    missing = [piece.name for piece in pieces if not piece.is_file()]
    if missing:
        raise MineditError(f"{folder} lacks {', '.join(missing)}; copy all pieces there")
    whole = b"".join(piece.read_bytes() for piece in pieces)
    found = hashlib.sha256(whole).hexdigest()
    if found != digest:
        raise MineditError(f"the pieces of {name} have the sum {found[:12]}, expected {digest[:12]}; copy them again")
    file = (out or folder) / name
    write_whole(file, lambda path: path.write_bytes(whole))
    return file
