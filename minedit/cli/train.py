"""`minedit train STAGE`: draw the world, train the parts of the embedded model, assemble the checkpoint.

`torchrun --nproc-per-node N -m minedit train STAGE` trains with N processes, each on batches of its own.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist

from minedit.cli.options import Formatter, Parser, number, path
from minedit.config import PICTUREBOOK, MineditError
from minedit.files.checkpoint import torch_device
from minedit.picturebook.training.train import FEWEST, STAGES, STEPS, assemble, train
from minedit.picturebook.training.workers import worker

SEEDS = number(int, 0, 10**9)


def main(argv: list[str]) -> int:
    """Run one stage, or all; every stage resumes where it was stopped.

    Raises MineditError for arguments that cannot be, and where an earlier stage is missing.
    """
    args = _arguments(argv)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():  # torchrun
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    try:
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
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser = Parser("minedit train", description=__doc__, formatter_class=Formatter)
    parser.add_argument("stage", choices=(*STAGES, "all"), help="in this order; assemble writes the checkpoint")
    parser.add_argument("--steps", type=number(int, 1, 10**9), help=f"optimiser steps; by stage if not given: {STEPS}")
    scenes = number(int, FEWEST, 10**9)
    parser.add_argument("--scenes", type=scenes, default=24000, help="training scenes to draw, 49 kB each on disk")
    begun = "go on with this model's UNet, or its decoder (stage vae)"
    parser.add_argument("--from", dest="start", metavar="FILE", help=begun)
    parser.add_argument("--warmup", type=number(int, 1, 10**9), default=200, help="steps to the peak learning rate")
    parser.add_argument("--compile", action="store_true", help="stage unet: minutes to compile, then faster steps")
    parser.add_argument("--device", default=default, help="cpu or cuda")
    parser.add_argument("--seed", type=SEEDS, default=0, help="of initial weights, scenes, captions and noise")
    parser.add_argument("--runs", type=path, default=Path("runs"), help="folder of training state, logs and data")
    parser.add_argument("--out", type=path, default=Path("out/weights"), help="folder of checkpoint, CLIP and judge")
    args = parser.parse_args(argv)
    torch_device(args.device)
    if args.start and args.stage not in ("unet", "vae"):
        raise MineditError(f"--from goes on with a UNet or a decoder; found stage {args.stage}, expected unet or vae")
    return args
