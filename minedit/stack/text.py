"""Token ids -> text embeddings, through transformers' CLIP text model (Radford et al. 2021, arXiv:2103.00020).

SD-v1 conditions on the last hidden state after the final layer norm. The mask is causal; padding is not masked.
Its LayerNorms and its softmax accumulate in float32 whatever the dtype of the weights.
"""

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from minedit.config import TextConfig


class TextEncoder(nn.Module):
    """Ids [B,T] -> [B,T,width]; T at most cfg.context_length."""

    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        self.eos = cfg.eos
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=cfg.vocab_size,
                hidden_size=cfg.width,
                intermediate_size=cfg.mlp,
                num_hidden_layers=cfg.layers,
                num_attention_heads=cfg.heads,
                max_position_embeddings=cfg.context_length,
                hidden_act="quick_gelu",  # OpenAI's weights were trained with it; with gelu they drift
                bos_token_id=cfg.bos,
                eos_token_id=cfg.eos,
                pad_token_id=cfg.eos,
            )
        )
        # Built on meta this buffer would stay there: it is in no checkpoint.
        for module in self.clip.modules():
            if hasattr(module, "position_ids"):
                module.position_ids = torch.arange(cfg.context_length, device="cpu")[None]

    def forward(self, ids: Tensor) -> Tensor:
        return self.clip(input_ids=ids).last_hidden_state

    def pooled(self, ids: Tensor) -> Tensor:
        """[B,width]: the state at each row's first end of text, which alone has seen the whole prompt."""
        states = self(ids)
        first = (ids == self.eos).int().argmax(dim=1)
        return states[torch.arange(len(ids), device=ids.device), first]
