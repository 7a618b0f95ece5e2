"""Write benchmarks/picturebook-edits.jsonl: the pairs of the closed world, a line each, "tune" before "test".

python benchmarks/picturebook_edits.py
"""

from pathlib import Path

from minedit.picturebook.world.edits import SPLITS, pairs, written

FILE = Path(__file__).with_name("picturebook-edits.jsonl")


def lines() -> str:
    return "".join(f"{written(pair)}\n" for split in sorted(SPLITS, reverse=True) for pair in pairs(split))


if __name__ == "__main__":
    FILE.write_text(lines(), encoding="utf-8")
