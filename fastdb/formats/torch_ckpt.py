"""Parser of torch.save files, both zips and older streams, without torch.

torch 1.6 and later write zips.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastdb.formats.tensor_info import MAX_TENSORS, SIZES, Fault, Scalar, TensorInfo, shown
from fastdb.formats.torch_zip import Record, read_records
from fastdb.formats.unpickled_types import Inert, Storage, Tensor
from fastdb.formats.unpickler import MAX_PICKLE_BYTES, Unpickled, unpickle

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
"""Two pickled numbers at the beginning of a file of torch.save before 1.6."""

MAX_DEPTH = 24
MAX_NAME = 1000
MAX_TEXT = 4000
MAX_VALUES = 10_000


@dataclass(frozen=True)
class Contents:
    """The data in a file of torch.save."""

    kind: str
    tensors: dict[str, TensorInfo]
    values: dict[str, Scalar]
    neutralised: tuple[str, ...]


def read_ckpt(file: BinaryIO, length: int) -> Contents:
    """Parse a file of torch.save of `length` bytes, in either format.

    Raises:
        Fault: the file is of another kind, damaged, or hostile.
    """
    file.seek(0)
    is_zip = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    return _read_zip(file, length) if is_zip else _read_stream(file, length)


def _read_zip(file: BinaryIO, length: int) -> Contents:
    records = read_records(file, length)
    roots = [name.removesuffix("/data.pkl") for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        names = ", ".join(shown(name) for name in list(records)[:4]) or "nothing"
        raise Fault(f"a zip, but not a checkpoint: it contains {names}, and not a single data.pkl")
    root = roots[0]
    if f"{root}/constants.pkl" in records:
        raise Fault("a TorchScript program, not a checkpoint")
    order = records.get(f"{root}/byteorder")
    if order is not None and _bytes(file, order) != b"little":
        raise Fault("unsupported byte order")
    pickled = _bytes(file, records[f"{root}/data.pkl"])
    if zlib.crc32(pickled) != records[f"{root}/data.pkl"].crc:
        raise Fault("damaged data.pkl: the checksum differs")
    unpickled = unpickle(io.BytesIO(pickled))

    def place(storage: Storage) -> int:
        record = records.get(f"{root}/data/{storage.key}")
        if record is None:
            raise Fault(f"the data of storage {shown(storage.key)} is missing")
        if record.size != storage.count * SIZES[storage.dtype]:
            raise Fault(f"storage {shown(storage.key)} has {record.size} bytes, not {storage.count} {storage.dtype}")
        return record.start

    return _contents("zip of torch.save", unpickled, place)


def _bytes(file: BinaryIO, record: Record) -> bytes:
    if record.size > MAX_PICKLE_BYTES:
        raise Fault(f"record {shown(record.name)} exceeds the limit of {MAX_PICKLE_BYTES} bytes")
    file.seek(record.start)
    return file.read(record.size)


def _read_stream(file: BinaryIO, length: int) -> Contents:
    """Parse a file of torch.save before 1.6.

    It consists of five pickles, then count and bytes of each storage.
    """
    first = unpickle(file).value
    if type(first) is not int or first != MAGIC:
        raise Fault("a pickle, but not from torch.save")
    protocol, system = unpickle(file).value, unpickle(file).value
    if protocol != PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Fault("unsupported protocol or byte order")
    unpickled = unpickle(file)
    used: dict[str, Storage] = {}
    for storage in unpickled.storages:
        if used.setdefault(storage.key, storage) != storage:
            raise Fault(f"conflicting descriptions of storage {shown(storage.key)}")
    keys = unpickle(file).value
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(used):
        raise Fault("damaged list of storages")
    if len(set(keys)) != len(keys):
        raise Fault("duplicate entry in the list of storages")
    starts: dict[str, int] = {}
    for key in keys:
        starts[key] = _stored(file, used[key], length)
    if file.tell() != length:
        raise Fault("trailing data after the last tensor")
    return _contents("stream of torch.save before 1.6", unpickled, lambda storage: starts[storage.key])


def _stored(file: BinaryIO, storage: Storage, length: int) -> int:
    """Return the position of a storage's data and seek to its end."""
    count = int.from_bytes(file.read(8), "little")
    start = file.tell()
    if count != storage.count:
        raise Fault(f"storage {shown(storage.key)} has {count} elements, not {storage.count}")
    end = start + count * SIZES[storage.dtype]
    if end > length:
        raise Fault(f"truncated: the data of storage {shown(storage.key)} ends beyond the file")
    file.seek(end)
    return start


def _contents(kind: str, unpickled: Unpickled, place: Callable[[Storage], int]) -> Contents:
    """Collect tensors and plain values by dotted name.

    `place` returns the position of a storage's data. Names in `state_dict` lose that prefix; other names keep their
    whole path.

    Raises:
        Fault: a tensor has no data, a name is duplicate, or containers are cyclic.
    """
    tensors: dict[str, TensorInfo] = {}
    values: dict[str, Scalar] = {}
    if isinstance(unpickled.value, Inert):
        raise Fault(f"it contains a {unpickled.value.name} object instead of weights")
    for path, leaf in _leaves(unpickled.value):
        name = path.removeprefix("state_dict.")
        if isinstance(leaf, Tensor):
            if name in tensors:
                raise Fault(f"duplicate tensor {shown(name)}")
            if len(tensors) == MAX_TENSORS:
                raise Fault("too many tensors")
            start = place(leaf.storage) + leaf.offset * SIZES[leaf.dtype]
            tensors[name] = TensorInfo(leaf.dtype, leaf.shape, leaf.stride, start)
        elif isinstance(leaf, str | int | float) and len(values) < MAX_VALUES:
            values[name] = leaf[:MAX_TEXT] if isinstance(leaf, str) else leaf
    return Contents(kind, tensors, values, unpickled.neutralised)


def _leaves(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and value of everything in nested containers.

    The number of visits is limited.
    """
    pending: list[Iterator[tuple[str, Any]]] = [iter([("", root)])]
    visits = 0
    while pending:
        for path, value in pending[-1]:
            visits += 1
            if visits > 10 * MAX_TENSORS or len(pending) > MAX_DEPTH:
                raise Fault("containers are cyclic or too deeply nested")
            if isinstance(value, Mapping | list | tuple):
                pending.append(_inside(path, value))
                break
            yield path or "tensor", value
        else:
            pending.pop()


def _inside(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in entries:
        if isinstance(key, str | int):
            name = f"{path}.{key}" if path else str(key)
            if len(name) > MAX_NAME:
                raise Fault(f"a name exceeds the limit of {MAX_NAME} characters")
            yield name, item
