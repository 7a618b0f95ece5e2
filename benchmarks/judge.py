"""What the judge reads off renderings of held-out compositions, and off what the autoencoder makes of them.

    python benchmarks/judge.py [--count 4096] [--coded 1024]

A row for each value of each factor: how often it was asked for, read, and taken for which others; "all" sums a factor
up, "named" what a caption can say of it. Rows go to benchmarks/judge.csv.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import torch
from table import append
from torch import Tensor

import minedit
from minedit.files.checkpoint import weights_folder
from minedit.picturebook.training.fit import fingerprint
from minedit.picturebook.training.judge_net import load_judge
from minedit.picturebook.training.train_judge import UNNAMED, confusion
from minedit.picturebook.training.train_vae import reconstruct
from minedit.picturebook.world.dataset import Drawings
from minedit.picturebook.world.shown import LABELS

TABLE = Path(__file__).with_suffix(".csv")


class Coded:
    """Drawings as they come back from the autoencoder."""

    def __init__(self, drawings: Drawings, vae: torch.nn.Module) -> None:
        self.drawings, self.vae, self.factors, self.seeds = drawings, vae, drawings.factors, drawings.seeds

    def __len__(self) -> int:
        return len(self.drawings)

    def tensor(self, indices: list[int]) -> Tensor:
        return reconstruct(self.vae, self.drawings.tensor(indices)).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=4096, help="renderings")
    parser.add_argument("--coded", type=int, default=1024, help="of them through the autoencoder")
    parser.add_argument("--judge", type=Path, default=weights_folder() / "picturebook-judge.safetensors")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder whose data/ keeps the renderings")
    args = parser.parse_args()
    judge, sd = load_judge(args.judge), minedit.load()
    drawings = Drawings(args.runs / "data", args.count, sd.config.image_size, 2026, unseen=True)
    told = {"date": date.today().isoformat(), "torch": torch.__version__, "judge": fingerprint(judge)}
    rows = []
    for source, data, count in (("renderings", drawings, args.count), ("coded", Coded(drawings, sd.vae), args.coded)):
        for factor, table in confusion(judge, data, count).items():
            own = [{**told, "pictures": source, "factor": factor, **row} for row in lines(LABELS[factor], table)]
            print(f"{source:12}{factor:9}", *(f"{row['value']} {row['right']}/{row['asked']}" for row in own[:2]))
            rows += own
    append(TABLE, rows)


def lines(values: tuple, table: Tensor) -> list[dict]:
    """The confusion [L,L] of a factor in words."""
    groups = {"all": range(len(values)), "named": [i for i, value in enumerate(values) if value not in UNNAMED]}
    groups |= {str(value): [i] for i, value in enumerate(values)}
    rows = []
    for name, members in groups.items():
        asked, right = table[list(members)].sum().item(), sum(table[i, i].item() for i in members)
        others = {(i, j): table[i, j].item() for i in members for j in range(len(values)) if i != j and table[i, j]}
        most = sorted(others.items(), key=lambda each: -each[1])[:5]
        read = ", ".join(f"{values[i]} as {values[j]} {times}" for (i, j), times in most)
        share = f"{right / asked:.4f}" if asked else ""
        rows.append({"value": name, "asked": asked, "right": right, "share": share, "mistakes": read})
    return rows


if __name__ == "__main__":
    main()
