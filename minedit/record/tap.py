"""What a run tells of itself, handed to those who listen: recorders, patches. One Chain holds for a model in a thread.

In: the calls of a Tap, and hooks on the modules whose values somebody wants, which ask for the Chain of the thread that
they run in. Rows of the run are named: the pictures' names where there is one row for each, "source.uncond" and so on
in the UNet. A method may leave rows out, or compute one for two; `Attn.rows` says where they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from minedit.attention.rules import Attend, Attn, Rule, Site
from minedit.attention.sdpa import sdpa
from minedit.attention.tap import Begun, holding, root, tap_of
from minedit.record.maps import Maps, moved
from minedit.record.names import modules, split, tensor_in, tensor_out
from minedit.stack.model import Model
from minedit.stack.unet import CrossAttention

Places = Mapping[str, int]  # where a row that has a name stands in a batch


class Listener(Protocol):
    """`photo`, `foresee` and `begin` are as of a Tap."""

    names: frozenset[str]  # what it wants to see
    inside: bool  # whether any of them is of the UNet

    def asks(self, step: int | None) -> bool:
        """Whether it wants anything of this step."""

    def heads(self) -> list[int] | None:
        """The heads whose probabilities it wants, None: all."""

    def wants(self, row: str) -> bool: ...

    def take(self, name: str, x: Tensor, rows: Places, step: int | None, time: int | None) -> Tensor:
        """A value [B, ...] -> what is to go on in its place."""

    def take_row(self, name: str, x: Tensor, row: str, step: int, time: int) -> Tensor:
        """Probabilities [H, N, T] of one row."""


class Chain:
    """attention/tap.py's Tap, for listeners in the order in which they came."""

    def __init__(self, sd: Model, listeners: tuple[Listener, ...]) -> None:
        self.sd, self.listeners = sd, listeners
        self.begun: Begun | None = None
        self.index = self.time = None
        self.live: Places | None = None  # rows of the UNet's batch while it runs for the drawn pictures
        self.asking: tuple[Listener, ...] = ()  # those who want something of this step
        self.texts = 0  # prompts encoded since the run began

    def photo(self, sides: tuple[int, int]) -> None:
        for each in self.listeners:
            each.photo(sides)

    def foresee(self, begun: Begun) -> None:
        for each in self.listeners:
            each.foresee(begun)

    def begin(self, begun: Begun) -> None:
        self.begun, self.index, self.time, self.texts = begun, None, None, 0
        for each in self.listeners:
            each.begin(begun)

    def step(self, index: int, timestep: int) -> bool:
        self.index, self.time = index, timestep
        self.asking = tuple(each for each in self.listeners if each.asks(index))
        return any(each.inside for each in self.asking)

    def wants(self, name: str, step: int) -> bool:
        return any(name in each.names and each.asks(step) for each in self.listeners)

    def value(self, name: str, x: Tensor) -> Tensor:
        both = len(x) == 2 * len(self.begun.rows)
        return self.told(name, x, self.unet_rows(Attn()) if both else _numbered(self.begun.rows))

    def told(self, name: str, x: Tensor, rows: Places, timed: bool = True) -> Tensor:
        step = self.index if timed else None
        for each in self.listeners:
            if name in each.names and (step is None or each in self.asking):
                x = each.take(name, x, rows, step, self.time if timed else None)
        return x

    def unet_rows(self, attn: Attn) -> Places:
        names = [f"{row}.{half}" for half in ("uncond", "cond") for row in self.begun.rows]
        if attn.rows is None:
            return _numbered(names)
        return {names[row]: at for row, at in attn.rows.items() if row < len(names)}

    def attend(self, site: Site, attn: Attn) -> Attend:
        inner, rows = attn.attend or sdpa, self.unet_rows(attn)

        def tapped(
            q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = False
        ) -> Tensor | tuple[Tensor, Tensor]:
            q, k, v = (self.told(f"{site.name}.{name}", x, rows) for name, x in zip("qkv", (q, k, v), strict=True))
            out, seen = inner(q, k, v, rule, columns=True) if columns else (inner(q, k, v, rule), None)
            own, used = self._maps(site.name, q, k, rule, rows)
            if own or used:
                out = moved(Maps(q, k, rule), v, out, own, used)
                if seen is not None and own:
                    seen = torch.stack([own[at].mean(0) if at in own else seen[at] for at in range(len(seen))])
            out = self.told(f"{site.name}.heads", out, rows)
            return (out, seen) if columns else out

        return tapped

    def _maps(self, site: str, q: Tensor, k: Tensor, rule: Rule | None, rows: Places) -> tuple[dict, dict]:
        """(the own, the used probabilities [H, N, T] that somebody changed), by the row of the batch."""
        own, used = {}, {}
        for each in self.asking:
            wanted = [name for name in (f"{site}.columns", f"{site}.columns.edited") if name in each.names]
            if not wanted:
                continue
            heads = slice(None) if each.heads() is None else each.heads()
            maps = Maps(q, k, rule, each.heads())
            for name in wanted:
                edited = name.endswith(".edited")
                maps.held.update({at: x[heads] for at, x in own.items()})
                for row, at in rows.items():
                    if each.wants(row):
                        before = used[at][heads] if edited and at in used else (maps.used if edited else maps.own)(at)
                        after = each.take_row(name, before, row, self.index, self.time)
                        if after is not before:
                            (used if edited else own)[at] = after
        return own, used


def _numbered(names: tuple[str, ...] | list[str]) -> Places:
    return {name: at for at, name in enumerate(names)}


@contextmanager
def listening(sd: Model, listener: Listener) -> Iterator[None]:
    """Have it hear what runs of this model tell in this thread, while it lasts."""
    before = tap_of(sd.unet)
    chain = Chain(sd, (*(before.listeners if before else ()), listener))
    unet, hooks = root(sd.unet), []
    wanted = {split(name)[0] for name in listener.names} - {""}
    try:
        hooks += _on_unet(unet, listener)
        for part, kind in ((unet, "unet"), (sd.vae, "vae"), (sd.text, "text")):
            for name, module in modules(part):
                if name in wanted:
                    hooks += _on(module, name, kind, sd.unet, listener)
        if any(name.startswith("text_model.") for name in wanted):
            hooks.append(sd.text.register_forward_hook(_counting(sd.unet, listener)))
        with holding(sd.unet, chain):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _found(unet: nn.Module, listener: Listener) -> Chain | None:
    """The Chain of this thread, if the listener is in it."""
    chain = tap_of(unet)
    return chain if chain is not None and listener in chain.listeners else None


def _on_unet(unet: nn.Module, listener: Listener) -> list:
    """What says when the UNet runs for the drawn pictures, and takes what it gives."""

    def before(_: nn.Module, args: tuple) -> None:
        if chain := _found(unet, listener):
            attn = args[3] if len(args) > 3 else None
            chain.live = chain.unet_rows(attn) if attn is not None and attn.tap is chain else None

    def after(_: nn.Module, args: tuple, out: Tensor) -> Tensor | None:
        chain = _found(unet, listener)
        if chain is None or chain.live is None:
            return None
        if listener is chain.listeners[-1]:  # the last of the hooks
            rows, chain.live = chain.live, None
            for half in ("uncond", "cond"):
                some = {name.removesuffix(f".{half}"): at for name, at in rows.items() if name.endswith(f".{half}")}
                out = chain.told(f"eps.{half}", out, some)
        return out

    return [unet.register_forward_pre_hook(before), unet.register_forward_hook(after)]


def _on(module: nn.Module, name: str, kind: str, unet: nn.Module, listener: Listener) -> list:
    """Hooks that hand a module's input and output to the listener, those that it wants. They are closures: a module
    that is copied copies its hooks, and what they hold stays what it is."""
    suffixes = [suffix for suffix in ("in", "hidden", "out") if f"{name}.{suffix}" in listener.names]

    def rows(x: Tensor) -> tuple[Places | None, Chain | None]:
        chain = _found(unet, listener)
        if chain is None:
            return None, None
        if kind == "unet":
            return (chain.live if listener in chain.asking else None), chain
        if kind == "vae" and name.startswith(("encoder", "quant_conv")):
            return {"photo": 0}, chain
        if chain.begun is None:
            return None, None
        names = chain.begun.rows
        if kind == "vae":
            return _numbered(names if len(x) == len(names) else ("source", *names)), chain
        texts = ("negative", *names)
        return ({texts[chain.texts]: 0} if chain.texts < len(texts) else None), chain

    def take(suffix: str, x: Tensor) -> Tensor:
        if suffix not in suffixes:
            return x
        places, chain = rows(x)
        if not places:
            return x
        timed = kind == "unet"
        return listener.take(f"{name}.{suffix}", x, places, chain.index if timed else None, chain.time)

    def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        x = tensor_in(args, kwargs)
        if x is None:
            return None
        changed = take("hidden", take("in", x))
        if changed is x:
            return None
        if not args:
            return args, {**kwargs, "hidden_states": changed}
        both = isinstance(module, CrossAttention) and args[1] is x  # self-attention: keys and values are its own
        return (changed, changed, *args[2:]) if both else (changed, *args[1:]), kwargs

    def after(_: nn.Module, args: tuple, out: object) -> object:
        x = tensor_out(out)
        changed = x if x is None else take("out", x)
        if changed is x:
            return None
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    first = [module.register_forward_pre_hook(before, with_kwargs=True)] if {"in", "hidden"} & set(suffixes) else []
    return [*first, module.register_forward_hook(after)] if "out" in suffixes else first


def _counting(unet: nn.Module, listener: Listener) -> Callable[..., None]:
    def count(*_: object) -> None:
        if (chain := _found(unet, listener)) and listener is chain.listeners[-1]:
            chain.texts += 1

    return count
