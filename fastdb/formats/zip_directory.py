"""Position of the directory of a zip, found and verified before a directory of any size is read."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from fastdb.formats.tensor_info import Fault

END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
_COMMENT = 1 << 16


@dataclass(frozen=True, slots=True)
class Directory:
    """Number of entries, size in bytes and position of a zip's directory."""

    count: int
    size: int
    start: int


def find_directory(file: BinaryIO, length: int) -> Directory:
    """Return where the directory of a zip of `length` bytes is.

    Raises:
        Fault: there is none at the end of the file, it is elsewhere than it should be, or the zip has several volumes.
    """
    tail_start = max(0, length - _COMMENT - END.size)
    tail = read_at(file, tail_start, length - tail_start)
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + END.size:
        raise Fault("its end is missing, so it is truncated or not a zip")
    _, disk, first, entries, count, size, start, comment = END.unpack_from(tail, place)
    if len(tail) != place + END.size + comment:
        raise Fault("trailing data after the archive")
    end = tail_start + place
    if end >= LOCATOR64.size:
        signature, _, place64, _ = LOCATOR64.unpack(read_at(file, end - LOCATOR64.size, LOCATOR64.size))
        if signature == b"PK\x06\x07":
            # `zipfile` ignores the offset and reads what is directly before the locator.
            if place64 != end - LOCATOR64.size - END64.size:
                raise Fault("invalid offset of the zip directory")
            record = END64.unpack(read_at(file, place64, END64.size, b"PK\x06\x06"))
            disk, first, entries, count, size, start = record[4:]
            end = place64
    if disk or first or entries != count:
        raise Fault("multi-volume archive")
    if start + size != end:
        raise Fault("invalid offset of the zip directory")
    return Directory(count, size, start)


def read_at(file: BinaryIO, start: int, size: int, begins: bytes = b"") -> bytes:
    """Return exactly `size` bytes of a zip, which must start with `begins`.

    Raises:
        Fault: they do not, or the zip ends before.
    """
    if start >= 1 << 62:
        raise Fault("invalid offset of the zip directory")
    file.seek(start)
    data = file.read(size)
    if len(data) != size or not data.startswith(begins):
        raise Fault("damaged zip directory")
    return data
