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

from minedit.config import Config, MineditError, shown
from minedit.files.formats import named, read_other
from minedit.files.layouts import LAYOUTS, first
from minedit.files.stored import Files, Refused, Stored, fingerprint
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
    try:
        with Files() as files:
            return _varied(model, tensors, metadata, files)
    except Refused as fault:
        raise MineditError(f"{path} {fault}; {EXPECTED}") from fault


def _varied(model: Model, tensors: Mapping[str, Stored], metadata: Mapping[str, str], files: Files) -> Model:
    if CONFIG_KEY not in metadata:
        raise Refused("has no config in its metadata")
    if metadata.get(WEIGHTS_KEY, model.weights) != model.weights:
        raise Refused(f"changes the weights {shown(metadata[WEIGHTS_KEY], 40)}, found {model.weights}")
    try:
        config = Config.from_json(metadata[CONFIG_KEY])
    except MineditError as error:
        raise Refused(f"has a config that is none ({error})") from error
    with torch.device("meta"):
        unet = UNet(config.unet)
    shared = {id(tensor): tensor for tensor in chain(model.text.parameters(), model.text.buffers())}
    text = copy.deepcopy(model.text, shared)
    left = dict(tensors)
    for part, module, old in (("unet", unet, model.unet), ("text", text, model.text)):
        prefix = LAYOUTS[0].prefixes[part]
        state = {
            name: _changed(left, files, prefix + public(old, name), weight) for name, weight in old.state_dict().items()
        }
        wanted, found = ({name: tensor.shape for name, tensor in each.items()} for each in (module.state_dict(), state))
        if unlike := [f"{part}.{name}" for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]:
            raise Refused(f"is no variant of {model.config.name}: the shapes differ of {first(sorted(unlike))}")
        module.load_state_dict(state, strict=True, assign=True)
        module.eval().requires_grad_(False)
    if left:
        raise Refused(f"has {first(left)}, which {model.config.name} lacks")
    tokenizer = copy.copy(model.tokenizer)
    if tokenizer.words is not None:
        tokenizer.words |= frozenset(metadata.get(WORDS_KEY, "").split())
    weights = fingerprint({"variant": tensors}, files)
    return replace(model, unet=unet, text=text, config=config, tokenizer=tokenizer, weights=weights)


def _changed(left: dict[str, Stored], files: Files, name: str, weight: Tensor) -> Tensor:
    """A tensor of the variant; what the file has for it is taken out of `left`."""
    if name in left:
        return left.pop(name).read(weight.dtype, files).to(weight.device)
    if f"{name}.up" not in left or f"{name}.down" not in left:
        return weight
    stored = [left.pop(f"{name}.{half}") for half in ("up", "down")]
    (rows, columns), (up, down) = weight.flatten(1).shape, (each.shape for each in stored)
    if len(up) != 2 or (up, down) != ((rows, up[1]), (up[1], columns)):
        raise Refused(f"has {name} as {list(up)} x {list(down)}, which do not fit {list(weight.shape)}")
    up, down = (each.read(torch.float32, files).to(weight.device) for each in stored)
    return (weight.float() + (up @ down).view_as(weight)).to(weight.dtype)


def changes(model: nn.Module, part: str, learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a module of a model learned, `lowrank.learnt`, by the names that `vary` reads."""
    prefix = LAYOUTS[0].prefixes[part]
    return {prefix + public(model, name): tensor for name, tensor in learnt.items()}
