"""What the embedded model can do, measured on held-out compositions.

Three figures: how well the autoencoder reconstructs, which factors the judge network reads off generated pictures, and
how local the maps of the words are.
"""

from itertools import count as integers
from itertools import islice

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from minedit.attention.rules import Attn
from minedit.files.checkpoint import Model
from minedit.image import to_tensor
from minedit.methods.plan import map_side
from minedit.picturebook.training.judge_net import Judge
from minedit.picturebook.training.train_vae import psnr, reconstruct
from minedit.picturebook.world.captions import Caption, caption
from minedit.picturebook.world.dataset import drawings, factors_of
from minedit.picturebook.world.draw import stream
from minedit.picturebook.world.factors import Factors
from minedit.picturebook.world.scene import scene
from minedit.picturebook.world.shown import LABELS, shown
from minedit.sampling.coded import encode
from minedit.sampling.ddim import diffuse
from minedit.sampling.loop import embed
from minedit.stack.tokens import Prompt
from minedit.verbs.generate import generate

GOALS = {"subject": 0.95, "place": 0.95, "colour": 0.90, "pose": 0.85, "count": 0.85}
RENDERINGS = 1024  # held-out renderings that the judge itself is measured on
MAP_TIMES = tuple(range(101, 902, 100))  # noise levels the word maps are averaged over
INSIDE = 0.25  # a map cell is in the subject if at least this share of it is

Asked = list[tuple[Factors, Caption]]


def reconstruction(model: Model, count: int = 128, seed: int = 1) -> float:
    """Mean PSNR in dB of the autoencoder on `count` renderings of held-out compositions."""
    images = drawings(stream(seed, "reconstruction"), count, model.config.image_size, unseen=True).to(model.device)
    return psnr(images, reconstruct(model.vae, images)).mean().item()


def prompts(count: int, seed: int) -> Asked:
    """Captions of held-out compositions that name place, pose or count, and most colours; fixed by the seed."""
    found = []
    for i in range(count):
        rng, factors = stream(seed, f"prompt:{i}"), factors_of(seed, i, unseen=True)
        besides = frozenset(key for key in ("colour", "size", "time", "held") if rng.random() < 0.6)
        found.append((factors, caption(factors, rng, besides | {"place", "pose", "count"})))
    return found


def judged(
    model: Model, judge: Judge, asked: Asked, steps: int = 50, guidance: float = 7.5, batch: int = 20
) -> dict[str, tuple[int, int]]:
    """(pictures read correctly, pictures asked for) of each factor that captions name; picture i has seed i."""
    table = dict.fromkeys(LABELS, (0, 0))
    for start in tqdm(range(0, len(asked), batch), desc=f"{batch} pictures each"):
        part = asked[start : start + batch]
        seeds = list(range(start, start + len(part)))
        out = generate(model, [said.text for _, said in part], seed=seeds, steps=steps, guidance=guidance)
        read = judge.read_all(torch.cat([to_tensor(image) for image in out.images]))
        for factor, (right, total) in table.items():
            hits = [
                found[factor] in (getattr(factors, factor), shown(factors, i)[factor])
                for i, (factors, said), found in zip(seeds, part, read, strict=True)
                if factor in said.named
            ]
            table[factor] = (right + sum(hits), total + len(hits))
    return {factor: (right, total) for factor, (right, total) in table.items() if total}


@torch.inference_mode()
def word_maps(model: Model, count: int = 200, seed: int = 2026) -> dict[str, float]:
    """How local the maps of subject and place words are, on renderings of training compositions with one subject.

    A rendering is encoded and noised to MAP_TIMES; the maps of all cross-attention layers of side `map_size` are
    averaged over heads, layers and times. Returns shares of captions: `subject_inside`, the largest cell of the
    subject word's map lies in the subject; `place_outside`, that of the place word's does not; and `subject_iou`, the
    mean intersection over union of the subject's cells with the map above half its maximum.
    """
    single = (i for i in integers() if factors_of(seed + 1, i).count == 1)
    rows = [_locality(model, i, seed) for i in islice(single, count)]
    return dict(zip(("subject_inside", "place_outside", "subject_iou"), np.mean(rows, axis=0).tolist(), strict=True))


def _locality(model: Model, index: int, seed: int) -> tuple[bool, bool, float]:
    """(subject's maximum inside, place's maximum outside, subject's intersection over union) of one rendering."""
    factors, side = factors_of(seed + 1, index), model.config.map_size
    drawn = scene(factors, seed + index + 1, model.config.image_size)
    said = caption(factors, stream(seed, f"words:{index}"), frozenset({"place", "pose", "colour"}))
    prompt, columns = model.tokenizer.encode(said.text), _columns(model, drawn.image, said.text, seed + index + 1)
    subject, place = (_word_map(columns, prompt, word) for word in (said.subject_word, said.place_word))
    cells = np.asarray(drawn.mask.reduce(model.config.image_size // side), dtype=np.float32).ravel() / 255
    hot, body = subject > subject.max() / 2, cells >= 0.5
    iou = (hot & body).sum() / max(1, (hot | body).sum())
    return cells[subject.argmax()] >= INSIDE, cells[place.argmax()] < INSIDE, iou


def _columns(model: Model, image: Image.Image, text: str, seed: int) -> np.ndarray:
    """The averaged cross-attention probabilities [N,T] of the noised picture."""
    cross = [site for site in model.unet.sites if site.kind == "cross"]
    watch = [site.name for site in cross if map_side(site, model.config) == model.config.map_size]
    mean = encode(model, image)
    times, generator = torch.tensor(MAP_TIMES), torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(len(times), *mean.shape[1:], generator=generator).to(mean)
    attn = Attn(attend=model.attend, watch=dict.fromkeys(watch, True))
    context = embed(model, [text]).expand(len(times), -1, -1)
    model.unet(diffuse(mean, noise, times).to(model.dtype), times.to(model.device), context, attn)
    return torch.stack([attn.seen[name].columns for name in watch]).mean((0, 1)).cpu().numpy()  # [N, T]


def _word_map(columns: np.ndarray, prompt: Prompt, text: str) -> np.ndarray:
    """Mean column [N] of the last word spelt `text`."""
    word = [word for word in prompt.words if word.text == text][-1]
    return columns[:, list(word.tokens)].mean(1)
