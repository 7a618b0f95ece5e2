"""`minedit generate`: a picture for each prompt and seed."""

from __future__ import annotations

import argparse
import time

from minedit.cli import output
from minedit.config import MineditError


def run(args: argparse.Namespace) -> None:
    if not args.prompts:
        raise MineditError("no prompt; expected what the picture shows: minedit generate 'a boy in the park'")
    pairs = [(prompt, seed) for prompt in args.prompts for seed in dict.fromkeys(args.seed)]
    from minedit.verbs import generate  # and torch, once the arguments are right

    with output.folder(args.out):
        sd = output.load(args)
        preview = output.preview(args, sd)
        output.check_prompts(sd, {prompt: "" for prompt in args.prompts})
        for number, (prompt, seed) in enumerate(pairs, 1):
            began = time.perf_counter()
            run = output.arguments(args, seed)
            print(f"\n{prompt!r}\n  seed {seed}, {args.steps} steps, guidance {args.guidance}")
            with output.progress() as progress:
                out = generate(sd, prompt, progress=progress, on_step=preview, **run)
            settings = {"verb": "generate", "prompts": [prompt], **run, **output.model_settings(args, sd)}
            name = f"{number:02d}-seed{seed}-" if len(pairs) > 1 else ""
            seconds = time.perf_counter() - began
            output.write(args.out, name, {"image": out.images[0]}, settings, {"notes": list(out.notes)}, seconds)
