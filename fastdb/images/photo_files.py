"""Photo files in folders and the checksums of PNG files."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from fastdb.errors import ImageError
from fastdb.reporting import counted
from fastdb.storage.drive_duplicates import is_copy
from fastdb.storage.safe_names import is_system_file

# HEIC cannot be decoded, but is listed so that such photos are refused with a message instead of skipped.
PHOTO_ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".heic", ".heif"})

NOT_A_PHOTO = "its ending is not that of a JPEG, PNG, WebP or BMP file"
"""Reason for which a file in a folder of photos is not taken."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def photos_in(folder: Path, *, skip_copies: bool = False) -> list[Path]:
    """Return the photos in a folder in natural order.

    Hidden files and subfolders are left out.

    Args:
        skip_copies: also leave out the copies that Google Drive adds beside a photo with the same bytes.

    Raises:
        OSError: the folder, or a photo that may be a copy, cannot be read.
    """
    photos = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PHOTO_ENDINGS and not path.name.startswith(".") and path.is_file()
    ]
    photos.sort(key=lambda path: _natural_key(path.name))
    return [path for path in photos if not is_copy(path)] if skip_copies else photos


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """Return the photos that files and folders stand for, each once.

    Files stay in the order given, whatever their ending; folders are searched one level deep in natural order.

    Raises:
        ImageError: no path was given, a path does not exist or cannot be read, or a folder contains no photo.
    """
    if not paths:
        raise ImageError("no photos were given", fix="Name photos or a folder of photos.")
    photos: dict[Path, None] = {}
    for path in paths:
        try:
            if path.is_dir():
                inside = photos_in(path)
                if not inside:
                    raise _no_photos(path)
                photos.update(dict.fromkeys(inside))
            elif path.exists():
                photos[path] = None
            else:
                raise ImageError("there is no such file or folder", where=path, fix="Check the spelling of the path.")
        except OSError as error:
            raise ImageError(
                f"the path cannot be read ({error.strerror})", where=path, fix="Check its permissions."
            ) from error
    return list(photos)


def passed_over(folder: Path) -> list[tuple[Path, str]]:
    """Return the entries of a folder of photos that are not taken, each with the reason.

    Captions, hidden files and the files that systems add are left out.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: _natural_key(path.name)):
        ending = path.suffix.lower()
        if path.name.startswith(".") or is_system_file(path.name) or (ending == ".txt" and path.is_file()):
            continue
        if path.is_symlink() and not path.exists():
            found.append((path, "it is a broken link"))
        elif path.is_dir():
            if count := sum(len(photos_in(inside)) for inside in (path, *path.glob("*/"))):
                found.append((path, f"subfolders are not searched; name it to add its {counted(count, 'photo')}"))
        elif ending not in PHOTO_ENDINGS:
            found.append((path, NOT_A_PHOTO))
        elif not path.is_file():
            found.append((path, "it is not a regular file"))
    return found


def _no_photos(folder: Path) -> ImageError:
    """Return the error for a folder without photos, with the subfolder that has some."""
    if near := next((inside for inside in sorted(folder.glob("*/")) if photos_in(inside)), None):
        return ImageError(
            "only subfolders contain photos, and they are not searched", where=folder, fix=f"Name them, such as {near}."
        )
    return ImageError("the folder contains no photos", where=folder, fix="Add JPEG, PNG or WebP files.")


def png_fault(data: bytes) -> str:
    """Return the fault in a PNG's checksums, or an empty string.

    Decoders skip these (W3C PNG, 5.3: a CRC-32 over the type and data of each chunk). Data after the last chunk is
    ignored.
    """
    if not data.startswith(PNG_SIGNATURE):
        return "is not a PNG file"
    start = len(PNG_SIGNATURE)
    while len(data) >= start + 12:
        (size,) = struct.unpack_from(">L", data, start)
        end = start + 8 + size
        if len(data) < end + 4:
            break
        if zlib.crc32(data[start + 4 : end]) != struct.unpack_from(">L", data, end)[0]:
            return "is damaged (checksum mismatch)"
        if data[start + 4 : start + 8] == b"IEND":
            return ""
        start = end + 4
    return "is damaged (truncated)"


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts img2 before img10 and ignores case."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part] + [(2, 0, name)]
