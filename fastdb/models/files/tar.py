"""The first form of torch.save, of 2016 and 2017: a tar of `storages`, `tensors` and a pickle that refers to them."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any, BinaryIO

from fastdb.models.files.ckpt import Contents, contents
from fastdb.models.files.pickled_data import Global, Storage, Tensor, storage_dtype, view
from fastdb.models.files.pickles import unpickle
from fastdb.models.files.tensors import SIZES, Fault, is_count

BLOCK = 512
MOST_MEMBERS = 16
MOST_PARTS = 10_000
SMALL = 100
"""Work of a pickle that only names a storage or a tensor."""


def read_tar(file: BinaryIO, length: int) -> Contents:
    """Describe a tar of torch.save.

    Raises:
        Fault: it is no such file, or not an honest one.
    """
    members = _members(file, length)
    if not {"storages", "tensors", "pickle"} <= set(members):
        raise Fault(f"it is a tar, but no checkpoint: it holds {', '.join(map(ascii, members)) or 'nothing'}")
    known: dict[Any, Any] = {}
    starts: dict[str, int] = {}
    neutralised: set[str] = set()
    file.seek(members["storages"][0])
    for _ in range(_count(file)):
        _read_storage(file, members["storages"], known, starts, neutralised)
    if unpickle(file, work=SMALL).value != []:
        raise Fault("it has views of storages, which are not read here")
    file.seek(members["tensors"][0])
    for _ in range(_count(file)):
        _read_tensor(file, known, neutralised)
    file.seek(members["pickle"][0])

    def persistent(what: Any) -> Any:
        if not isinstance(what, str) or not what.isdecimal() or len(what) > 20 or int(what) not in known:
            raise Fault("its pickle refers to something that is not in it")
        return known[int(what)]

    found = unpickle(file, persistent)
    found = replace(found, neutralised=tuple(sorted(neutralised.union(found.neutralised))))
    return contents("tar of torch.save before 0.2", found, lambda storage: starts[storage.key])


def _members(file: BinaryIO, length: int) -> dict[str, tuple[int, int]]:
    """Name -> where its bytes begin and end."""
    found: dict[str, tuple[int, int]] = {}
    place = 0
    while place + BLOCK <= length:
        file.seek(place)
        head = file.read(BLOCK)
        if not head.strip(b"\0"):
            break
        name, size = head[:100].rstrip(b"\0").decode("latin1"), head[124:136].strip(b"\0 ")
        if not size.isdigit() or head[156:157] not in (b"0", b"\0", b"5"):
            raise Fault("its tar has an entry that is no plain file")
        start, end = place + BLOCK, place + BLOCK + int(size, 8)
        if end > length or name in found or len(found) == MOST_MEMBERS:
            raise Fault("its tar is cut short, names a file twice or has too many")
        found[name] = start, end
        place = start + -(-int(size, 8) // BLOCK) * BLOCK
    return found


def _count(file: BinaryIO) -> int:
    count = unpickle(file, work=SMALL).value
    if not is_count(count) or count > MOST_PARTS:
        raise Fault("it has an absurd number of parts")
    return int(count)


def _triple(file: BinaryIO, neutralised: set[str]) -> tuple[Any, Any, Any]:
    found = unpickle(file, work=SMALL)
    neutralised.update(found.neutralised)
    if not isinstance(found.value, tuple) or len(found.value) != 3 or not is_count(found.value[0]):
        raise Fault("it describes a part that is neither storage nor tensor")
    return found.value


def _read_storage(
    file: BinaryIO, member: tuple[int, int], known: dict[Any, Any], starts: dict[str, int], neutralised: set[str]
) -> None:
    key, _, kind = _triple(file, neutralised)
    dtype = storage_dtype(kind)
    if dtype is None or key in known:
        raise Fault("it describes a storage that cannot be")
    storage = Storage(str(key), dtype, int.from_bytes(file.read(8), "little"))
    start = file.tell()
    end = start + storage.count * SIZES[dtype]
    if end > member[1]:
        raise Fault("it is cut short: a storage ends beyond it")
    known[key], starts[storage.key] = storage, start
    file.seek(end)


def _read_tensor(file: BinaryIO, known: dict[Any, Any], neutralised: set[str]) -> None:
    key, owner, kind = _triple(file, neutralised)
    dimensions = int.from_bytes(file.read(8)[:4], "little")
    if dimensions > 16 or not is_count(owner) or key in known or not isinstance(kind, Global):
        raise Fault("it describes a tensor that cannot be")
    data = file.read(16 * dimensions + 8)
    if len(data) != 16 * dimensions + 8:
        raise Fault("it is cut short in its list of tensors")
    numbers = struct.unpack(f"<{2 * dimensions + 1}q", data)
    tensor: Tensor = view(known.get(owner), numbers[-1], numbers[:dimensions], numbers[dimensions:-1])
    known[key] = tensor
