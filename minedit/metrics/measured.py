"""An edit, a picture and what it was made of -> its figures, with what is there to measure by."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL.Image import Image, Resampling, fromarray
from torch import Tensor
from transformers import ViTModel

from minedit.config import PICTUREBOOK, MineditError
from minedit.files.checkpoint import weights_folder
from minedit.metrics import clip, closed, dino, pixels
from minedit.metrics.asked import Task, decoded
from minedit.metrics.clip import CLIP, load_clip
from minedit.metrics.columns import GROUPS, MOST_DB
from minedit.metrics.lpips import LPIPS, load_lpips
from minedit.picturebook.score import Reading, read
from minedit.picturebook.training.fit import fingerprint
from minedit.picturebook.training.judge_net import Judge, load_judge

OWN_CLIP = "picturebook-clip"  # of weights/, which knows the embedded world alone
SEEN = PICTUREBOOK.image_size  # pixels a side of what the judge reads
Figures = dict[str, float | None]


@dataclass(frozen=True)
class Tools:
    """What figures are taken by; None, or no network, where there is none."""

    groups: tuple[str, ...]
    lpips: Mapping[str, LPIPS]  # by network
    clip: CLIP | None
    dino: ViTModel | None
    judge: Judge | None
    absent: tuple[str, ...] = ()  # what is left out and why, a line each

    def told(self) -> dict[str, str]:
        """A short name of each one's weights."""
        found = {f"lpips {net}": module for net, module in self.lpips.items()}
        found |= {"clip": self.clip and self.clip.model, "dino": self.dino, "judge": self.judge}
        return dict.fromkeys({"pixels"} & set(self.groups), "") | {
            name: fingerprint(module) for name, module in found.items() if module
        }


def tools(
    asked: Sequence[str] | None, files: Mapping[str, str | None], closed_world: bool, masks: bool, device: torch.device
) -> Tools:
    """asked: groups that must be there; None: those that can be. files: of lpips, clip and dino, the user's.

    Raises MineditError for what is asked for by name and is not there, and for files that are none.
    """
    own = weights_folder() / OWN_CLIP
    places = {
        "clip": files.get("clip") or (str(own) if closed_world and own.is_dir() else None),
        "dino": files.get("dino"),
    }
    lacking = {name: f"no weights: --{name} FOLDER" for name, place in places.items() if place is None}
    lacking |= {} if closed_world else {"judge": "it reads the closed world alone"}
    for name, why in lacking.items():
        if asked is not None and name in asked:
            raise MineditError(f"{name} was asked for and cannot be had: {why}")
    groups = tuple(name for name in GROUPS if name not in lacking and (asked is None or name in asked))
    absent = [f"{name} is left out ({why})" for name, why in lacking.items() if name != "judge" and asked is None]
    nets = {}
    if "lpips" in groups:
        nets = {"alex": load_lpips(None, device)}
        if files.get("lpips"):
            given = load_lpips(files["lpips"], device)
            nets[given.net] = given
        if masks and "squeeze" not in nets:
            absent.append("lpips as PIE-Bench publishes it is left out (no weights: --lpips squeezenet1_1's file)")
    return Tools(
        groups,
        nets,
        load_clip(places["clip"], device) if "clip" in groups else None,
        dino.load_dino(places["dino"], device) if "dino" in groups else None,
        load_judge(weights_folder() / "picturebook-judge.safetensors") if "judge" in groups else None,
        tuple(absent),
    )


def measured(tools: Tools, task: Task, source: Image, edit: Image, drawn: Image | None = None) -> Figures:
    """The figures of an edit, beside what the judge reads. All three are RGB pictures of one size.

    source: what was to be edited, a photograph as it is or what the run drew. drawn: what the run drew the photograph
    again as; None where there is none. None stands for what is not defined: of a background that is empty.
    """
    a, b = unit(source), unit(edit)
    behind = background(task, source.size, drawn is not None)
    found: dict[str, Tensor | float | None] = {}
    if "pixels" in tools.groups:
        found |= {"psnr": pixels.psnr(a, b), "ssim": pixels.ssim(a, b)}
        found |= _behind(
            behind,
            lambda inside: {
                "psnr_background": pixels.psnr(a, b, inside),
                "mse_background": pixels.mse(a, b, inside),
                "ssim_background": pixels.ssim(a, b, inside),
            },
        )
        found |= _published(task, behind, a, b, {"psnr": pixels.psnr, "mse": pixels.mse, "ssim": pixels.ssim})
        if task.world and drawn is not None:
            found |= closed.beside_truth(task.world, drawn, edit)
    if "lpips" in tools.groups:
        place = next(tools.lpips["alex"].parameters()).device
        near, far = a.to(place), b.to(place)
        found["lpips"] = tools.lpips["alex"](near, far)
        found |= _behind(behind, lambda inside: {"lpips_background": tools.lpips["alex"](near, far, inside.to(place))})
        if "squeeze" in tools.lpips:
            found |= _published(
                task, behind, a, b, {"lpips": lambda x, y: tools.lpips["squeeze"](x.to(place), y.to(place))}
            )
    if tools.clip:
        found |= _of_clip(tools.clip, task, source, edit)
    if tools.dino:
        near, far = (each.to(tools.dino.device) for each in (a, b))
        found["structure"] = dino.structure_distance(tools.dino, near, far)
        found["structure_published"] = dino.structure_distance(tools.dino, near, far, published=True)
    return {name: _plain(name, value) for name, value in found.items()}


def readings(tools: Tools, task: Task, source: Image, edit: Image) -> tuple[Reading, Reading] | None:
    """What the judge reads off both, in the size of the world's pictures; None without a judge."""
    if not (tools.judge and task.world):
        return None
    small = [
        each if each.size == (SEEN, SEEN) else each.resize((SEEN, SEEN), Resampling.BOX) for each in (source, edit)
    ]
    return tuple(read(tools.judge, small))


def unit(image: Image) -> Tensor:
    """[1,3,H,W] in [0,1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def background(task: Task, size: tuple[int, int], photograph: bool) -> Tensor | None:
    """[1,1,H,W] of 0 and 1; None where the benchmark tells of none."""
    if task.world:
        return closed.background(task.world, size[0], photograph)
    if task.mask is None:
        return None
    mask = decoded(task.mask)
    if mask.shape != size[::-1]:
        mask = np.array(fromarray(mask.astype(np.uint8)).resize(size, Resampling.NEAREST), dtype=np.float32)
        mask[[0, -1]] = mask[:, [0, -1]] = 1
    return torch.from_numpy(1 - mask)[None, None]


def _behind(background: Tensor | None, figures: Callable[[Tensor], dict]) -> dict:
    if background is None:
        return {}
    found = figures(background)
    return found if background.any() else dict.fromkeys(found)


def _published(task: Task, background: Tensor | None, a: Tensor, b: Tensor, figures: Mapping[str, Callable]) -> dict:
    """PIE-Bench's own way, of black pixels in both pictures."""
    if task.mask is None:
        return {}
    if not background.any():
        return dict.fromkeys(f"{name}_published" for name in figures)
    black = pixels.blackened(a, background), pixels.blackened(b, background)
    return {f"{name}_published": figure(*black) for name, figure in figures.items()}


def _of_clip(by: CLIP, task: Task, source: Image, edit: Image) -> dict:
    images, texts = by.images([source, edit]), by.texts([task.source, task.target])
    found = {"clip": clip.score(images[1:], texts[1:])}
    found |= {"clip_clipped": found["clip"].clamp(min=0), "clip_pictures": (images[:1] * images[1:]).sum(-1)}
    if task.source.strip() and task.source != task.target:
        found["clip_direction"] = clip.direction(images[:1], images[1:], texts[:1], texts[1:])
    if task.mask is not None:
        mask = 1 - background(task, edit.size, True)[0, 0].numpy()
        left = fromarray(np.uint8(np.asarray(edit) * mask[:, :, None]))
        found["clip_edited"] = clip.score(by.images([left]), texts[1:]).clamp(min=0) if mask.any() else None
    return found


def _plain(name: str, value: Tensor | float | None) -> float | None:
    if value is None:
        return None
    number = min(float(value), MOST_DB) if name.startswith("psnr") else float(value)
    return number if math.isfinite(number) else None
