"""Where the records of a torch zip lie: its directory, read by us, held against each record's own header.

Stricter than `zipfile`, which reads a directory of any size, takes the last of two records of one name, and unpacks
what is compressed: here a record is a stretch of the file, stored as it is, named once, overlapping no other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from fastdb.formats.tensor_info import MOST_TENSORS, Fault, shown

LARGEST_DIRECTORY = 16 << 20
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
COMMENT = 1 << 16
ENCRYPTED, SIZES_FOLLOW = 0x2041, 0x8
"""Flags of a record: bits 0, 6 and 13 encrypt; with bit 3 sizes stand behind the data, and zeros before it."""
UNIX_LINK = 0o120000


@dataclass(frozen=True, slots=True)
class Record:
    """A named stretch of the file."""

    name: str
    start: int
    size: int
    crc: int


def read_records(file: BinaryIO, length: int) -> dict[str, Record]:
    """The records of a zip of `length` bytes, by name.

    Raises:
        Fault: it is cut short, damaged, or does what torch.save never does: compression, encryption, links, names that
            lead out of it, names used twice, records that overlap.
    """
    count, size, start = _directory(file, length)
    if count > MOST_TENSORS or size > LARGEST_DIRECTORY:
        raise Fault(f"its directory lists {count} records, more than any model has")
    data = _at(file, start, size)
    records: dict[str, Record] = {}
    place = 0
    for _ in range(count):
        record, place = _record(file, data, place, start)
        if record.name in records:
            raise Fault(f"two of its records have the name {shown(record.name)}")
        records[record.name] = record
    end = 0
    for record in sorted(records.values(), key=lambda record: (record.start, record.size)):
        if record.start < end:
            raise Fault(f"its record {shown(record.name)} overlaps another")
        end = record.start + record.size
    return records


def _directory(file: BinaryIO, length: int) -> tuple[int, int, int]:
    """Number of entries, bytes and place of the directory, from what stands at the end of the file."""
    tail_start = max(0, length - COMMENT - END.size)
    tail = _at(file, tail_start, length - tail_start)
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + END.size:
        raise Fault("it is cut short: a zip's directory stands at its end, and there is none")
    _, disk, first, here, count, size, start, comment = END.unpack_from(tail, place)
    end = tail_start + place
    if len(tail) != place + END.size + comment:
        raise Fault("it goes on behind its end")
    if end >= LOCATOR64.size:
        locator = LOCATOR64.unpack(_at(file, end - LOCATOR64.size, LOCATOR64.size))
        if locator[0] == b"PK\x06\x07":
            end = locator[2]
            _, _, _, _, disk, first, here, count, size, start = END64.unpack(_at(file, end, END64.size, b"PK\x06\x06"))
    if disk or first or here != count:
        raise Fault("it is one volume of a zip in several")
    if start + size != end:
        raise Fault("its directory is not where it says")
    return count, size, start


def _record(file: BinaryIO, data: bytes, place: int, limit: int) -> tuple[Record, int]:
    """The entry at `place` of the directory, checked against the record's own header; and the next place."""
    if len(data) < place + ENTRY.size or data[place : place + 4] != b"PK\x01\x02":
        raise Fault("its directory is damaged")
    entry = ENTRY.unpack_from(data, place)
    flags, method, crc, packed, size, names, extras, comments = *entry[3:5], *entry[7:13]
    mode, start = entry[15] >> 16, entry[16]
    after = place + ENTRY.size + names
    raw, extra = data[place + ENTRY.size : after], data[after : after + extras]
    name = _name(raw)
    size, packed, start = _large(extra, size, packed, start)
    if flags & ENCRYPTED:
        raise Fault(f"its record {shown(name)} is encrypted")
    if method or packed != size:
        raise Fault(f"its record {shown(name)} is compressed, which torch.save never does")
    if mode & 0o170000 == UNIX_LINK:
        raise Fault(f"its record {shown(name)} is a link")
    begin = _begin(file, raw, start, limit, (flags, crc, size))
    if begin + size > limit:
        raise Fault(f"its record {shown(name)} would reach beyond the file")
    return Record(name, begin, size, crc), after + extras + comments


def _begin(file: BinaryIO, raw: bytes, start: int, limit: int, known: tuple[int, int, int]) -> int:
    """Where a record's data begins, from its own header, which must say what the directory says."""
    if start + LOCAL.size > limit:
        raise Fault(f"its record {shown(_name(raw))} would begin beyond the file")
    local = LOCAL.unpack(_at(file, start, LOCAL.size, b"PK\x03\x04"))
    flags, method, crc, _, size, names, extras = *local[2:4], *local[6:11]
    begin = start + LOCAL.size + names + extras
    differs = method or (flags & ~SIZES_FOLLOW) != (known[0] & ~SIZES_FOLLOW)
    if not flags & SIZES_FOLLOW:
        differs = differs or crc != known[1] or (size != known[2] and size != 0xFFFFFFFF)
    if differs or _at(file, start + LOCAL.size, names) != raw:
        raise Fault(f"its record {shown(_name(raw))} says otherwise than its directory")
    return begin


def _name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Fault("a record in it has a name that is no text") from None
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or ":" in name or not all(parts) or ".." in parts or "." in parts:
        raise Fault(f"a record in it has the unfit name {shown(name)}")
    return name


def _large(extra: bytes, *values: int) -> tuple[int, int, int]:
    """Sizes and place, those of them that do not fit 32 bits taken from the zip64 field."""
    found = list(values)
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            field = extra[place + 4 : place + 4 + length]
            for number, value in enumerate(values):
                if value == 0xFFFFFFFF:
                    if len(field) < 8:
                        raise Fault("its directory is damaged")
                    found[number] = int.from_bytes(field[:8], "little")
                    field = field[8:]
        place += 4 + length
    return found[0], found[1], found[2]


def _at(file: BinaryIO, start: int, size: int, begins: bytes = b"") -> bytes:
    """Bytes of the file; never fewer than asked for."""
    if start >= 1 << 62:
        raise Fault("its directory is not where it says")
    file.seek(start)
    data = file.read(size)
    if len(data) != size or not data.startswith(begins):
        raise Fault("its directory is damaged")
    return data
