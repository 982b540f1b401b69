"""Positions of the records in a zip of torch.save.

They come from its directory and are verified by each record's header. Stricter than `zipfile`, which reads a directory
of any size, uses the last of two records with the same name and decompresses records. Here each record is stored, has a
unique name and overlaps no other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from fastdb.formats.tensor_info import MAX_TENSORS, Fault, shown
from fastdb.formats.zip_directory import find_directory, read_at

MAX_DIRECTORY_BYTES = 16 << 20
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
ENCRYPTED, SIZES_FOLLOW = 0x2041, 0x8
"""Flags of a record: bits 0, 6 and 13 mean encryption; with bit 3 the sizes follow the data, with zeros before it."""
UNIX_LINK = 0o120000


@dataclass(frozen=True, slots=True)
class Record:
    """Position, size and CRC-32 of a named record."""

    name: str
    start: int
    size: int
    crc: int


def read_records(file: BinaryIO, length: int) -> dict[str, Record]:
    """Return the records of a zip of `length` bytes by name.

    Raises:
        Fault: the zip is truncated, damaged, or contains what torch.save never writes: compression, encryption, links,
            paths outside of the zip, duplicate names, overlapping records.
    """
    directory = find_directory(file, length)
    if directory.count > MAX_TENSORS or directory.size > MAX_DIRECTORY_BYTES:
        raise Fault(f"too many records ({directory.count})")
    data = read_at(file, directory.start, directory.size)
    records: dict[str, Record] = {}
    place = 0
    for _ in range(directory.count):
        record, place = _record(file, data, place, directory.start)
        if record.name in records:
            raise Fault(f"duplicate record {shown(record.name)}")
        records[record.name] = record
    end = 0
    for record in sorted(records.values(), key=lambda record: (record.start, record.size)):
        if record.start < end:
            raise Fault(f"record {shown(record.name)} overlaps another record")
        end = record.start + record.size
    return records


def _record(file: BinaryIO, data: bytes, place: int, limit: int) -> tuple[Record, int]:
    """Return a verified directory entry at `place`, and the next place."""
    if len(data) < place + ENTRY.size or data[place : place + 4] != b"PK\x01\x02":
        raise Fault("damaged zip directory")
    entry = ENTRY.unpack_from(data, place)
    flags, method, crc, packed, size, names, extras, comments = *entry[3:5], *entry[7:13]
    mode, start = entry[15] >> 16, entry[16]
    after = place + ENTRY.size + names
    raw, extra = data[place + ENTRY.size : after], data[after : after + extras]
    name = _name(raw)
    size, packed, start = _large(extra, size, packed, start)
    if flags & ENCRYPTED:
        raise Fault(f"record {shown(name)} is encrypted")
    if method or packed != size:
        raise Fault(f"record {shown(name)} is compressed, unlike in files of torch.save")
    if mode & 0o170000 == UNIX_LINK:
        raise Fault(f"record {shown(name)} is a link")
    begin = _begin(file, raw, start, limit, (flags, crc, size))
    if begin + size > limit:
        raise Fault(f"record {shown(name)} ends beyond the file")
    return Record(name, begin, size, crc), after + extras + comments


def _begin(file: BinaryIO, raw: bytes, start: int, limit: int, expected: tuple[int, int, int]) -> int:
    """Return the position of a record's data, after verifying its header."""
    if start + LOCAL.size > limit:
        raise Fault(f"record {shown(_name(raw))} begins beyond the file")
    local = LOCAL.unpack(read_at(file, start, LOCAL.size, b"PK\x03\x04"))
    flags, method, crc, _, size, names, extras = *local[2:4], *local[6:11]
    begin = start + LOCAL.size + names + extras
    differs = method or (flags & ~SIZES_FOLLOW) != (expected[0] & ~SIZES_FOLLOW)
    if not flags & SIZES_FOLLOW:
        differs = differs or crc != expected[1] or (size != expected[2] and size != 0xFFFFFFFF)
    if differs or read_at(file, start + LOCAL.size, names) != raw:
        raise Fault(f"record {shown(_name(raw))} differs from its directory entry")
    return begin


def _name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Fault("a record name is not valid UTF-8") from None
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or ":" in name or not all(parts) or ".." in parts or "." in parts:
        raise Fault(f"invalid record name {shown(name)}")
    return name


def _large(extra: bytes, *values: int) -> tuple[int, int, int]:
    """Return sizes and position, with 64-bit values from the zip64 field."""
    numbers = list(values)
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            field = extra[place + 4 : place + 4 + length]
            for index, value in enumerate(values):
                if value == 0xFFFFFFFF:
                    if len(field) < 8:
                        raise Fault("damaged zip directory")
                    numbers[index] = int.from_bytes(field[:8], "little")
                    field = field[8:]
        place += 4 + length
    return numbers[0], numbers[1], numbers[2]
