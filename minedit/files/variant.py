"""A model, and a file of what a variant of it changes -> the variant.

The file names tensors as a checkpoint does: W itself takes the place of the model's, `W.up` and `W.down` are added:

    W' = W + up · down          in float32

Its metadata holds the variant's config, the hash of the weights it changes, and the words that it learned besides.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from minedit.config import Config, MineditError
from minedit.files.formats import named, read_other
from minedit.files.layouts import LAYOUTS, first
from minedit.files.stored import Stored
from minedit.files.written import CONFIG_KEY, public
from minedit.stack.model import Model
from minedit.stack.unet import UNet

VARIANTS = {"instruct-pix2pix": "picturebook-instruct.safetensors"}  # of the embedded model
WORDS_KEY, WEIGHTS_KEY = "minedit.words", "minedit.weights"
EXPECTED = "expected what `minedit train instruct` writes"


def vary(model: Model, path: str | os.PathLike) -> Model:
    """The variant of `model` in file `path`, as a new Model; what it does not change, the two share.

    Raises MineditError for a file that is none, or is a variant of another model.
    """
    path = named(path, EXPECTED)
    tensors, metadata = read_other(path, EXPECTED)
    if CONFIG_KEY not in metadata:
        raise MineditError(f"{path} has no config in its metadata; {EXPECTED}")
    if metadata.get(WEIGHTS_KEY, model.weights) != model.weights:
        raise MineditError(f"{path} changes the weights {metadata[WEIGHTS_KEY]}, found {model.weights}; {EXPECTED}")
    config = Config.from_json(metadata[CONFIG_KEY])
    with torch.device("meta"):
        unet = UNet(config.unet)
    shared = {id(tensor): tensor for tensor in chain(model.text.parameters(), model.text.buffers())}
    text = copy.deepcopy(model.text, shared)
    left = dict(tensors)
    for part, module, old in (("unet", unet, model.unet), ("text", text, model.text)):
        prefix = LAYOUTS[0].prefixes[part]
        state = {name: _varied(left, prefix + public(old, name), w) for name, w in old.state_dict().items()}
        unlike = [name for name, w in module.state_dict().items() if w.shape != state[name].shape]
        if unlike:
            raise MineditError(f"{path} is not {config.name}: it differs in the shape of {first(unlike)}; {EXPECTED}")
        module.load_state_dict(state, strict=True, assign=True)
        module.eval().requires_grad_(False)
    if left:
        raise MineditError(f"{path} has {first(left)}, which {model.config.name} lacks; {EXPECTED}")
    tokenizer = copy.copy(model.tokenizer)
    if tokenizer.words is not None:
        tokenizer.words |= frozenset(metadata.get(WORDS_KEY, "").split())
    return replace(model, unet=unet, text=text, config=config, tokenizer=tokenizer)


def _varied(left: dict[str, Stored], name: str, weight: Tensor) -> Tensor:
    """A tensor of the variant; what the file has for it is taken out of `left`."""
    if name in left:
        return left.pop(name).read(weight.dtype).to(weight.device)
    if f"{name}.up" not in left or f"{name}.down" not in left:
        return weight
    up, down = (left.pop(f"{name}.{half}").read(torch.float32).to(weight.device) for half in ("up", "down"))
    return (weight.float() + (up @ down).view_as(weight)).to(weight.dtype)


def changes(model: nn.Module, part: str, learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a module of a model learned, `lowrank.learnt`, by the names that `vary` reads."""
    prefix = LAYOUTS[0].prefixes[part]
    return {prefix + public(model, name): tensor for name, tensor in learnt.items()}
