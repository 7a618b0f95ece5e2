"""The text encoder. Oracle: OpenAI's clip/model.py, written out here on the same weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from seeded import fill, relative
from torch import Tensor

from minedit.config import TextConfig
from minedit.stack.text import TextEncoder

SMALL = TextConfig(vocab_size=40, width=24, layers=2, heads=3, mlp=48, context_length=9, bos=38, eos=39)
IDS = torch.tensor([[38, 3, 5, 7, 39, 39, 39, 39, 39], [38, 1, 2, 3, 4, 5, 6, 7, 39]])


def reference(weights: dict[str, Tensor], ids: Tensor, heads: int, layers: int) -> Tensor:
    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"], eps=1e-5)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, H, T, D]

    T = ids.shape[1]
    x = weights["embeddings.token_embedding.weight"][ids] + weights["embeddings.position_embedding.weight"][:T]
    mask = torch.full((T, T), float("-inf"), dtype=x.dtype).triu(1)
    for i in range(layers):
        layer = f"encoder.layers.{i}."
        h = norm(x, layer + "layer_norm1")
        q, k, v = (split(linear(h, f"{layer}self_attn.{which}_proj")) for which in "qkv")
        h = ((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(h, layer + "self_attn.out_proj")
        h = linear(norm(x, layer + "layer_norm2"), layer + "mlp.fc1")
        x = x + linear(h * torch.sigmoid(1.702 * h), layer + "mlp.fc2")
    return norm(x, "final_layer_norm")


def plain_names(encoder: TextEncoder) -> dict[str, Tensor]:
    """float64, by CLIP's names, which transformers 4 puts behind text_model."""
    state = encoder.state_dict()
    return {name.removeprefix("clip.").removeprefix("text_model."): x.double() for name, x in state.items()}


def test_against_clip_written_out():
    encoder = fill(TextEncoder(SMALL))
    with torch.no_grad():
        out = encoder(IDS)
    assert out.shape == (2, 9, 24)
    assert relative(out, reference(plain_names(encoder), IDS, SMALL.heads, SMALL.layers)) < 1e-5


def test_pooled_is_the_state_at_the_first_end_of_text():
    encoder = fill(TextEncoder(SMALL))
    with torch.no_grad():
        states, pooled = encoder(IDS), encoder.pooled(IDS)
    assert torch.equal(pooled, torch.stack([states[0, 4], states[1, 8]]))


def test_causal():
    encoder = fill(TextEncoder(SMALL))
    other = IDS.clone()
    other[:, 5:] = 11
    with torch.no_grad():
        a, b = encoder(IDS), encoder(other)
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.equal(a[:, 5:], b[:, 5:])


def test_built_on_meta_it_needs_only_its_parameters():
    with torch.device("meta"):
        built = TextEncoder(SMALL)
    source = fill(TextEncoder(SMALL))
    built.load_state_dict(source.state_dict(), strict=True, assign=True)
    assert not [name for name, x in [*built.named_parameters(), *built.named_buffers()] if x.is_meta]
    with torch.no_grad():
        assert torch.equal(built.eval()(IDS), source(IDS))


def test_trains_also_under_autocast():
    encoder = TextEncoder(SMALL).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = encoder.pooled(IDS).float().square().mean() + encoder(IDS).float().mean()
    loss.backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
