"""`minedit train STAGE`: draw the world, train the parts of the embedded model, assemble the checkpoint.

`torchrun --nproc-per-node N -m minedit train STAGE` trains with N processes, each on batches of its own.
"""

import argparse
import os
from pathlib import Path

from minedit.cli.options import Formatter, Parser, add_threads, number, path
from minedit.config import PICTUREBOOK, MineditError
from minedit.picturebook.training.stages import FEWEST, STAGES, STEPS

SEEDS = number(int, 0, 10**9)


def main(argv: list[str]) -> int:
    """Run one stage, or all; every stage resumes where it was stopped.

    Raises MineditError for arguments that cannot be, and where an earlier stage is missing.
    """
    args = _arguments(argv)
    import torch  # and what takes it, once the arguments are right

    from minedit.files.torchnames import torch_device
    from minedit.picturebook.training.train import assemble, train
    from minedit.picturebook.training.workers import together, worker

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch_device(args.device)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.device == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        with together("nccl" if args.device.startswith("cuda") else "gloo"):
            for stage in STAGES if args.stage == "all" else (args.stage,):
                if stage == "assemble" and worker() == 0:
                    assemble(PICTUREBOOK, args.runs, args.out)
                elif stage != "assemble":
                    train(stage, PICTUREBOOK, args)
    except OSError as error:
        raise MineditError(
            f"cannot use {error.filename or args.runs} ({error.strerror}); choose other --runs"
        ) from error
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser("minedit train", description=__doc__, formatter_class=Formatter)
    stages = "in this order, of which assemble writes the checkpoint; instruct: its variant that follows instructions; "
    stages += "clip: a CLIP to measure edits by"
    parser.add_argument("stage", choices=(*STAGES, "instruct", "clip", "all"), help=stages)
    parser.add_argument("--steps", type=number(int, 1, 10**9), help=f"optimiser steps; by stage if not given: {STEPS}")
    scenes = number(int, FEWEST, 10**9)
    parser.add_argument("--scenes", type=scenes, default=24000, help="training scenes to draw, 49 kB each on disk")
    begun = "go on with this model's UNet, its decoder (stage vae), or, of it, a variant (instruct; else the embedded)"
    parser.add_argument("--from", dest="start", metavar="FILE", help=begun)
    parser.add_argument("--warmup", type=number(int, 1, 10**9), default=200, help="steps to the peak learning rate")
    parser.add_argument("--batch", type=number(int, 1, 4096), default=32, help="stage instruct: rows a step")
    parser.add_argument("--compile", action="store_true", help="stage unet: minutes to compile, then faster steps")
    add_threads(parser)
    parser.add_argument("--device", help="cpu or cuda; else cuda where there is one")
    parser.add_argument("--seed", type=SEEDS, default=0, help="of initial weights, scenes, captions and noise")
    parser.add_argument("--runs", type=path, default=Path("runs"), help="folder of training state, logs and data")
    parser.add_argument("--out", type=path, default=Path("out/weights"), help="folder of checkpoint, CLIP and judge")
    args = parser.parse_args(argv)
    if args.start and args.stage not in ("unet", "vae", "instruct"):
        raise MineditError(f"--from goes on with a model; found stage {args.stage}, expected unet, vae or instruct")
    return args
