"""What has a name, with its axes and shape: found by running the modules where tensors have shapes and no numbers.

A name is the checkpoint's name of a module, after its prefix, and a suffix: `.in` and `.out` of any module; of an
attention layer also `.hidden` (its `.in`, AdapEdit's E_[V]), `.q`, `.k`, `.v`, `.columns` (probabilities of its own
queries and keys), `.columns.edited` (those that the output is made of) and `.heads` (what each head hands on). Of the
run: x_t, eps, eps.uncond, eps.cond, x0, text. docs/tensors.md lists them.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from minedit.attention.rules import Attn
from minedit.config import Config, MineditError, shown
from minedit.files.written import public
from minedit.settings import several
from minedit.stack.model import Model
from minedit.stack.text import TextEncoder
from minedit.stack.unet import CrossAttention, SpatialTransformer, UNet
from minedit.stack.vae import VAE

Asked = str | Iterable[str] | Callable[[str], bool]
PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.")
MAPS = ("columns", "columns.edited")
OF_ATTENTION = ("q", "k", "v", *MAPS, "heads")
LATENTS = ("x_t", "eps", "eps.uncond", "eps.cond", "x0")


@dataclass(frozen=True)
class Entry:
    """What a name stands for, of one row."""

    part: str  # "run", "unet", "text", "encoder", "decoder"
    axes: tuple[str, ...]  # but for step and row
    shape: tuple[int, ...]
    map: tuple[int, int] | None = None  # height, width of the axis "pixel"
    inner: bool = False  # whether a model made for speed on a GPU has no such tensor
    wide: bool = False  # float32 whatever the model is


def split(name: str) -> tuple[str, str]:
    """A name -> its module's, and the suffix."""
    for suffix in ("columns.edited", *OF_ATTENTION, "hidden", "in", "out"):
        if name.endswith(f".{suffix}"):
            return name.removesuffix(f".{suffix}"), suffix
    return "", name


def modules(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose input and output have names, by the checkpoint's."""
    for name, module in part.named_modules():
        plain = not any(True for _ in module.children()) and not isinstance(module, nn.Identity)
        ours = type(module).__module__.startswith("minedit.stack") and name
        if isinstance(part, TextEncoder):
            plain, ours = isinstance(module, nn.Linear | nn.LayerNorm), type(module).__name__.endswith("EncoderLayer")
        if plain or ours:
            yield public(part, name), module


def tensor_in(args: tuple, kwargs: dict) -> Tensor | None:
    found = args[0] if args else kwargs.get("hidden_states")
    return found if isinstance(found, Tensor) and found.is_floating_point() else None


def tensor_out(out: object) -> Tensor | None:
    found = out[0] if isinstance(out, tuple) and out else out
    return found if isinstance(found, Tensor) else None


@lru_cache(maxsize=16)
def catalogue(config: Config, sides: tuple[int, int] | None = None) -> Mapping[str, Entry]:
    """Every name, in the order in which its value comes up. sides: height, width of the latents, None: as trained."""
    h, w = sides or (config.latent_size,) * 2
    unet, context = config.unet, (config.text.context_length, config.unet.context_dim)
    found = {"text": Entry("run", ("token", "channel"), context)}
    with torch.device("meta"), torch.no_grad():
        text, net, vae = TextEncoder(config.text), UNet(unet), VAE(config.vae)
        with _noted(text, "text", found):
            text(torch.zeros(1, config.text.context_length, dtype=torch.long))
        with _noted(vae, "encoder", found):
            vae.encode(torch.zeros(1, 3, h * config.vae.factor, w * config.vae.factor))
        latents = ("channel", "height", "width"), (config.vae.z_channels, h, w)
        found["x_t"] = Entry("run", *latents, wide=True)
        with _noted(net, "unet", found):
            time = torch.zeros(1, 2) if unet.guidance_dim else torch.zeros(1, dtype=torch.long)
            net(torch.zeros(1, unet.in_channels, h, w), time, torch.zeros(1, *context), Attn())
        found |= {name: Entry("run", *latents) for name in ("eps.uncond", "eps.cond")}
        found |= {name: Entry("run", *latents, wide=True) for name in ("eps", "x0")}
        with _noted(vae, "decoder", found):
            vae.decode(torch.zeros(1, *latents[1]))
    return found


@contextmanager
def _noted(part: nn.Module, kind: str, found: dict[str, Entry]) -> Iterator[None]:
    """Its modules' calls as entries, while it lasts."""
    now: list[tuple[int, int] | None] = [None]  # height, width of the map that the tokens are of

    def before(module: nn.Module, args: tuple) -> None:
        if isinstance(module, SpatialTransformer):
            now[0] = tuple(args[0].shape[2:])

    def after(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple, kwargs: dict, out: object) -> None:
            inner = not type(module).__module__.startswith("minedit.stack") or name.endswith((".net.0", "time_embed"))
            inner &= kind != "text"
            for suffix, x in (("in", tensor_in(args, kwargs)), ("out", tensor_out(out))):
                if x is not None:
                    found[f"{name}.{suffix}"] = _entry(name, kind, x, now[0], inner)
            if isinstance(module, CrossAttention):
                found[f"{name}.hidden"] = found[f"{name}.in"]
                found.update(_of_attention(module, *(x.shape[1] for x in args[:2]), now[0]))
                found[f"{name}.out"] = found.pop(f"{name}.out")  # it comes up last

        return note

    hooks = [module.register_forward_pre_hook(before) for module in part.modules()]
    hooks += [module.register_forward_hook(after(name), with_kwargs=True) for name, module in modules(part)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _entry(name: str, kind: str, x: Tensor, at: tuple[int, int] | None, inner: bool) -> Entry:
    shape = tuple(x.shape[1:])
    if len(shape) == 3:
        return Entry(kind, ("channel", "height", "width"), shape, inner=inner)
    if len(shape) == 1:
        return Entry(kind, ("channel",), shape, inner=inner)
    if kind == "text" or name.endswith(("attn2.to_k", "attn2.to_v")):
        return Entry(kind, ("token", "channel"), shape, inner=inner)
    return Entry(kind, ("pixel", "channel"), shape, at, inner)


def _of_attention(layer: CrossAttention, n: int, t: int, at: tuple[int, int] | None) -> dict[str, Entry]:
    """n: pixels, t: what they attend to."""
    site, key = layer.site, "token" if layer.site.kind == "cross" else "key"
    heads, width = site.heads, site.channels // site.heads
    found = {name: Entry("unet", ("head", key, "width"), (heads, t, width)) for name in ("k", "v")}
    found = {"q": Entry("unet", ("head", "pixel", "width"), (heads, n, width), at), **found}
    found |= {name: Entry("unet", ("head", "pixel", key), (heads, n, t), at, wide=True) for name in MAPS}
    found["heads"] = found["q"]
    return {f"{site.name}.{suffix}": entry for suffix, entry in found.items()}


def chosen(asked: Asked, names: Iterable[str], called: str = "names") -> list[str]:
    """The names asked for, in the order in which they come up. Raises MineditError where something asks for none."""
    names = list(names)
    if callable(asked):
        found = [name for name in names if asked(name)]
        if not found:
            raise MineditError(f"the function of names chose none of {len(names)}; see docs/tensors.md")
        return found
    wanted: set[str] = set()
    for each in several(called, asked, str, "a name, a glob such as '*.attn2*', several, or a function"):
        pattern = each
        for prefix in PREFIXES:
            pattern = pattern.removeprefix(prefix)
        matching = fnmatch.filter(names, pattern) if pattern not in names else [pattern]
        if not matching:
            raise MineditError(f"no tensor is named {shown(repr(each), 100)}; the nearest: {nearest(pattern, names)}")
        wanted.update(matching)
    if not wanted:
        raise MineditError("no name was given; expected some of docs/tensors.md, such as '*.attn2.columns'")
    return [name for name in names if name in wanted]


def inside(sd: Model, names: Iterable[str]) -> bool:
    """Whether any of them is of the UNet. Raises MineditError for one that a fused model has not."""
    known = catalogue(sd.config)
    if sd.fast and sd.device.type == "cuda" and not sd.unet.unfused:
        for name in sorted(name for name in names if known[name].inner):
            what = f"{name} is no tensor of a model made for speed on a GPU, whose layers are fused"
            raise MineditError(f"{what}; load it without fast, or choose what stands around it")
    return any(known[name].part == "unet" or name.startswith("eps.") for name in names)


def nearest(pattern: str, names: Iterable[str]) -> str:
    """The names that resemble a name, or the beginning or end of a glob, most."""
    first = not pattern.startswith("*")
    core = pattern.partition("*")[0] if first else pattern.rpartition("*")[2]
    core = core.strip(".") or pattern.strip("*.")
    count = core.count(".") + 1 if "*" in pattern else None

    def far(name: str) -> tuple[float, int]:
        parts = name.split(".")
        part = ".".join(parts if count is None else parts[:count] if first else parts[-count:])
        return -difflib.SequenceMatcher(None, core, part, autojunk=False).ratio(), len(name)

    return ", ".join(sorted(names, key=far)[:3])
