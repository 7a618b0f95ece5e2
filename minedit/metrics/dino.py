"""Structure distance (Tumanyan et al., CVPR 2022): how unlike two pictures are in what of them resembles what.

The keys of the last layer of DINO's ViT-B/8, the heads side by side, of the class token and every patch, are compared
with one another by their cosines: [785, 785] for pictures of 224 pixels. The distance is the mean squared difference.

PIE-Bench's published figures give the network colours of 0 ... 255 where it was trained on 0 ... 1: `published`.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTModel

from minedit.config import MineditError
from minedit.metrics.foreign import config, network

EXPECTED = "expected a folder of transformers' ViTModel, such as facebook/dino-vitb8"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of colours


def load_dino(folder: str | os.PathLike, device: str | torch.device = "cpu") -> ViTModel:
    """Raises MineditError for a folder that holds no whole ViT."""
    path, told = config(folder, "vit", EXPECTED)
    if told.get("qkv_bias") is False:
        raise MineditError(f"{path} is a ViT without biases of its keys, which is not DINO's; {EXPECTED}")
    return network(ViTModel, path, EXPECTED, add_pooling_layer=False).to(device)


@torch.no_grad()
def self_similarity(vit: ViTModel, pictures: Tensor, published: bool = False) -> Tensor:
    """Pictures [B,3,H,W] in [0,1] -> [B,1+N,1+N] of N patches, -1 ... 1. published: with colours of 0 ... 255."""
    side = vit.config.image_size
    x = F.interpolate(pictures * 255 if published else pictures, size=(side, side), mode="bilinear", antialias=True)
    mean, std = (x.new_tensor(each)[:, None, None] for each in (MEAN, STD))
    keys: list[Tensor] = []
    layer = [each for name, each in vit.named_modules() if name.endswith((".key", ".k_proj"))][-1]
    held = layer.register_forward_hook(lambda module, given, out: keys.append(out))
    try:
        vit(pixel_values=(x - mean) / std)
    finally:
        held.remove()
    unit = F.normalize(keys[0], dim=-1)  # [B, 1 + N, D]
    return unit @ unit.mT


def structure_distance(vit: ViTModel, a: Tensor, b: Tensor, published: bool = False) -> Tensor:
    """Pictures [B,3,H,W] in [0,1] -> [B], 0 for the same."""
    apart = self_similarity(vit, a, published) - self_similarity(vit, b, published)
    return (apart**2).mean((1, 2))
