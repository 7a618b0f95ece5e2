"""Files of weights from somebody who means harm, and broken ones: nothing in them runs, each is one line, none takes
much memory. The files are built in hostile.py. Oracles: pickle itself, under which every payload does run, and
torch.load(weights_only=True), which reads what is harmless.
"""

from __future__ import annotations

import io
import pickle
import random
import resource
import struct
import sys
from contextlib import suppress
from pathlib import Path

import hostile
import pytest
import torch
from hostile import (
    PLACES,
    archive,
    legacy,
    name,
    number,
    numbers,
    one,
    payloads,
    pickled,
    record,
    storage,
    tensor,
    text,
)

from minedit.config import MineditError
from minedit.files.checkpoint import load
from minedit.files.formats import read
from minedit.files.stored import Files

BROKEN = {
    f"{kind}: {what}": (archive(data) if kind == "pickle" else data, says)
    for kind, files in (
        ("pickle", hostile.pickles()),
        ("archive", hostile.archives()),
        ("legacy", hostile.legacies()),
        ("safetensors", hostile.headers()),
    )
    for what, (data, says) in files.items()
}
PAYLOADS = [
    (payload, place) for payload in payloads("") for place in PLACES if "mkdir" == payload or place == "as a value"
]


def refused(path: Path) -> str:
    """What `load` says, in one line, having taken no memory to speak of."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MineditError) as error:
        load(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 2**27
    said = str(error.value)
    assert said.isprintable() and len(said) < 700 and said.startswith(str(path))
    return said


@pytest.mark.parametrize(("data", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_line(tmp_path, data, says):
    (tmp_path / "file").write_bytes(data)
    assert says in refused(tmp_path / "file")


class Plain(pickle.Unpickler):
    """pickle as it is, which runs what it finds."""

    def persistent_load(self, identity: object) -> torch.TypedStorage:
        return torch.zeros(4)._typed_storage()


@pytest.mark.parametrize(("payload", "place"), PAYLOADS)
@pytest.mark.parametrize("file", [archive, legacy, bytes], ids=["zip", "legacy", "bare"])
def test_nothing_runs(tmp_path, payload, place, file):
    canary, path = tmp_path / "canary", tmp_path / "file"
    data = PLACES[place](payloads(str(canary))[payload])
    path.write_bytes(file(data))
    said = refused(path)
    assert "only tensors are loaded" in said or "in its pickle" in said
    assert not canary.exists()
    if file is archive:  # the payload is alive, though some places are no pickle's
        with suppress(Exception):
            Plain(io.BytesIO(data)).load()
        assert canary.exists()


def test_a_payload_in_place_of_the_magic_number(tmp_path):
    canary = tmp_path / "canary"
    data = pickled(payloads(str(canary))["mkdir"])
    (tmp_path / "file").write_bytes(data + legacy(one(tensor())))
    assert "asks for posix.mkdir" in refused(tmp_path / "file")
    assert not canary.exists()


HARMLESS = {
    "a zip": archive(one(tensor())),
    "a zip of another root": archive(one(tensor()), root="some model"),
    "legacy": legacy(one(tensor(storage(hostile.FLOAT, hostile.KEY, hostile.FOUR, b"N")))),
    "transposed": archive(one(tensor(stride=numbers(1, 2)))),
    "the middle of a storage": archive(one(tensor(offset=1, shape=numbers(2), stride=numbers(1)))),
    "one number four times": archive(one(tensor(offset=3, shape=numbers(2, 2), stride=numbers(0, 0)))),
    "overlapping rows": archive(one(tensor(shape=numbers(3, 2), stride=numbers(1, 1)))),
    "no numbers": archive(one(tensor(shape=numbers(0, 5), stride=numbers(2**40, 1)))),
    "no axes": archive(one(tensor(offset=2, shape=numbers(), stride=numbers()))),
    "a memo at 4 billion": archive(one(tensor() + b"r\xff\xff\xff\xff")),
    "two of one storage": archive(pickled(record((text("a"), tensor()), (text("b"), tensor(stride=numbers(1, 2)))))),
    "a parameter": archive(
        one(hostile.call("torch._utils._rebuild_parameter", tensor(), b"\x88", hostile.call("collections.OrderedDict")))
    ),
    "integers": archive(one(tensor(storage(name("torch.IntStorage"))))),
    "halves": archive(one(tensor(storage(name("torch.HalfStorage"), size=number(8)), 1, numbers(3, 2), numbers(2, 1)))),
    "brains": archive(one(tensor(storage(name("torch.BFloat16Storage"), size=number(8))))),
    "doubles": archive(one(tensor(storage(name("torch.DoubleStorage"), size=number(2)), 0, numbers(2), numbers(1)))),
}


@pytest.mark.parametrize("data", HARMLESS.values(), ids=HARMLESS)
def test_what_is_harmless_is_read_as_torch_reads_it(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    expected = torch.load(path, weights_only=True)
    stored, _ = read(path)
    assert stored.keys() == expected.keys()
    for key, oracle in expected.items():
        assert stored[key].dtype == oracle.dtype and stored[key].shape == tuple(oracle.shape)
        found = stored[key].read(oracle.dtype)
        assert found.is_contiguous() and torch.equal(found, oracle)
        assert torch.equal(stored[key].read(torch.float32), oracle.float())


SOUND = {
    "zip": archive(pickled(record((text("state_dict"), record((text("a"), tensor()))), (text("epoch"), number(3))))),
    "legacy": HARMLESS["legacy"],
    "safetensors": hostile.safetensors({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}),
}


@pytest.mark.parametrize("kind", SOUND)
def test_any_byte_may_be_another(tmp_path, kind):
    """What reads a damaged file raises nothing but MineditError."""
    choose, path, refusals = random.Random(kind), tmp_path / "file", 0
    for _ in range(150):
        data = bytearray(SOUND[kind])
        for _ in range(choose.choice((1, 1, 2, 4))):
            at, some = choose.randrange(len(data)), choose.randbytes(choose.randrange(1, 9))
            data[at : at + choose.choice((0, len(some), 2 * len(some)))] = some
        path.write_bytes(data)
        try:
            for stored in read(path)[0].values():
                stored.read(torch.float32)
        except MineditError as error:
            assert str(error).isprintable()
            refusals += 1
    assert 75 < refusals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("files", [lambda: None, Files], ids=["by tensor", "whole"])
def test_a_file_that_shrinks_while_it_is_read(tmp_path, dtype, files):
    path = tmp_path / "file"
    path.write_bytes(hostile.safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}))
    (stored,) = read(path)[0].values()
    expected = torch.tensor(struct.unpack("<4f", hostile.FLOATS)).to(dtype)
    assert torch.equal(stored.read(dtype, files()), expected)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(MineditError, match="has become shorter"):
        stored.read(dtype, files())
    path.unlink()
    with pytest.raises(MineditError, match="cannot be read any more"):
        stored.read(dtype, files())
