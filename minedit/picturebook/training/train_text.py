"""Stage 2: a small CLIP of the world (Radford et al., 2021), whose text tower conditions the UNet.

The tower is causal, as Stable Diffusion's is: word states stay local, and so do the attention maps the UNet makes of
them. Trained contrastively here, it goes on learning with the UNet. The whole CLIP tells how well text and picture fit.
"""

import json
import random
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from minedit.config import Config
from minedit.files.checkpoint import weights_folder
from minedit.picturebook.training.fit import Training, fit
from minedit.picturebook.world.captions import caption
from minedit.picturebook.world.dataset import Drawings
from minedit.picturebook.world.draw import stream
from minedit.stack.tokens import Tokenizer

PROBE = 64  # held-out pictures among which each caption's own is searched


def clip_model(config: Config) -> CLIPModel:
    """A CLIPModel whose text side is `config.text` and whose vision side reads `config.image_size` pixels."""
    t = config.text
    text = CLIPTextConfig(
        vocab_size=t.vocab_size,
        hidden_size=t.width,
        intermediate_size=t.mlp,
        num_hidden_layers=t.layers,
        num_attention_heads=t.heads,
        max_position_embeddings=t.context_length,
        hidden_act="quick_gelu",
        bos_token_id=t.bos,
        eos_token_id=t.eos,
        pad_token_id=t.eos,
    )
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=config.image_size,
        patch_size=config.image_size // 8,
        hidden_act="quick_gelu",
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))


class Ids:
    """Tokenizes captions, remembering each: the world says the same things often."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, tuple[tuple[int, ...], int]] = {}

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """(ids [B,T], number of real tokens [B])."""
        for text in texts:
            if text not in self.known:
                prompt = self.tokenizer.encode(text)
                self.known[text] = (prompt.ids, prompt.length)
        ids, lengths = zip(*(self.known[text] for text in texts), strict=True)
        return torch.tensor(ids), torch.tensor(lengths)


def train_text(
    config: Config, tokenizer: Tokenizer, seen: Drawings, unseen: Drawings, run: Training, batch: int = 128
) -> CLIPModel:
    """Train text and image embeddings to match, on the captions of `seen`; `unseen` measures retrieval."""
    torch.manual_seed(run.seed)
    model, ids = clip_model(config).to(run.device), Ids(tokenizer)

    def embed(data: Drawings, rng: random.Random, count: int) -> tuple[Tensor, Tensor]:
        """Unit vectors [count,128] of `count` pictures, and of a caption of each."""
        picked = rng.sample(range(len(data)), count)
        images = data.tensor(picked).to(run.device)
        texts = ids([caption(data.factors[i], rng).text for i in picked])[0].to(run.device)
        with run.bfloat16():
            out = model(input_ids=texts, pixel_values=images)
        return F.normalize(out.image_embeds.float(), dim=-1), F.normalize(out.text_embeds.float(), dim=-1)

    def loss(step: int) -> dict[str, Tensor]:
        image, text = embed(seen, run.chances("text", step), batch)
        logits = model.logit_scale.exp().clamp(max=100) * image @ text.T
        target = torch.arange(batch, device=logits.device)
        return {"loss": (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2}

    @torch.no_grad()
    def evaluate(_: nn.Module) -> dict[str, float]:
        image, text = embed(unseen, stream(run.seed, "text probe"), PROBE)
        found = (image @ text.T).argmax(0)  # the best picture of each caption
        return {f"recall_at_1_of_{PROBE}": found.eq(torch.arange(PROBE, device=found.device)).float().mean().item()}

    return fit("text", model, loss, run, peak=1e-3, weight_decay=0.05, evaluate=evaluate)


def write_clip(model: CLIPModel, folder: Path) -> None:
    """A folder as transformers has them, in float16: metrics/clip.py reads it, as any other."""
    model.half().save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(weights_folder() / "tokenizer-picturebook" / name, folder / name)
    side = model.config.vision_config.image_size
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # pictures in [-1,1]
    told = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": side}, **colours}
    told["crop_size"] = {"height": side, "width": side}
    (folder / "preprocessor_config.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
