"""`minedit edit`: a picture and its edit, for each pair of prompts and seed."""

import argparse
from dataclasses import asdict

from minedit import image
from minedit.cli import output
from minedit.cli.pairs import asked
from minedit.config import shown


def run(args: argparse.Namespace) -> None:
    edits = asked(args)
    runs = [(each, seed) for each in edits for seed in each.seeds]
    from minedit.verbs import edit, record  # and torch, once the arguments are right

    with output.folder(args.out):
        sd = output.load(args)
        preview = output.preview(args, sd)
        for each in edits:
            each.check(sd)
        if letters := image.undrawn("".join(each.source + each.target for each in edits)):
            what = f"no font here has {shown(letters, 60)}, boxes stand for them below the pictures of the grid"
            print(f"  note: {what}; install one that has, such as Noto Sans CJK")
        for each, seed in runs:
            what = each.source, each.target, each.method
            settings = {"verb": "edit", **record(sd, *what, seed, each.run, each.settings)}
            settings |= output.model_settings(args, sd)
            print(f"\n{shown(repr(each.source), 400)} -> {shown(repr(each.target), 400)}")
            if len(runs) > 1 and (stands := output.standing(args, settings)):
                print(f"  seed {seed} stands already: {stands}; --again draws it anew")
                continue
            print(f"  {each.method}, seed {seed}, {each.run.steps} steps, guidance {each.run.guidance}")
            said = output.forewarn(sd, each.source, each.target)
            with output.progress() as progress:
                calls = {"progress": progress, "on_step": preview, "settings": each.settings}
                res = edit(sd, *what, seed=seed, **asdict(each.run), **calls)
            texts = [shown(word.text, 40) for word in res.words]
            width = max(map(len, texts), default=0)
            print(f"  {'word':{width}}  kind      τ, fraction of the steps")
            for text, word in zip(texts, res.words, strict=True):
                print(f"  {text:{width}}  {word.kind:8}  {word.tau:.2f}")
            pictures = {"source": res.source, "edited": res.edited}
            pictures["grid"] = image.grid([res.source, res.edited], [each.source, each.target])
            found = {"words": [asdict(word) for word in res.words], "notes": list(res.notes), **each.more}
            output.write(
                args.out, f"seed{seed}-" if len(runs) > 1 else "", pictures, settings, found, res.seconds, said
            )
