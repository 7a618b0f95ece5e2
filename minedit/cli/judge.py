"""`minedit judge`: what the embedded model can do, measured on held-out compositions."""

import argparse
from pathlib import Path

from minedit.cli.options import Formatter, Parser, add_threads, number, path, reader
from minedit.config import MineditError
from minedit.sampling.numbers import STEPS
from minedit.speed import threads


def main(argv: list[str]) -> int:
    """Print the tables. Raises MineditError where the checkpoint or the judge is missing."""
    args, before = _arguments(argv), threads.look()
    from minedit.files.checkpoint import load, weights_folder
    from minedit.picturebook.judge import GOALS, RENDERINGS, judged, prompts, reconstruction, word_maps
    from minedit.picturebook.training.judge_net import load_judge
    from minedit.picturebook.training.train_judge import accuracy
    from minedit.picturebook.world.dataset import Drawings

    model, judge = load(args.model, device=args.device), load_judge(weights_folder() / "picturebook-judge.safetensors")
    try:
        renderings = Drawings(args.runs / "data", RENDERINGS, model.config.image_size, args.seed, unseen=True)
    except OSError as error:
        raise MineditError(f"cannot use {error.filename} ({error.strerror}); choose other --runs") from error
    computing = threads.choose(args.threads, before)
    print(
        f"{model.config.name}: {args.images} held-out captions, {args.steps} steps, guidance {args.guidance}{computing}"
    )
    print(f"reconstruction of held-out renderings  {reconstruction(model):.1f} dB PSNR (goal 31)", flush=True)
    maps = word_maps(model, args.images)
    print(f"largest value of the subject word's map in the subject  {maps['subject_inside']:.1%} (goal 85 %)")
    print(f"largest value of the place word's map outside it        {maps['place_outside']:.1%} (goal 85 %)")
    print(f"mean IoU of the thresholded subject map                 {maps['subject_iou']:.2f}", flush=True)
    read = accuracy(judge, renderings, RENDERINGS)
    table = judged(model, judge, prompts(args.images, args.seed), args.steps, args.guidance)
    print(f"{'factor':10}{'judge on renderings':>21}{'generated pictures':>22}{'goal':>8}")
    for factor, share in read.items():
        goal = f"{GOALS[factor]:.0%}" if factor in GOALS else ""
        right, total = table.get(factor, (0, 0))  # no caption names skin and hair
        drawn = f"{right / total:>12.1%} of {total:<5}{goal:>8}" if total else ""
        print(f"{factor:10}{share:>20.1%} {drawn}".rstrip())
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser("minedit judge", description=__doc__, formatter_class=Formatter)
    parser.add_argument("--model", help="checkpoint; the embedded one if not given")
    count = number(int, 1, 10**6)
    parser.add_argument("--images", type=count, default=200, help="pictures to generate and captions to map")
    parser.add_argument("--steps", type=reader(STEPS), default=50, help="DDIM steps a picture")
    parser.add_argument("--guidance", type=number(float, 0), default=7.5, help="classifier-free guidance scale")
    parser.add_argument(
        "--seed", type=number(int, 0, 10**9), default=2026, help="of the prompts; picture i starts from noise i"
    )
    add_threads(parser)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--runs", type=path, default=Path("runs"), help="folder whose data/ keeps the renderings")
    return parser.parse_args(argv)
