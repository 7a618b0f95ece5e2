"""What others publish of PIE-Bench's 700 edits, and ours beside it."""

from collections.abc import Mapping, Sequence

from minedit.inversion.choose import DEFAULT
from minedit.metrics import paper
from minedit.metrics.asked import Task
from minedit.metrics.measured import Tools
from minedit.metrics.table import ALL, Mean, interval, row_of

EDITS = 700
FIGURES = {  # name → title, how many times as much is printed, and digits behind the point
    "structure_published": ("structure* · 10³ ↓", 1000, 1),
    "psnr_published": ("PSNR bg* ↑", 1, 2),
    "lpips_published": ("LPIPS bg* · 10³ ↓", 1000, 1),
    "clip_clipped": ("CLIP ≥ 0 ↑", 1, 2),
}
DIRECT = "p2p"  # the method of ours that is one of these with direct inversion alone
PUBLISHED = {  # name of ours, or theirs: title, paper, and its figures as printed
    DIRECT: ("direct inversion + P2P", "Ju et al., ICLR 2024", "11.65", "27.22", "54.6", "25.02"),
    "h-edit": ("h-Edit-D + P2P", "Nguyen et al., CVPR 2025", "11.7", "27.87", "48.5", "25.3"),
    "InfEdit": ("InfEdit, 12 steps", "Xu et al., CVPR 2024", "13.8", "28.51", "47.6", "25.03"),
    "ViMAEdit": ("ViMAEdit", "Wang et al., arXiv:2410.10496", "12.4", "28.49", "44.4", "25.97"),
}


def asked(tasks: Sequence[Task], figures: Mapping[str, object]) -> bool:
    """Whether these are the edits of PIE-Bench, all of them, and figures that are published are there."""
    photographs = {task.image for task in tasks if task.image is not None and task.mask is not None}
    return len(photographs) == EDITS and bool(FIGURES.keys() & figures.keys())


def as_markdown(lines: Sequence[dict], model: str, tools: Tools, inversion: str | None) -> str:
    """A row for each published method, and each other that was measured, ours with 95 % intervals.

    inversion: of ours; None for the default.
    """
    ours = {line["method"]: line for line in lines if line["kind"] == ALL}
    inversion = inversion or DEFAULT
    same = [name for name in PUBLISHED if name in ours and (name != DIRECT or inversion == "direct")]
    titles = [title for title, _, _ in FIGURES.values()]
    heads = [
        "method",
        "paper",
        *(f"{title}, published" for title in titles),
        *(f"{title}, {model}" for title in titles),
    ]
    parts = ["# PIE-Bench: 700 photographs", "", row_of(heads), row_of(["---"] * len(heads))]
    for name, (title, paper_of, *printed) in PUBLISHED.items():
        found = _found(ours[name]) if name in same else ["–"] * len(FIGURES)
        parts.append(row_of([f"{title}: `{name}`" if name in same else title, paper_of, *printed, *found]))
    for name, line in ours.items():
        if name not in same:
            parts.append(row_of([name, "–", *["–"] * len(FIGURES), *_found(line)]))
    parts += ["", "Published figures are as printed, without intervals."]
    parts.append(f"Here methods that invert a photograph do so by {inversion}.")
    parts.append("`copy` has the best structure and background of all, and edits nothing: CLIP says what was edited.")
    parts.append("Figures of pictures that are not 512 × 512 are not to be compared with the published.")
    if tools.clip and not paper.same_clip(tools.clip):
        parts.append("CLIP's are measured here by another than ViT-L/14: not to be compared with the published.")
    if tools.dino and (tools.dino.config.hidden_size, tools.dino.config.patch_size) != (768, 8):
        parts.append("Structure is measured here by another than ViT-B/8: not to be compared with the published.")
    return "\n".join(parts) + "\n"


def _found(line: dict) -> list[str]:
    """Ours, in the columns' units; a figure that was not measured is a dash."""
    return [_cell(line["figures"].get(name), line["edits"], *how) for name, (_, *how) in FIGURES.items()]


def _cell(found: Mean | None, edits: int, times: int, digits: int) -> str:
    if found is None:
        return "–"
    *numbers, count = found
    return interval((*(times * number for number in numbers), count), edits, digits)
