"""A zip of uncompressed records, written in one go; each record's CRC is known before it, and computed once.

Format: APPNOTE 6.3 of PKWARE, sections 4.3 and 4.5.3 (zip64). Python's zipfile has the CRC follow the data, and
computes it apart from the one that a file is read back by.
"""

from __future__ import annotations

import struct
import zlib

from fastdb.formats.hashing_writer import Sink

LIMIT = 0xFFFFFFFF
"""From here on an offset or a size is kept in a zip64 field."""
MANY = 0xFFFF
DATE = 1 << 5 | 1
"""The first of January 1980: the same records give the same file."""
STORED = struct.pack("<HHHHH", 45, 0, 0, 0, DATE)
"""Version 4.5 to read it, no flags, no compression, time, date."""


class ZipWriter:
    """Adds records to a sink whose data begins at multiples of `alignment`; names are ASCII."""

    def __init__(self, sink: Sink, alignment: int) -> None:
        self._sink, self._alignment = sink, alignment
        self._entries: list[tuple[bytes, int, int, int]] = []

    def add(self, name: str, data: bytes | memoryview, tensor: str = "") -> None:
        """Write a record of less than 4 GiB, which is the data of a tensor or of none.

        Raises:
            ValueError: it is larger.
        """
        with memoryview(data) as whole:
            size, path, start = whole.nbytes, name.encode("ascii"), self._sink.tell()
            if size >= LIMIT:
                raise ValueError(f"{name}: {size} bytes are more than a record holds")
            crc = zlib.crc32(whole)
            # A local header is 30 bytes, the name and the extra field, which is the padding, as torch has it.
            padding = -(start + 34 + len(path)) % self._alignment
            extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            sizes = struct.pack("<IIIHH", crc, size, size, len(path), len(extra))
            self._sink.write(b"PK\3\4" + STORED + sizes + path + extra)
            self._sink.write(whole, tensor, crc)
            self._entries.append((path, crc, size, start))

    def finish(self) -> None:
        """Write the directory of all records."""
        start, count = self._sink.tell(), len(self._entries)
        for path, crc, size, place in self._entries:
            far = struct.pack("<HHQ", 1, 8, place) if place >= LIMIT else b""
            sizes = struct.pack("<IIIHH", crc, size, size, len(path), len(far))
            tail = struct.pack("<HHHII", 0, 0, 0, 0, min(place, LIMIT))
            self._sink.write(b"PK\1\2" + struct.pack("<H", 3 << 8 | 45) + STORED + sizes + tail + path + far)
        end = self._sink.tell()
        if start >= LIMIT or count >= MANY:
            self._sink.write(
                b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 3 << 8 | 45, 45, 0, 0, count, count, end - start, start)
            )
            self._sink.write(b"PK\6\7" + struct.pack("<IQI", 0, end, 1))
        few = min(count, MANY)
        self._sink.write(
            b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, few, few, min(end - start, LIMIT), min(start, LIMIT), 0)
        )
