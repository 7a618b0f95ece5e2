"""A file by torch.save -> the tensors in it, by name, not read yet.

Its pickle is not run (pickles.py); what it says of every tensor is checked against the bytes that are there. Only
formats.py uses this.
"""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from minedit.config import LIMIT, shown
from minedit.files.pickles import Storage, View, described
from minedit.files.stored import Refused, Stored, extent

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of files from before torch 1.6

# What PyTorch Lightning keeps beside the weights.
BOOKKEEPING = (
    *("state_dict", "epoch", "global_step", "pytorch-lightning_version", "callbacks", "optimizer_states"),
    *("lr_schedulers", "loops", "native_amp_scaling_state", "amp_scaling_state", "hparams_name", "hyper_parameters"),
)


def zipped(path: Path) -> dict[str, Stored]:
    """The zip archive that torch writes since 1.6: NAME/data.pkl, a pickle, and NAME/data/KEY, a storage's bytes each.

    Raises Refused for what torch.save does not write, and ValueError, LookupError, TypeError, NotImplementedError,
    struct.error or BadZipFile where the archive is damaged.
    """
    with _Brief(path) as file, ZipFile(file) as archive:
        listed = archive.infolist()
        entries = {entry.filename: entry for entry in listed}
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Refused(f"is a zip archive with {len(roots)} files data.pkl, where torch.save writes one")
        root = roots[0]
        strange = [name for name in entries if not name.startswith(root) or ".." in name.split("/")]
        if strange or len(entries) != len(listed):
            what = shown(strange[0]) if strange else "a name twice"
            raise Refused(f"is a zip archive with {what} in it, which torch.save never writes")
        if root + "constants.pkl" in entries:
            raise Refused("is a TorchScript program")
        if root + "byteorder" in entries and archive.read(_plain(entries[root + "byteorder"])) != b"little":
            raise Refused("holds big-endian numbers")
        data, _ = described(io.BytesIO(archive.read(_plain(entries[root + "data.pkl"]))))

        def place(storage: Storage) -> int:
            entry = entries.get(f"{root}data/{storage.key}")
            if entry is None:
                raise ValueError(f"storage {storage.key} is not in it")
            if _plain(entry, limit=None).file_size != storage.size * storage.dtype.itemsize:
                raise ValueError(f"storage {storage.key} has {entry.file_size} bytes for {storage.size} numbers")
            file.seek(entry.header_offset)
            mark, name, extra = struct.unpack("<4s22xHH", file.read(30))  # the entry's own header
            offset = entry.header_offset + 30 + name + extra
            if mark != b"PK\x03\x04" or offset + entry.file_size > path.stat().st_size:
                raise ValueError(f"storage {storage.key} is not where the directory says")
            return offset

        return _tensors(path, data, place)


class _Brief(io.FileIO):
    """A file of which at most LIMIT is read at once: ZipFile reads a directory of any length into memory."""

    def read(self, size: int = -1) -> bytes:
        data = super().read(LIMIT + 1 if size < 0 else min(size, LIMIT + 1))
        if len(data) > LIMIT:
            raise BadZipFile(f"its directory has more than {LIMIT} bytes")
        return data


def _plain(entry: ZipInfo, limit: int | None = LIMIT) -> ZipInfo:
    if entry.compress_type != ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
        raise Refused(f"has {shown(entry.filename)} compressed or encrypted, which torch.save never does")
    if limit is not None and entry.file_size > limit:
        raise Refused(f"has {entry.file_size} bytes in {shown(entry.filename)}, expected {limit} at most")
    return entry


def legacy(path: Path) -> dict[str, Stored]:
    """What torch wrote until 1.5: five pickles one behind the other, then the size and bytes of each storage.

    Raises as `zipped` does.
    """
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(LIMIT))
        magic, version, system = (described(stream)[0] for _ in range(3))
        if (magic, version) != (MAGIC, VERSION):
            raise Refused("is a pickle, but not one of torch.save")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Refused("holds big-endian numbers")
        (data, storages), (keys, _) = described(stream), described(stream)
        named, places, offset = {storage.key: storage for storage in storages}, {}, stream.tell()
        for key in keys:
            file.seek(offset)
            if file.read(8) != named[key].size.to_bytes(8, "little"):
                raise ValueError(f"storage {key} has another size than {named[key].size}")
            places[key] = offset + 8
            offset += 8 + named[key].size * named[key].dtype.itemsize
    if offset != path.stat().st_size:
        raise ValueError(f"it has {path.stat().st_size} bytes, its storages end at {offset}")

    def place(storage: Storage) -> int:
        if storage != named[storage.key]:
            raise ValueError(f"storage {storage.key} is described twice")
        return places[storage.key]

    return _tensors(path, data, place)


def _holds_tensors(value: object) -> bool:
    """Whether any is in it, however deep; a list may be in itself."""
    seen, rest = set(), [value]
    while rest:
        here = rest.pop()
        if isinstance(here, View | Storage):
            return True
        if isinstance(here, dict | list | tuple) and id(here) not in seen:
            seen.add(id(here))
            rest += here.values() if isinstance(here, dict) else here
    return False


def _tensors(path: Path, data: object, place: Callable[[Storage], int]) -> dict[str, Stored]:
    """The tensors of a torch file, or of its state_dict, without the numbers and text of trainers beside them.

    What else may hold tensors beside a state_dict is refused: which of them are meant?
    """
    if isinstance(data, dict) and "state_dict" in data:
        others = [key for key in data if key not in BOOKKEEPING]
        beside = sorted(shown(key) for key in others if not data["state_dict"] or _holds_tensors(data[key]))
        if beside:
            what = "which hold tensors too" if data["state_dict"] else "which is empty"
            raise Refused(f"has {', '.join(beside[:3])} beside its state_dict, {what}")
        data = data["state_dict"]
    named = isinstance(data, dict) and all(isinstance(name, str) for name in data)
    if named and any(isinstance(value, View) for value in data.values()):
        data = {name: value for name, value in data.items() if not isinstance(value, str | int | float | NoneType)}
    if not named or not all(isinstance(value, View) for value in data.values()):
        raise Refused("holds other things than named tensors")
    tensors = {}
    for name, view in data.items():
        storage, numbers = view.storage, (view.offset, *view.shape, *view.stride)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"{name} has sizes that are not numbers from 0 up")
        if view.offset + extent(view.shape, view.stride) > storage.size:
            raise ValueError(f"{name} reaches beyond its {storage.size} numbers")
        offset = place(storage) + view.offset * storage.dtype.itemsize
        tensors[name] = Stored(path, offset, storage.dtype, view.shape, view.stride)
    return tensors
