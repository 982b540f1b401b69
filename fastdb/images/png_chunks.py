"""The checksums that a PNG carries in each of its chunks, which decoders read past for the picture's own bytes."""

from __future__ import annotations

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_fault(data: bytes) -> str:
    """What is wrong with a PNG by its own checksums (W3C PNG, 5.3: CRC-32 over type and data), as a clause.

    Empty where nothing is; what follows the last chunk is not looked at.
    """
    if not data.startswith(SIGNATURE):
        return "is no PNG"
    place = len(SIGNATURE)
    while len(data) >= place + 12:
        (size,) = struct.unpack_from(">L", data, place)
        end = place + 8 + size
        if len(data) < end + 4:
            break
        if zlib.crc32(data[place + 4 : end]) != struct.unpack_from(">L", data, end)[0]:
            return "is damaged: one of its checksums does not fit"
        if data[place + 4 : place + 8] == b"IEND":
            return ""
        place = end + 4
    return "is damaged: it is cut short"
