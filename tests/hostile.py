"""Files of weights that are hostile or broken, built byte by byte. test_hostile_files.py reads them.

An expression is the opcodes that push one value. The numbers are those of the pickle module's documentation.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable

from minedit.config import LIMIT

UNET = "model.diffusion_model."
FLOATS = struct.pack("<4f", 1, 2, 3, 4)

# --- expressions -----------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def name(dotted: str) -> bytes:
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + group(*arguments) + b"R"


def record(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def numbers(*values: int) -> bytes:
    return group(*map(number, values))


FLOAT, KEY, FOUR, TWO_BY_TWO, DENSE = name("torch.FloatStorage"), text("0"), number(4), numbers(2, 2), numbers(2, 1)


def storage(kind: bytes = FLOAT, key: bytes = KEY, size: bytes = FOUR, *more: bytes) -> bytes:
    return group(text("storage"), kind, key, text("cpu"), size, *more) + b"Q"


STORAGE = storage()


def tensor(held: bytes = STORAGE, offset: int = 0, shape: bytes = TWO_BY_TWO, stride: bytes = DENSE) -> bytes:
    flags = b"\x89" + call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", held, number(offset), shape, stride, flags)


# --- files -----------------------------------------------------------------------------------------------------------


def pickled(*body: bytes) -> bytes:
    return b"\x80\x02" + b"".join(body) + b"."


def one(value: bytes) -> bytes:
    """The pickle of {"a": value}."""
    return pickled(record((text("a"), value)))


def archive(
    data: bytes | None, more: dict[str, bytes] | None = None, compress: str = "", root: str = "archive"
) -> bytes:
    """A zip as torch.save writes it; `compress` names the file in it that is deflated."""
    files = {"version": b"3\n", "byteorder": b"little", "data/0": FLOATS}
    files |= {} if data is None else {"data.pkl": data}
    files = {f"{root}/{key}": value for key, value in files.items()} | (more or {})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for key, value in files.items():
            file.writestr(
                key, value, zipfile.ZIP_DEFLATED if compress and key.endswith(compress) else zipfile.ZIP_STORED
            )
    return out.getvalue()


def legacy(data: bytes, size: int = 4, numbers: bytes = FLOATS, keys: object = ("0",)) -> bytes:
    """As torch 1.5 wrote it."""
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, about))
    return (
        head
        + data
        + pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, 2)
        + struct.pack("<q", size)
        + numbers
    )


def safetensors(header: object, data: bytes = FLOATS, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def patched(file: bytes, entry: str, field: int, value: int) -> bytes:
    """A zip with another 4-byte number at `field` of an entry in its directory."""
    at = file.rindex(b"PK\x01\x02", 0, file.rindex(entry.encode())) + field
    return file[:at] + struct.pack("<I", value) + file[at + 4 :]


COMPRESSED, SIZE, OFFSET, FLAGS = 20, 24, 42, 8  # fields of a zip's directory

# --- what would run code: it makes the folder `canary` ---------------------------------------------------------------


def payloads(canary: str) -> dict[str, bytes]:
    code, path = f"__import__('os').mkdir({canary!r})", text(canary)
    module = call("builtins.__import__", text("os"))
    inner = pickled(call("posix.mkdir", path)).decode("latin1")
    return {
        "mkdir": call("posix.mkdir", path),
        "os.mkdir": call("os.mkdir", path),
        "os.system": call("os.system", text(f"mkdir '{canary}'")),
        "subprocess": call("subprocess.check_call", b"](" + text("mkdir") + path + b"e"),
        "eval": call("builtins.eval", text(code)),
        "exec": call("builtins.exec", text(code)),
        "Python 2's eval": call("__builtin__.eval", text(code)),
        "through getattr": call("builtins.getattr", module, text("mkdir")) + group(path) + b"R",
        "through methodcaller": call("operator.methodcaller", text("mkdir"), path) + group(module) + b"R",
        "through map": call("builtins.list", call("builtins.map", name("posix.mkdir"), group(path))),
        "INST": b"(" + path + b"iposix\nmkdir\n",
        "OBJ": b"(" + name("posix.mkdir") + path + b"o",
        "BUILD": name("functools.partial")
        + group(name("posix.mkdir"))
        + b"R"
        + group(name("posix.mkdir"), group(path), b"}", b"N")
        + b"b"
        + b")R",
        "STACK_GLOBAL": b"\x8c\x05posix\x8c\x05mkdir\x93" + group(path) + b"R",
        "a pickle in a pickle": call("_pickle.loads", call("_codecs.encode", text(inner), text("latin1"))),
        "timeit": call("timeit.timeit", text(code), text("pass"), name("timeit.default_timer"), number(1)),
        "runpy": call("runpy._run_code", text(code), b"}"),
    }


# Where a payload can hide: an expression -> a pickle.
PLACES: dict[str, Callable[[bytes], bytes]] = {
    "as a value": one,
    "as a name": lambda payload: pickled(record((payload, tensor()))),
    "as everything": pickled,
    "in a list": lambda payload: one(b"](" + payload + b"e"),
    "in Lightning's callbacks": lambda payload: pickled(
        record((text("state_dict"), record((text("a"), tensor()))), (text("callbacks"), record((text("b"), payload))))
    ),
    "as a storage": lambda payload: one(tensor(payload + b"Q")),
    "in a storage's key": lambda payload: one(tensor(storage(key=payload))),
    "as a tensor's shape": lambda payload: one(tensor(shape=payload)),
    "as attributes": lambda payload: pickled(record((text("a"), tensor())), payload, b"b"),
    "thrown away": lambda payload: pickled(payload, b"0", record((text("a"), tensor()))),
    "in a call of numpy's": lambda payload: one(call("numpy.dtype", payload)),
}

# --- what is broken: the file, and what is said of it ----------------------------------------------------------------

DAMAGED, OTHER = "damaged or cut short", "other things than named tensors"


def pickles() -> dict[str, tuple[bytes, str]]:
    """Pickles in an archive that is whole."""
    twice = b"q\x00h\x00\x86"  # x -> (x, x)
    laughs = b"](" * 60 + b"]" + b"q\x00h\x00e" * 60  # x -> [x, x]
    good = tensor()
    collide = [number((2**61 - 1) * k) for k in range(1, 50)]
    return {
        "no pickle": (b"", DAMAGED),
        "no end": (pickled(record((text("a"), good)))[:-1], DAMAGED),
        "nothing": (b"\x80\x02.", DAMAGED),
        "any bytes": (b"\x80\x02" + bytes(range(128, 256)), ""),
        "no opcode": (b"\x80\x02\xff.", DAMAGED),
        "protocol 4": (pickle.dumps({"a": 1}, 4), OTHER),  # which is read as any other
        "protocol 0": (pickle.dumps({"a": 1}, 0), "in its pickle"),
        "text longer than the file": (b"\x80\x02X\xff\xff\xff\xffabc", DAMAGED),
        "text of 4 exabytes": (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc.", DAMAGED),
        "an integer of 2 GiB": (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"1.", DAMAGED),
        "an integer of minus 1 byte": (b"\x80\x02\x8b" + struct.pack("<i", -1) + b".", DAMAGED),
        "a memo never written": (one(b"h\x05"), DAMAGED),
        "an extension": (one(b"\x82\x01"), "EXT1 in its pickle"),
        "half a pair": (pickled(b"}(" + text("a") + b"u"), DAMAGED),
        "no mark": (pickled(text("a"), b"t"), DAMAGED),
        "a billion laughs": (one(laughs), OTHER),
        "laughs that are called": (one(laughs + b")R"), "calls a list"),
        "a name that takes forever to hash": (pickled(record((b")" + twice * 60, good))), "a tuple for a name"),
        "a name as deep as the stack": (pickled(record((b")" + b"\x85" * 100_000, good))), "a tuple for a name"),
        "numbers that hash alike": (pickled(record(*((key, b"N") for key in collide))), "a int for a name"),
        "deep lists": (one(b"]" * 50_000 + b"a" * 49_999), OTHER),
        "a dict in itself": (pickled(b"}q\x00", text("a"), b"h\x00s"), OTHER),
        "a name that is no text": (pickled(record((number(1), good))), OTHER),
        "a storage as a dict": (one(storage() + text("b") + number(1) + b"s"), "as if it were a dict"),
        "a tensor as a dict": (one(good + text("b") + number(1) + b"s"), "as if it were a dict"),
        "a list as a dict": (one(b"](" + text("b") + number(1) + b"u"), "as if it were a dict"),
        "a tensor as a list": (one(good + number(1) + b"a"), "as if it were a list"),
        "a number that is called": (one(number(1) + b")R"), "calls a int"),
        "a tensor that is called": (one(good + b")R"), "calls a View"),
        "arguments that are none": (
            one(name("collections.OrderedDict") + number(1) + b"R"),
            "otherwise than torch.save",
        ),
        "a tensor of no storage": (one(tensor(number(1))), "otherwise than torch.save"),
        "a tensor of nothing": (one(call("torch._utils._rebuild_tensor_v2")), "otherwise than torch.save"),
        "a dict of something": (one(call("collections.OrderedDict", b"]")), "otherwise than torch.save"),
        "8 GiB of zeros": (one(call("builtins.bytearray", number(2**33))), "asks for builtins.bytearray"),
        "a tensor of 32 GiB": (one(call("torch.FloatTensor", number(2**33))), "asks for torch.FloatTensor"),
        "a storage of 8 GiB": (one(call("torch.storage.UntypedStorage", number(2**33))), "asks for torch.storage"),
        "a new Popen": (one(name("subprocess.Popen") + group(text("true")) + b"\x81"), "asks for subprocess.Popen"),
        "a name of escape codes": (one(name("a.\x1b[2J\x07")), "asks for"),
        "an identity as text": (one(b"P0\n"), "PERSID in its pickle"),
        "an identity that is a number": (one(number(1) + b"Q"), "something else than storages"),
        "an identity of a module": (one(group(text("module"), name("torch.FloatStorage")) + b"Q"), "something else"),
        "a storage that is no storage": (one(storage(kind=name("collections.OrderedDict"))), "something else"),
        "a storage of fewer than none": (one(tensor(storage(size=number(-4)))), "something else"),
        "a storage that views another": (one(tensor(storage(FLOAT, KEY, FOUR, TWO_BY_TWO))), "something else"),
        "a storage larger than its record": (one(tensor(storage(size=number(5)))), DAMAGED),
        "a storage smaller than its record": (one(tensor(storage(size=number(3)), 0, numbers(1), numbers(1))), DAMAGED),
        "a storage of 16 exabytes": (one(tensor(storage(size=number(2**62)))), DAMAGED),
        "a storage of other numbers": (one(tensor(storage(kind=name("torch.DoubleStorage")))), DAMAGED),
        "a storage that is not there": (one(tensor(storage(key=text("1")))), DAMAGED),
        "a storage outside": (one(tensor(storage(key=text("../../../../../etc/passwd")))), DAMAGED),
        "a shape beyond the storage": (one(tensor(shape=numbers(3, 2))), DAMAGED),
        "a stride beyond the storage": (one(tensor(stride=numbers(3, 1))), DAMAGED),
        "a stride backwards": (one(tensor(stride=numbers(-2, 1))), DAMAGED),
        "an offset beyond the storage": (one(tensor(offset=1)), DAMAGED),
        "an offset before the storage": (one(tensor(offset=-1)), DAMAGED),
        "a shape of text": (one(tensor(shape=group(text("2"), text("2")))), DAMAGED),
        "a shape of less than nothing": (one(tensor(shape=numbers(-2, 2))), DAMAGED),
        "a shape without strides": (one(tensor(stride=numbers(1))), DAMAGED),
        "one number without end": (
            pickled(record((text(UNET + "out.0.bias"), tensor(shape=numbers(2**50), stride=numbers(0))))),
            "looks like an LDM file but is not",
        ),
        "names that move the cursor": (pickled(record((text("a\n\x1b[2J\r"), good))), "1 tensor ('a\\n\\x1b[2J\\r')"),
        "half a letter": (pickled(record((text("\ud800"), good))), "unknown here"),
        "things beside": (
            pickled(record((text("state_dict"), b"}"), (text("\x1b[31m"), b"N"))),
            "beside its state_dict",
        ),
    }


def archives() -> dict[str, tuple[bytes, str]]:
    good = one(tensor())
    whole = archive(good)
    two = archive(good, {"other/data.pkl": good})
    twice = io.BytesIO(whole)
    with zipfile.ZipFile(twice, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile knows better
        file.writestr(zipfile.ZipInfo("archive/data.pkl"), one(call("posix.mkdir", text("a"))))
    long = pickled(record((text("a"), tensor())), text(" " * LIMIT), b"b")
    many = b"PK\x03\x04" + bytes(LIMIT + 1) + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 9, 9, LIMIT + 1, 4, 0)
    beyond = archive(one(tensor(storage(size=number(2**20)))))
    for field in (SIZE, COMPRESSED):
        beyond = patched(beyond, "archive/data/0", field, 2**22)
    return {
        "a pickle that unpacks to much": (archive(pickled(text(" " * 2**24)), compress="data.pkl"), "compressed"),
        "a storage that is packed": (archive(good, compress="data/0"), "compressed"),
        "a pickle that is long": (archive(long), f"expected {LIMIT} at most"),
        "a directory that is long": (many, DAMAGED),
        "a way out": (archive(good, {"archive/../../evil": b""}), "archive/../../evil in it"),
        "an absolute way out": (archive(good, {"/etc/evil": b""}), "/etc/evil in it"),
        "a file beside": (archive(good, {"evil": b""}), "evil in it"),
        "two pickles": (two, "2 files data.pkl"),
        "one pickle twice": (twice.getvalue(), "a name twice in it"),
        "no pickle in it": (archive(None), "0 files data.pkl"),
        "a TorchScript program": (archive(good, {"archive/constants.pkl": good}), "TorchScript"),
        "numbers backwards": (archive(good, {"archive/byteorder": b"big"}), "big-endian"),
        "encrypted": (patched(whole, "archive/data.pkl", FLAGS, 1), "encrypted"),
        "a storage beyond the file": (beyond, DAMAGED),
        "a storage that is elsewhere": (patched(whole, "archive/data/0", OFFSET, 5), DAMAGED),
        "a pickle that is elsewhere": (patched(whole, "archive/data.pkl", OFFSET, 5), DAMAGED),
        "a directory cut short": (whole[:-30] + whole[-22:], DAMAGED),
        "no directory": (whole[:-22], DAMAGED),
        **{f"cut at {part}/16": (whole[: len(whole) * part // 16], "") for part in range(1, 16)},
    }


def legacies() -> dict[str, tuple[bytes, str]]:
    held = storage(FLOAT, KEY, FOUR, b"N")
    good = one(tensor(held))
    view = storage(FLOAT, KEY, FOUR, group(text("1"), number(0), number(4)))
    vast = one(tensor(storage(FLOAT, KEY, number(2**40), b"N")))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        data = pickled(call("posix.mkdir", text("a")))
        about = tarfile.TarInfo("pickle")
        about.size = len(data)
        file.addfile(about, io.BytesIO(data))
    return {
        "a size that differs": (legacy(good, size=5), DAMAGED),
        "a size of half of memory": (legacy(vast, size=2**40), DAMAGED),
        "too few numbers": (legacy(good, numbers=FLOATS[:-1]), DAMAGED),
        "too many numbers": (legacy(good, numbers=FLOATS + b"0"), DAMAGED),
        "a view of another": (legacy(one(tensor(view))), "something else"),
        "keys that are none": (legacy(good, keys=7), DAMAGED),
        "keys unheard of": (legacy(good, keys=("1",)), DAMAGED),
        "one storage as two": (
            legacy(pickled(record((text("a"), tensor(held)), (text("b"), tensor(held.replace(b"Float", b"Int")))))),
            DAMAGED,
        ),
        "another pickle": (pickle.dumps({"a": 1}, 2), DAMAGED),
        "three other pickles": (pickle.dumps(1, 2) * 5, "not one of torch.save"),
        "a tar archive": (tar.getvalue(), "tar archive"),
    }


def headers() -> dict[str, tuple[bytes, str]]:
    """Safetensors files."""

    def of(**changes: object) -> dict:
        return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}

    two = of() | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}
    gap = of(shape=[1], data_offsets=[0, 4]) | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}
    first, second = (json.dumps(of(dtype=kind))[1:-1] for kind in ("F32", "I32"))
    pair = f"{{{first}, {second}}}".encode()
    return {
        "a header of 16 exabytes": (safetensors(of(), size=2**64 - 1), DAMAGED),
        "a header longer than the file": (safetensors(of(), size=1000), DAMAGED),
        "a header cut short": (safetensors(of(), size=20), DAMAGED),
        "a header that is long": (safetensors(b"{" + b" " * LIMIT + b"}"), f"{LIMIT + 2} bytes"),
        "a header that is no JSON": (safetensors(b"{a}"), DAMAGED),
        "a header that is no text": (safetensors(b"{\xff\xfe}"), DAMAGED),
        "a header as deep as the stack": (safetensors(b'{"a":' * 100_000), DAMAGED),
        "tensors that overlap": (safetensors(two), DAMAGED),
        "a gap": (safetensors(gap), DAMAGED),
        "a tensor beyond the file": (safetensors(of(shape=[4, 2], data_offsets=[0, 32])), DAMAGED),
        "bytes behind": (safetensors(of(), FLOATS + b"0"), DAMAGED),
        "an end before its begin": (safetensors(of(data_offsets=[16, 0])), DAMAGED),
        "a begin before the file": (safetensors(of(data_offsets=[-16, 0])), DAMAGED),
        "a shape of another size": (safetensors(of(shape=[2, 3])), DAMAGED),
        "a shape of less than nothing": (safetensors(of(shape=[-2, -2])), DAMAGED),
        "a shape of 16 exabytes": (safetensors(of(shape=[2**63, 2**63])), DAMAGED),
        "an offset in halves": (safetensors(of(data_offsets=[0.5, 16.5])), DAMAGED),
        "an unknown type": (safetensors(of(dtype="F13")), DAMAGED),
        "a type not taken": (safetensors(of(dtype="U32")), "numbers of the type U32 in a"),
        "another type": (safetensors(of(dtype="F16")), DAMAGED),
        "one name twice": (safetensors(pair), DAMAGED),
        "metadata that are no text": (safetensors(of() | {"__metadata__": {"b": 1}}), DAMAGED),
        "a list": (safetensors(b"[{}]"), "neither safetensors"),
        "an entry that is none": (safetensors({"a": 7}, b""), DAMAGED),
    }
