"""The AdapEdit paper's Table 1, and ours beside it: InstructPix2Pix's 700 human-written edits, drawn by prompts."""

from collections.abc import Mapping, Sequence

from minedit.metrics.asked import Task
from minedit.metrics.clip import CLIP
from minedit.metrics.table import ALL, cell, row_of

EDITS = 700
NAMES = {"lpips": "LPIPS ↓", "clip": "CLIP score ↑", "clip_direction": "CLIP directional ↑"}
PUBLISHED = {  # as printed, of SD-v1.4 and CLIP ViT-L/14
    "p2p": ("P-to-P (2022)", "0.33", "26.05", "0.11"),
    "sdedit": ("SDEdit (2021)", "0.55", "26.52", "0.11"),
    "instruct-pix2pix": ("Instruct P2P (2023)", "0.27", "24.59", "0.04"),
    "masactrl": ("MasaCtrl (2023)", "0.41", "27.00", "0.13"),
    "adapedit": ("AdapEdit (Ours)", "0.29", "27.08", "0.13"),
}


def asked(tasks: Sequence[Task], figures: Mapping[str, object]) -> bool:
    """Whether these are the edits of Table 1, all of them, and its figures are there."""
    plain = all(task.instruction and not (task.world or task.image) for task in tasks)
    return plain and len({(task.source, task.target) for task in tasks}) == EDITS and NAMES.keys() <= figures.keys()


def same_clip(clip: CLIP) -> bool:
    """Whether it is of ViT-L/14's form."""
    vision = clip.model.config.vision_config
    return (vision.hidden_size, vision.num_hidden_layers, vision.patch_size) == (1024, 24, 14)


def as_markdown(lines: Sequence[dict], model: str, clip: CLIP) -> str:
    """A row for each of the paper's methods, and each other that was measured, ours with 95 % intervals."""
    ours = {line["method"]: line for line in lines if line["kind"] == ALL}
    heads = [f"{title}, {whose}" for whose in ("paper, SD-v1.4", f"here, {model}") for title in NAMES.values()]
    parts = ["# Table 1: 700 human-written edits", "", row_of(["method", *heads]), row_of(["---"] * (1 + len(heads)))]
    for name in (*PUBLISHED, *(name for name in ours if name not in PUBLISHED)):
        title, *published = PUBLISHED.get(name, (name, *["–"] * len(NAMES)))
        line = ours.get(name)
        found = [cell(each, line["figures"][each], line["edits"]) if line else "–" for each in NAMES]
        parts.append(row_of([title if title == name else f"{title}: `{name}`", *published, *found]))
    parts += ["", "The paper's figures are SD-v1.4's, of one seed that it does not name, without intervals."]
    if not same_clip(clip):
        parts.append("CLIP's are measured here by another than ViT-L/14: not to be compared with the paper's.")
    return "\n".join(parts) + "\n"
