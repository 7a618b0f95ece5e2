"""The layers of a UNet and a VAE on a GPU, by the kernels of fused.py. In: a module. Out: it, with other forwards.

Weights stay where they were, or become parts of one matrix that one product of several layers needs. Maps are
channels-last throughout: their pixels are then tokens [B,h·w,C], and a 1×1 convolution a linear layer, as views.
"""

from collections.abc import Collection
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minedit.attention.inside import Gate
from minedit.attention.rules import Attn, branch
from minedit.speed.fused import (
    add,
    add_layer_norm,
    gate,
    geglu,
    plain_add,
    plain_add_layer_norm,
    plain_gate,
    plain_geglu,
)
from minedit.speed.group_norm import group_norm, plain_group_norm
from minedit.stack.feed_forward import GEGLU
from minedit.stack.unet import BasicTransformerBlock, CrossAttention, ResBlock, SpatialTransformer, UNet
from minedit.stack.vae import ResnetBlock

PARTS = ("norm", "geglu", "tokens", "text", "gate")  # of `fuse`


def fuse(module: nn.Module, parts: Collection[str] = PARTS) -> None:
    """Change the forwards of its layers.

    norm: GroupNorm with SiLU, biases and the time's embedding in one pass. geglu: GEGLU's gate. tokens: LayerNorm with
    the addition before it, 1×1 convolutions as linear layers. text: all keys and values of the text by one product.
    gate: the pixels' weights of AdapEdit.
    """
    if "norm" in parts:
        _fuse_norms(module)
    for layer in module.modules():
        if isinstance(layer, GEGLU) and "geglu" in parts:
            layer.forward = partial(_geglu, layer)
        elif isinstance(layer, SpatialTransformer) and "tokens" in parts:
            layer.forward = partial(_spatial_transformer, layer)
        elif isinstance(layer, BasicTransformerBlock) and "tokens" in parts:
            layer.forward = partial(_transformer_block, layer)
        elif isinstance(layer, CrossAttention) and "gate" in parts:
            layer.weights = gate
    if isinstance(module, UNet) and "text" in parts:
        _project_text_once(module)


def _fuse_norms(module: nn.Module) -> None:
    if isinstance(module, UNet):
        _embed_time_once(module)
        norm, silu, _ = module.out
        norm.forward, silu.forward = partial(group_norm, norm=norm, silu=True), _unchanged
    for layer in module.modules():
        if isinstance(layer, ResBlock):
            second, skip = layer.out_layers[3], layer.skip_connection
            layer.forward = partial(_res_block, layer, _bias(second, skip))
        elif isinstance(layer, ResnetBlock):
            layer.forward = partial(_resnet_block, layer, _bias(layer.conv2, layer.nin_shortcut))
        elif isinstance(layer, nn.GroupNorm) and "forward" not in vars(layer):
            layer.forward = partial(group_norm, norm=layer)


def _bias(second: nn.Conv2d, skip: nn.Module) -> Tensor:
    """The biases of a block's last convolutions, which are added with their results, as one: [C] float32."""
    bias = second.bias.detach().float()
    return bias if isinstance(skip, nn.Identity) else bias + skip.bias.detach().float()


def _without_bias(layer: nn.Module, x: Tensor) -> Tensor:
    """A convolution but for its bias, for which cuDNN's callers take a pass of its own; 1×1 as a matrix product."""
    if isinstance(layer, nn.Identity):
        return x
    if layer.kernel_size == (1, 1):
        return F.linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1)).permute(0, 3, 1, 2)
    return F.conv2d(x, layer.weight, None, layer.stride, layer.padding)


def _res_block(layer: ResBlock, bias: Tensor, x: Tensor, shifts: Tensor, attn: Attn) -> Tensor:
    """shifts: what `_embed_time_once` makes of the time for all ResBlocks; this one's are `layer.part`."""
    (norm1, _, conv1), (norm2, _, _, conv2) = layer.in_layers, layer.out_layers
    h = _without_bias(conv1, group_norm(x, norm1, silu=True))
    h = _without_bias(conv2, group_norm(h, norm2, silu=True, shift=shifts[:, layer.part]))
    return add(_without_bias(layer.skip_connection, x), branch(h, attn.rules.get(layer.name)), bias)


def _resnet_block(layer: ResnetBlock, bias: Tensor, x: Tensor) -> Tensor:
    h = _without_bias(layer.conv1, group_norm(x, layer.norm1, silu=True))
    h = _without_bias(layer.conv2, group_norm(h, layer.norm2, silu=True, shift=layer.conv1.bias[None]))
    return add(_without_bias(layer.nin_shortcut, x), h, bias)


def _embed_time_once(unet: UNet) -> None:
    """`time_embed` gives what each ResBlock adds to its map, its first convolution's bias among it: [B, all C]."""
    blocks = [layer for layer in unet.modules() if isinstance(layer, ResBlock)]
    weight, parts = _joined([block.emb_layers[1] for block in blocks])
    biases = [block.emb_layers[1].bias.float() + block.in_layers[2].bias.float() for block in blocks]
    for block, part in zip(blocks, parts, strict=True):
        block.part = part
    unet.time_embed.forward = partial(_times, unet.time_embed.forward, weight, torch.cat(biases).detach().to(weight))


def _times(embed: nn.Module, weight: Tensor, bias: Tensor, t: Tensor) -> Tensor:
    return F.linear(F.silu(embed(t)), weight, bias)


def _project_text_once(unet: UNet) -> None:
    """The layers' context is then the keys and values of all of them, [B,T,all 2C], of which each reads its columns."""
    layers = [layer for layer in unet.modules() if isinstance(layer, CrossAttention) and layer.site.kind == "cross"]
    projections = [linear for layer in layers for linear in (layer.to_k, layer.to_v)]
    weight, parts = _joined(projections)
    for linear, part in zip(projections, parts, strict=True):
        linear.forward = partial(_columns, part)
    unet.forward = partial(_with_text, unet.forward, weight)


def _with_text(
    forward: nn.Module,
    weight: Tensor,
    x: Tensor,
    t: Tensor,
    context: Tensor,
    attn: Attn | None = None,
    residuals: list[Tensor] | None = None,
) -> Tensor:
    return forward(x, t, F.linear(context, weight), attn, residuals)


def _columns(part: slice, x: Tensor) -> Tensor:
    return x[..., part]


def _joined(linears: list[nn.Linear]) -> tuple[Tensor, list[slice]]:
    """Their weights as one matrix, of which they become parts, and which rows each has."""
    weight, parts, end = torch.cat([linear.weight.detach() for linear in linears]), [], 0
    for linear in linears:
        parts.append(slice(end, end := end + linear.out_features))
        linear.weight = nn.Parameter(weight[parts[-1]], requires_grad=False)
    return weight, parts


def _spatial_transformer(layer: SpatialTransformer, x: Tensor, context: Tensor, attn: Attn) -> Tensor:
    h = layer.norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # [B, N, C]
    h = F.linear(h, layer.proj_in.weight.flatten(1), layer.proj_in.bias)
    for block in layer.transformer_blocks:
        h = block(h, context, attn)
    h = F.linear(h, layer.proj_out.weight.flatten(1), layer.proj_out.bias)
    return x + h.transpose(1, 2).unflatten(2, x.shape[2:])  # [B, C, h, w]


def _transformer_block(layer: BasicTransformerBlock, x: Tensor, context: Tensor, attn: Attn) -> Tensor:
    hidden = layer.norm1(x)
    x, hidden = add_layer_norm(x, layer.attn1(hidden, hidden, attn), layer.norm2)
    x, hidden = add_layer_norm(x, layer.attn2(hidden, context, attn), layer.norm3)
    return x + layer.ff(hidden)


def _geglu(layer: GEGLU, x: Tensor) -> Tensor:
    return geglu(layer.proj(x))


def _unchanged(x: Tensor) -> Tensor:
    return x


def runs(device: torch.device) -> bool:
    """Whether each kernel compiles and runs on `device`, and gives what its twin gives."""
    draw = torch.Generator("cpu").manual_seed(0)
    shapes = (1, 64, 32, 64), (1, 4, 64), (1, 64)
    x, tokens, shift = (torch.randn(*shape, generator=draw).to(device) for shape in shapes)
    norms, norm = [nn.GroupNorm(groups, 64).to(device) for groups in (1, 16)], nn.LayerNorm(64).to(device)
    calls = [
        *(((group_norm, plain_group_norm), (x, each, True, shift)) for each in norms),
        ((add, plain_add), (x, x, shift[0])),
        ((geglu, plain_geglu), (tokens,)),
        ((add_layer_norm, plain_add_layer_norm), (tokens, tokens, norm)),
        ((gate, plain_gate), (Gate(tokens[0, 0], 0.9, 1.0, True), tokens[0])),
    ]
    try:
        with torch.no_grad():
            pairs = [[torch.stack(tuple(each(*given))) for each in both] for both, given in calls]
        return all(torch.allclose(ours, twin, atol=1e-4) for ours, twin in pairs)
    except Exception:  # no C compiler, a GPU that this Triton does not know ...
        return False
