"""Photos as people have them: found in files and folders, read into upright RGB or refused with a reason."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from fastdb.errors import ImageError
from fastdb.images.png_chunks import SIGNATURE, png_fault
from fastdb.storage.atomic_write import explained
from fastdb.storage.drive_duplicates import is_copy

PHOTO_ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".heic", ".heif"})
"""What counts as a photo in a folder. HEIC is among them so that it is refused aloud, not passed over."""

READABLE = ("JPEG", "PNG", "WEBP", "BMP")
SMALLEST = 64
"""Pixels on the shorter side below which a photo teaches nothing."""
MOST_PIXELS = 150_000_000
"""A larger picture would take over 600 MB as RGB while it is worked on."""
MOST_BYTES = 256 * 2**20

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.3, tag 0x0112: what to do to a stored picture so that it stands upright."""

_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise on bytes that are not what they claim to be."""


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which img2 comes before img10, whatever the case of the letters."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part] + [(2, 0, name)]


def photos_in(folder: Path) -> list[Path]:
    """The photos lying directly in `folder`, in natural order; hidden files and other endings are passed over."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in PHOTO_ENDINGS and not p.name.startswith("."))
    return sorted((p for p in found if p.is_file()), key=lambda p: natural_key(p.name))


def own_photos_in(folder: Path) -> list[Path]:
    """The photos in a session's `folder` less those that are a second of the same bytes, as Google Drive makes them.

    Raises:
        StorageError: the folder, or one of two that may be the same, cannot be read.
    """
    with explained(folder):
        return [path for path in photos_in(folder) if not is_copy(path)]


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """The photos meant by `paths`: files as given, folders one level deep in natural order, each photo once.

    Raises:
        ImageError: nothing was given, a path is missing, or a folder holds no photo.
    """
    if not paths:
        raise ImageError("no photos were given", fix="Name photos or a folder of photos.")
    found: dict[Path, None] = {}
    for path in paths:
        try:
            found.update(dict.fromkeys(_meant_by(path)))
        except OSError as error:
            raise ImageError(
                f"cannot be looked at ({error.strerror})", where=path, fix="Check who may read it, or choose another."
            ) from error
    return list(found)


def _meant_by(path: Path) -> list[Path]:
    if path.is_dir():
        inside = photos_in(path)
        if not inside:
            raise ImageError("holds no photos", where=path, fix="Put JPEG, PNG or WebP files into it.")
        return inside
    if not path.exists():
        raise ImageError("no such file or folder", where=path, fix="Check the spelling of the path.")
    return [path]


def read_photo(path: Path) -> Image.Image:
    """Read a JPEG, PNG, WebP or BMP, fully decoded, upright, as RGB in sRGB; what is transparent becomes white.

    Raises:
        ImageError: it cannot be read, is damaged, of another format, too small or too large.
    """
    return decode_photo(photo_bytes(path), path)


def photo_bytes(path: Path) -> bytes:
    """The file's untouched bytes.

    Raises:
        ImageError: it is missing, empty, too large, no plain file, or the disk refuses.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ImageError("is not a file", where=path, fix="Name a JPEG, PNG or WebP file.")
        if size > MOST_BYTES:
            raise ImageError(f"has {size / 2**20:.0f} MiB", where=path, fix="Save it smaller, as JPEG.")
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"cannot be read ({error.strerror})", where=path, fix="Check the file, or leave it out."
        ) from error
    if not data:
        raise ImageError("is empty (0 bytes)", where=path, fix="Copy the photo again.")
    return data


def decode_photo(data: bytes, path: Path) -> Image.Image:
    """Decode a photo's bytes as `read_photo` does; `path` is only named in errors.

    Raises:
        ImageError: see `read_photo`.
    """
    _refuse_other_formats(data, path)
    if data.startswith(SIGNATURE) and (fault := png_fault(data)):
        raise ImageError(fault, where=path, fix="Copy or export the photo again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's doubts about a file: it decodes or it is refused
            with Image.open(io.BytesIO(data), formats=READABLE) as opened:
                _check_size(opened.size, path)
                opened.load()
                upright = _upright(opened)
                rgb = _to_rgb(upright)
    except Image.DecompressionBombError as error:
        raise ImageError("has more pixels than can be worked on", where=path, fix="Save it smaller first.") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            "is not a picture that can be read", where=path, fix="Save it as JPEG or PNG, or leave it out."
        ) from error
    except _DAMAGE as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ImageError(f"is damaged ({reason})", where=path, fix="Copy or export the photo again.") from error
    return rgb


def _refuse_other_formats(data: bytes, path: Path) -> None:
    """Name the formats a phone makes that cannot be read here (ISO 14496-12: brand of the `ftyp` box)."""
    if data[4:8] != b"ftyp":
        return
    brand = data[8:12]
    if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
        raise ImageError("is HEIC, which cannot be read here", where=path, fix="Export it as JPEG on the phone first.")
    if brand in (b"avif", b"avis"):
        raise ImageError("is AVIF, which cannot be read here", where=path, fix="Save it as JPEG or PNG first.")
    raise ImageError("is a film, not a photo", where=path, fix="Leave it out, or save a frame of it as JPEG.")


def _check_size(size: tuple[int, int], path: Path) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise ImageError(
            f"has more pixels than can be worked on ({width} x {height})", where=path, fix="Save it smaller first."
        )
    if min(width, height) < SMALLEST:
        raise ImageError(
            f"is {width} x {height} pixels; the shorter side needs at least {SMALLEST}",
            where=path,
            fix="Use a larger version of the photo.",
        )


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a photo whose EXIF is broken stays as it is stored."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _DAMAGE:
        orientation = None
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    return _to_srgb(image, profile) if profile else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Follow an embedded colour profile (wide-gamut phones, CMYK prints); one that doesn't fit is passed over."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).casefold():
            return image.convert("RGB")
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB")
    return image.convert("RGB") if converted is None else converted
