"""A pickle by torch.save -> what it describes, without running it: no name in it is looked up, nothing is called.

This is stricter than torch.load(weights_only=True), which calls what its own list allows, allocates what the file asks
for, and before torch 2.10 could be made to write out of bounds (CVE-2026-24747). Understood are named tensors, in the
opcodes that torch.save writes in protocols 2 to 5, and what trainers keep beside them. Only torchfile.py uses this.
"""

from dataclasses import dataclass
from pickletools import genops
from typing import BinaryIO

import torch

from minedit.config import shown
from minedit.files.stored import Refused


@dataclass(frozen=True)
class Storage:
    """A row of numbers, under its name in the file."""

    dtype: torch.dtype
    key: str
    size: int  # in elements


@dataclass(frozen=True)
class View:
    """A tensor: where it lies in a storage, in elements. Nothing of it is checked yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """A function or class that the pickle names, as "module.name"."""

    text: str


def described(stream: BinaryIO) -> tuple[object, list[Storage]]:
    """The object of the pickle that begins here, and its storages; the stream then stands behind it.

    Dicts, lists, tuples, text and numbers are themselves, tensors are Views, and what INERT names became None. Raises
    Refused, and ValueError, LookupError or TypeError where the pickle is damaged. Costs about 100 times its size.
    """
    stack: list = []
    outer: list[list] = []  # the stacks below each mark
    memo: dict[int, object] = {}
    storages: list[Storage] = []
    for opcode, value, _ in genops(stream):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case (
                "SHORT_BINUNICODE"
                | "BINUNICODE8"
                | "BINBYTES"
                | "SHORT_BINBYTES"
                | "BINUNICODE"
                | "BININT"
                | "BININT1"
                | "BININT2"
                | "LONG1"
                | "BINFLOAT"
            ):
                stack.append(value)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "MARK":
                outer.append(stack)
                stack = []
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[opcode.name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "TUPLE":
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case "APPEND" | "SETITEM":
                items = [stack.pop() for _ in range(1 if opcode.name == "APPEND" else 2)]
                _fill(stack[-1], items[::-1], list if opcode.name == "APPEND" else dict)
            case "APPENDS" | "SETITEMS":
                items, stack = stack, outer.pop()
                _fill(stack[-1], items, list if opcode.name == "APPENDS" else dict)
            case "GLOBAL":
                stack.append(_name(value))
            case "STACK_GLOBAL":
                parts = [stack.pop(), stack.pop()][::-1]
                if not all(isinstance(part, str) for part in parts):
                    raise Refused("asks for a name that is no text, and only tensors are loaded")
                stack.append(_name(" ".join(parts)))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments))
            case "BUILD":  # sets attributes, which nothing here has
                stack.pop()
            case "BINPERSID":
                storages.append(_storage(stack.pop()))
                stack.append(storages[-1])
            case "STOP":
                return stack.pop(), storages
            case other:
                raise Refused(f"has {other} in its pickle, which is not read here")
    raise ValueError("its pickle has no end")


def _fill(target: object, items: list, kind: type) -> None:
    if target is None:  # what is read past
        return
    if type(target) is not kind:
        raise Refused(f"changes a {type(target).__name__} as if it were a {kind.__name__}")
    if kind is list:
        target.extend(items)
        return
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Nested tuples and large integers can be chosen so that hashing them takes forever.
        if not (isinstance(key, str | Name) or (isinstance(key, int) and -(2**31) <= key < 2**31)):
            raise Refused(f"has a dict with a {type(key).__name__} for a name")
        target[key] = value


def _name(value: str) -> Name:
    name = Name(value.replace(" ", "."))
    if name.text not in MAKERS and name.text not in INERT and name.text not in STORAGES:
        raise Refused(f"asks for {shown(name.text)}, and only tensors are loaded")
    return name


def _made(function: object, arguments: object) -> object:
    """What a call of `function` stands for."""
    if not isinstance(function, Name):
        raise Refused(f"calls a {type(function).__name__}, and only tensors are loaded")
    if function.text in INERT:
        return None
    match MAKERS.get(function.text), arguments:
        case "dict", ():
            return {}
        case "parameter", (View() as view, *_):
            return view
        case "tensor", (Storage() as storage, offset, tuple(shape), tuple(stride), *_):
            return View(storage, offset, shape, stride)
    raise Refused(f"calls {function.text} otherwise than torch.save does")


def _storage(identity: object) -> Storage:
    """From its type, key, device and size; files from before torch 1.6 may also say that it views another: not here."""
    match identity:
        case ("storage", Name(text), str(key), str(), int(size), *more):
            if text in STORAGES and size >= 0 and more in ([], [None]):
                return Storage(STORAGES[text], key, size)
    raise Refused("refers to something else than storages of numbers")


# What may be called, and what it makes.
MAKERS = {
    "collections.OrderedDict": "dict",
    "torch._utils._rebuild_tensor_v2": "tensor",
    "torch._utils._rebuild_parameter": "parameter",
}

# Objects in the bookkeeping of trainers, which are read past: they become None.
INERT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "argparse.Namespace",
    "collections.defaultdict",
    "builtins.dict",
    "builtins.list",
    "typing.Any",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",  # of the bytes of numpy's scalars
)

STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
