"""docs/methods.md, made from the settings' own fields: `make methods` writes it anew."""

import csv
from dataclasses import fields
from pathlib import Path

from examples import GUIDANCE, SEEDS, command, picture

from minedit.inversion.choose import INVERSIONS
from minedit.methods.choose import METHODS
from minedit.sampling.numbers import SEED, Numbers
from minedit.settings import own_first, settings

HEAD = """# Methods and their settings

`minedit edit --method NAME` and `minedit.edit(sd, source, target, "NAME")` take each of these. A setting is a keyword
of `minedit.edit` and, with dashes, an option of the command line. This page is made from the code by `make methods`.

![Eight edits by each method, of the embedded model, 25 steps: MasaCtrl leaves colours and places as they were,
Plug-and-Play fails at a new pose, h-Edit changes colours that nobody asked for](methods.jpg)

How well each does: [results.md](results.md). Below, each has three edits that suit it, and the command that draws the
first. They show what a method is for, not how often it comes off: seeds were chosen by eye, among {seeds} at most.
`make gallery` draws them anew; the photographs are renderings of the embedded world.

To add a method, write a frozen dataclass of settings with a function `prepare(job) -> Way`
(`minedit/methods/__init__.py` says what a Way can do) and give it a name: `minedit.METHODS["mine"] = Mine`.
"""

INVERTING = """
## Photographs

`minedit edit --image FILE SOURCE TARGET --inversion NAME` and `minedit.edit(sd, source, target, image=photo,
inversion="NAME")` edit a photograph in place of a picture of the source prompt. The source prompt says what the
photograph shows, and is the prompt that the photograph is inverted by; it may be empty, which is said.

How near a photograph is drawn again without an edit, by the embedded model in the steps and with the guidance of the
table: `python benchmarks/inversion.py`, whose docstring says what is measured.
"""
MEASURED = Path(__file__).parent.parent / "benchmarks" / "inversion.csv"


def table(rows) -> str:
    lines = ["| setting | default | values | |", "| --- | --- | --- | --- |"]
    for name, default, each in rows:
        default = each.none if default is None else "" if default == () else default
        values = f"{each.range or 'any'} {each.unit}".strip() if each.kind in (int, float) else each.expected
        values += f"; None: {each.none}" * (bool(each.none) and default != each.none)
        lines.append(f"| `{name}` | {default} | {values} | {each.help} |")
    return "\n".join(lines)


def rows_of(kind):
    return [(field.name, field.default, settings(kind)[field.name]) for field in own_first(kind)]


def measured() -> str:
    """benchmarks/inversion.csv, of each inversion the last row."""
    with MEASURED.open(newline="", encoding="utf-8") as file:
        rows = {row["inversion"]: row for row in csv.DictReader(file)}
    lines = ["| inversion | pictures, steps, guidance | PSNR | most below the autoencoder's |"]
    lines += ["| --- | --- | --- | --- |"]
    for name in (name for name in INVERSIONS if name in rows):
        row = rows[name]
        run, psnr = ", ".join(row[key] for key in ("pictures", "steps", "guidance")), f"{row['psnr']} dB"
        lines.append(f"| {name} | {run} | {psnr} | {row['worst lost']} dB |")
    return "\n".join(lines)


def shown(name: str, what: str) -> str:
    return f"![{what}](methods/{picture(name)})\n\n```sh\n{command(name)}\n```\n"


def page() -> str:
    parts = [HEAD.replace("{seeds}", str(SEEDS)), "## Every run\n", table([("seed", 0, SEED), *rows_of(Numbers)])]
    for method, kind in METHODS.items():
        parts.append(f"\n## {method}\n\n{' '.join(kind.__doc__.split())}\n")
        photo = getattr(kind, "reads_photo", False)
        parts.append(
            shown(method, f"Three photographs and their edits by {method}" if photo else f"Three edits by {method}")
        )
        parts += [table(rows_of(kind))] if fields(kind) else []
    parts += [INVERTING, measured()]
    for name, kind in INVERSIONS.items():
        parts.append(f"\n### {name}\n\n{' '.join(kind.__doc__.split())}\n")
        what = f"A photograph, as {name} draws it again, how far that is off, and an edit of it"
        parts.append(shown(name, what + (f", guidance {GUIDANCE[name]:g}" if name in GUIDANCE else "")))
        parts += [table(rows_of(kind))] if fields(kind) else []
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("methods.md").write_text(page(), encoding="utf-8")
