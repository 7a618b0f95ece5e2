"""What the embedded model's InstructPix2Pix does: renderings of the closed world's test pairs as photographs.

    python benchmarks/instruct.py [--per-kind 4] [--steps 20] [--guidance 7.5] [--image-guidance 1.5] [--csv FILE]

S, P and identity as the judge reads them (picturebook/score.py), and PSNR to the renderer's counterfactual, beside that
of the photograph. At --guidance 0 nothing is asked for: the photograph should come back. A row goes to
benchmarks/instruct.csv, or to --csv.
"""

import argparse
import statistics
from datetime import date
from pathlib import Path

import torch
from table import append

import minedit
from minedit.files.checkpoint import weights_folder
from minedit.image import psnr
from minedit.picturebook.score import mean, rendered, score
from minedit.picturebook.training.judge_net import load_judge
from minedit.picturebook.world.draw import stream
from minedit.picturebook.world.edits import pairs
from minedit.picturebook.world.instructions import instruct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-kind", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--image-guidance", type=float, default=1.5)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    args = parser.parse_args()
    sd, judge = minedit.load("instruct-pix2pix"), load_judge(weights_folder() / "picturebook-judge.safetensors")
    picked = [pair for pair in pairs("test") if int(pair.id.rsplit("-", 1)[1]) < args.per_kind]
    numbers = {"steps": args.steps, "guidance": args.guidance, "image_guidance": args.image_guidance}
    sources, edited, near, apart = [], [], [], []
    for pair in picked:
        photo, truth = rendered(pair)
        text = instruct(pair.before, pair.after, stream(pair.seed, "instruct"))
        res = minedit.edit(sd, "", text, "instruct-pix2pix", image=photo, seed=pair.seed, **numbers)
        sources.append(res.source)
        edited.append(res.edited)
        aim = truth if args.guidance else res.source
        near.append(psnr(res.edited, aim))
        apart.append(psnr(photo, aim))
    found = score(judge, picked, sources, edited)
    row = {"date": date.today().isoformat(), "torch": torch.__version__, "minedit": minedit.__version__}
    row |= {**numbers, "pairs": len(picked)}
    print(f"{len(picked)} pairs, {numbers}")
    for name in ("s", "p", "identity"):
        value, low, high, count = mean([getattr(each, name) for each in found])
        print(f"  {name:9} {value:.3f} ({low:.3f} to {high:.3f}), of {count}")
        row |= {name: f"{value:.3f}", f"{name} low": f"{low:.3f}", f"{name} high": f"{high:.3f}", f"{name} of": count}
    what = "the counterfactual" if args.guidance else "the photograph as the autoencoder has it"
    print(f"  PSNR to {what} {statistics.mean(near):.1f} dB, of the photograph itself {statistics.mean(apart):.1f} dB")
    row |= {"psnr to": what, "psnr": f"{statistics.mean(near):.2f}", "photograph's": f"{statistics.mean(apart):.2f}"}
    append(args.csv, [row])


if __name__ == "__main__":
    main()
