"""`minedit generate`: a picture for each prompt and seed."""

import argparse
import time

from minedit.cli import output, steering
from minedit.config import MineditError, shown


def run(args: argparse.Namespace) -> None:
    if not args.prompts:
        raise MineditError("no prompt; expected what the picture shows: minedit generate 'a boy in the park'")
    steering.check(args)
    pairs = [(prompt, seed) for prompt in args.prompts for seed in dict.fromkeys(args.seed)]
    from minedit.sampling.loop import Run  # and torch, once the arguments are right
    from minedit.verbs.asked import read_prompt
    from minedit.verbs.generate import generate

    with output.folder(args.out):
        sd = output.load(args)
        steer, told = steering.load(args, sd)
        preview = output.preview(args, sd)
        Run(height=args.height, width=args.width).fits(sd, 1)
        for prompt in args.prompts:
            read_prompt(sd, prompt)
        for prompt, seed in pairs:
            began = time.perf_counter()
            run = output.arguments(args, seed)
            settings = {"verb": "generate", "prompts": [prompt], **run, **output.model_settings(args, sd)} | told
            print(f"\n{shown(repr(prompt), 400)}")
            if len(pairs) > 1 and (stands := output.standing(args, settings)):
                print(f"  seed {seed} stands already: {stands}; --again draws it anew")
                continue
            print(f"  seed {seed}, {args.steps} steps, guidance {args.guidance}")
            said = output.forewarn(sd, prompt)
            with output.progress() as progress:
                out = generate(sd, prompt, progress=progress, on_step=preview, **run, **steer)
            seconds, found = time.perf_counter() - began, {"notes": list(out.notes)}
            name = f"seed{seed}-" if len(pairs) > 1 else ""
            output.write(args.out, name, {"image": out.images[0]}, settings, found, seconds, said)
