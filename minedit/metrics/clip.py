"""CLIP (Radford et al., 2021): how well a picture fits a text, and a change of it a change of the text.

Any CLIP that transformers can read, from a folder; papers on Stable Diffusion v1.4 take openai/clip-vit-large-patch14.
A score is 100 · cos, -100 ... 100; published ones are often clipped at 0. The direction is the cosine of the change of
the picture with that of the text (Gal et al., StyleGAN-NADA, 2022), -1 ... 1.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from minedit.config import MineditError, shown
from minedit.metrics.foreign import config, network, settings

EXPECTED = "expected a folder of transformers' CLIPModel and its tokenizer, such as openai/clip-vit-large-patch14"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's, of colours


@dataclass(frozen=True)
class CLIP:
    """Pictures and texts -> vectors of length 1 [B,D] that may be compared."""

    model: CLIPModel
    ids: Callable[[list[str]], tuple[Tensor, Tensor]]  # of texts: tokens, and which of them count, [B,T]
    resized: int  # pixels of a picture's shorter side
    cropped: int  # of the square in its middle that is looked at
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        x = torch.stack([self.seen(picture) for picture in pictures]).to(self.model.device)
        return F.normalize(self.model.visual_projection(self.model.vision_model(x).pooler_output), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Those that are too long lose their end."""
        ids, counts = (each.to(self.model.device) for each in self.ids(list(texts)))
        out = self.model.text_model(input_ids=ids, attention_mask=counts)
        return F.normalize(self.model.text_projection(out.pooler_output), dim=-1)

    def seen(self, picture: Image.Image) -> Tensor:
        """What the network is given of a picture, [3,H,W]."""
        width, height = (int(self.resized * side / min(picture.size)) for side in picture.size)
        picture = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.cropped) // 2, (height - self.cropped) // 2
        picture = picture.crop((left, top, left + self.cropped, top + self.cropped))
        array = (np.asarray(picture, dtype=np.float32) / 255 - np.float32(self.mean)) / np.float32(self.std)
        return torch.from_numpy(array).permute(2, 0, 1)


def score(images: Tensor, texts: Tensor) -> Tensor:
    """100 · cos of vectors [B,D] -> [B]; clipped, as it is published, by `.clamp(min=0)`."""
    return 100 * F.cosine_similarity(images, texts)


def direction(before: Tensor, after: Tensor, said_before: Tensor, said_after: Tensor) -> Tensor:
    """Of pictures and of texts, vectors [B,D] of length 1 -> [B]; 0 where nothing changed."""
    return F.cosine_similarity(after - before, said_after - said_before)


def load_clip(folder: str | os.PathLike, device: str | torch.device = "cpu") -> CLIP:
    """Raises MineditError for a folder that holds no whole CLIP."""
    path, _ = config(folder, "clip", EXPECTED)
    model = network(CLIPModel, path, EXPECTED).to(device)
    side = model.config.vision_config.image_size
    told = settings(path, "preprocessor_config.json")
    try:
        colours = {
            name: tuple(map(float, told[f"image_{name}"])) for name in ("mean", "std") if f"image_{name}" in told
        }
        sizes = _side(told.get("size", side)), _side(told.get("crop_size", side))
    except (TypeError, ValueError, KeyError, StopIteration) as error:
        raise MineditError(f"{shown(path, 300)}/preprocessor_config.json is not CLIP's; download it again") from error
    if sizes[1] != side or sizes[0] < side:
        what = f"pictures of {sizes[0]} pixels, of which {sizes[1]} are seen; its network sees {side}"
        raise MineditError(f"{shown(path, 300)}/preprocessor_config.json has {what}; download it again")
    return CLIP(model, _tokens(path, model), *sizes, **colours)


def _side(told: object) -> int:
    """224, {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    return int(next(iter(told.values())) if isinstance(told, dict) else told)


def _tokens(path: Path, model: CLIPModel) -> Callable[[list[str]], tuple[Tensor, Tensor]]:
    try:
        tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # whatever transformers finds wrong
        fault = f"{shown(path, 300)} has no tokenizer ({shown(' '.join(str(error).split()), 200)})"
        raise MineditError(f"{fault}; {EXPECTED}") from error
    longest = model.config.text_config.max_position_embeddings

    def ids(texts: list[str]) -> tuple[Tensor, Tensor]:
        found = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return found["input_ids"], found["attention_mask"]

    return ids
