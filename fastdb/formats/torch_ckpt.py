"""Files of torch.save, described without torch: the zip of torch 1.6 and later, and the stream before it."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastdb.formats.tensor_info import MOST_TENSORS, SIZES, Fault, Scalar, TensorInfo, shown
from fastdb.formats.torch_zip import Record, read_records
from fastdb.formats.unpickled_types import Inert, Storage, Tensor, torch_reference
from fastdb.formats.unpickler import LARGEST, Unpickled, unpickle

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
"""What a file of torch.save before 1.6 begins with: two pickled numbers."""

DEEPEST = 24
LONGEST_NAME = 1000
LONGEST_TEXT = 4000
MOST_VALUES = 10_000


@dataclass(frozen=True)
class Contents:
    """Everything in a file that is data."""

    kind: str
    tensors: dict[str, TensorInfo]
    values: dict[str, Scalar]
    neutralised: tuple[str, ...]


def read_zip(file: BinaryIO, length: int) -> Contents:
    """Describe a zip of torch.save.

    Raises:
        Fault: it is no such file, or not an honest one.
    """
    records = read_records(file, length)
    roots = [name.removesuffix("/data.pkl") for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        found = ", ".join(shown(name) for name in list(records)[:4]) or "nothing"
        raise Fault(f"it is a zip, but no checkpoint: it holds {found}, and no data.pkl in one folder")
    root = roots[0]
    if f"{root}/constants.pkl" in records:
        raise Fault("it is a program of TorchScript, not a checkpoint")
    order = records.get(f"{root}/byteorder")
    if order is not None and _bytes(file, order) != b"little":
        raise Fault("it was written on a machine with another byte order")
    pickled = _bytes(file, records[f"{root}/data.pkl"])
    if zlib.crc32(pickled) != records[f"{root}/data.pkl"].crc:
        raise Fault("its description of the tensors is damaged: the checksum differs")
    said = unpickle(io.BytesIO(pickled))

    def place(storage: Storage) -> int:
        record = records.get(f"{root}/data/{storage.key}")
        if record is None:
            raise Fault(f"the data of storage {shown(storage.key)} is missing")
        if record.size != storage.count * SIZES[storage.dtype]:
            raise Fault(f"storage {shown(storage.key)} has {record.size} bytes, not {storage.count} {storage.dtype}")
        return record.start

    return contents("zip of torch.save", said, place)


def _bytes(file: BinaryIO, record: Record) -> bytes:
    if record.size > LARGEST:
        raise Fault(f"its record {shown(record.name)} is larger than any model's description")
    file.seek(record.start)
    return file.read(record.size)


def read_stream(file: BinaryIO, length: int) -> Contents:
    """Describe a file of torch.save before 1.6: five pickles, then each storage's count and bytes.

    Raises:
        Fault: it is no such file, or not an honest one.
    """
    first = unpickle(file).value
    if type(first) is not int or first != MAGIC:
        raise Fault("it is a pickle, but none that torch.save wrote")
    protocol, system = unpickle(file).value, unpickle(file).value
    if protocol != PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Fault("it has an unknown protocol, or was written on a machine with another byte order")
    used: dict[str, Storage] = {}
    found = unpickle(file, lambda what: _noted(what, used))
    keys = unpickle(file).value
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(used):
        raise Fault("its list of storages is damaged")
    if len(set(keys)) != len(keys):
        raise Fault("its list of storages names one twice")
    starts: dict[str, int] = {}
    for key in keys:
        starts[key] = _stored(file, used[key], length)
    if file.tell() != length:
        raise Fault("it goes on behind its last tensor")
    return contents("stream of torch.save before 1.6", found, lambda storage: starts[storage.key])


def _noted(what: Any, used: dict[str, Storage]) -> Any:
    found = torch_reference(what)
    if isinstance(found, Storage) and used.setdefault(found.key, found) != found:
        raise Fault(f"storage {shown(found.key)} is described in two ways")
    return found


def _stored(file: BinaryIO, storage: Storage, length: int) -> int:
    """Where a storage's bytes lie, the file standing before its count; leaves the file behind them."""
    count = int.from_bytes(file.read(8), "little")
    start = file.tell()
    if count != storage.count:
        raise Fault(f"storage {shown(storage.key)} holds {count} elements, not {storage.count}")
    end = start + count * SIZES[storage.dtype]
    if end > length:
        raise Fault(f"it is cut short: the data of storage {shown(storage.key)} ends beyond it")
    file.seek(end)
    return start


def contents(kind: str, found: Unpickled, place: Callable[[Storage], int]) -> Contents:
    """What a pickle describes, its tensors under their dotted names; `place` says where a storage's bytes begin.

    The names begin below `state_dict`, where there is one; what lies beside it keeps its whole path.

    Raises:
        Fault: a tensor has no data, two have one name, or containers hold each other without end.
    """
    tensors: dict[str, TensorInfo] = {}
    values: dict[str, Scalar] = {}
    if isinstance(found.value, Inert):
        raise Fault(f"it holds a {found.value.name}, which is a program's object and not weights")
    for path, leaf in _leaves(found.value):
        name = path.removeprefix("state_dict.")
        if isinstance(leaf, Tensor):
            if name in tensors:
                raise Fault(f"two tensors in it have the name {shown(name)}")
            if len(tensors) == MOST_TENSORS:
                raise Fault("it names more tensors than any model has")
            start = place(leaf.storage) + leaf.offset * SIZES[leaf.dtype]
            tensors[name] = TensorInfo(leaf.dtype, leaf.shape, leaf.stride, start)
        elif isinstance(leaf, str | int | float) and len(values) < MOST_VALUES:
            values[name] = leaf[:LONGEST_TEXT] if isinstance(leaf, str) else leaf
    return Contents(kind, tensors, values, found.neutralised)


def _leaves(root: Any) -> Iterator[tuple[str, Any]]:
    """Everything in nested containers that is no container, with its path, in order; visits are counted."""
    pending: list[Iterator[tuple[str, Any]]] = [iter([("", root)])]
    visits = 0
    while pending:
        for path, value in pending[-1]:
            visits += 1
            if visits > 10 * MOST_TENSORS or len(pending) > DEEPEST:
                raise Fault("its containers hold each other without end, or deeper than any model's")
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
            if len(name) > LONGEST_NAME:
                raise Fault("a name in it is longer than any model's")
            yield name, item
