"""Decoding of photos into upright RGB images."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from fastdb.errors import ImageError
from fastdb.images.photo_files import PNG_SIGNATURE, png_fault
from fastdb.storage.atomic_write import writing

READABLE = ("JPEG", "PNG", "WEBP", "BMP")
SMALLEST = 64
"""Minimum pixels on the shorter side; smaller photos have too little detail to learn from."""
MOST_PIXELS = 150_000_000
"""Maximum pixels; a larger photo would take over 600 MB while it is converted."""
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
"""Transposition that makes a stored image upright (EXIF 2.3, tag 0x0112)."""

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
"""Exceptions of Pillow's decoders on damaged files."""


def read_photo(path: Path) -> Image.Image:
    """Decode a JPEG, PNG, WebP or BMP file.

    Returns:
        An upright RGB image in sRGB, with white for transparency.

    Raises:
        ImageError: the file cannot be read, is damaged, of another format, too small or too large.
    """
    return load_photo(path)[1]


def load_photo(path: Path) -> tuple[bytes, Image.Image]:
    """Return a photo's bytes and its image as `read_photo` decodes it.

    Raises:
        ImageError: see `read_photo`.
    """
    data = _read_bytes(path)
    return data, _decode(data, path)


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image as PNG, replacing `path` atomically.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    with writing(path) as beside:
        image.save(beside, format="PNG")


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ImageError("the path is not a file", where=path, fix="Name a JPEG, PNG or WebP file.")
        if size > MOST_BYTES:
            raise ImageError(
                f"the file is too large ({size / 2**20:.0f} MiB)", where=path, fix="Save a smaller copy as JPEG."
            )
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"the file cannot be read ({error.strerror})", where=path, fix="Check the file, or remove the photo."
        ) from error
    if not data:
        raise ImageError("the file is empty (0 bytes)", where=path, fix="Copy the photo again.")
    return data


def _decode(data: bytes, path: Path) -> Image.Image:
    _refuse_other_formats(data, path)
    if data.startswith(PNG_SIGNATURE) and (fault := png_fault(data)):
        raise ImageError(f"the file {fault}", where=path, fix="Copy or export the photo again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # A photo is decoded or refused; Pillow's warnings add nothing.
            with Image.open(io.BytesIO(data), formats=READABLE) as opened:
                _check_size(opened.size, path)
                opened.load()
                upright = _upright(opened)
                rgb = _to_rgb(upright)
    except Image.DecompressionBombError as error:
        raise ImageError("the photo has too many pixels", where=path, fix="Save a smaller copy.") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            "the file is not a supported image", where=path, fix="Save it as JPEG or PNG, or remove it."
        ) from error
    except _DAMAGE as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ImageError(
            f"the file is damaged ({reason})", where=path, fix="Copy or export the photo again."
        ) from error
    return rgb


def _refuse_other_formats(data: bytes, path: Path) -> None:
    """Raise for HEIC, AVIF and videos.

    They are recognised by the brand in the `ftyp` box (ISO 14496-12).
    """
    if data[4:8] != b"ftyp":
        return
    brand = data[8:12]
    if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
        raise ImageError("HEIC is not supported", where=path, fix="Export the photo as JPEG on the phone.")
    if brand in (b"avif", b"avis"):
        raise ImageError("AVIF is not supported", where=path, fix="Save the photo as JPEG or PNG.")
    raise ImageError("the file is a video", where=path, fix="Remove it, or save a frame of it as JPEG.")


def _check_size(size: tuple[int, int], path: Path) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise ImageError(f"the photo has too many pixels ({width} x {height})", where=path, fix="Save a smaller copy.")
    if min(width, height) < SMALLEST:
        raise ImageError(
            f"the photo is too small ({width} x {height} pixels); the shorter side must have at least {SMALLEST}",
            where=path,
            fix="Use a larger version of the photo.",
        )


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, unless the EXIF data is damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _DAMAGE:
        orientation = None
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    return _to_srgb(image, profile) if profile else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply an embedded colour profile, unless it has another mode.

    Phones with a wide gamut and CMYK prints need this.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).casefold():
            return image.convert("RGB")
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB")
    return image.convert("RGB") if converted is None else converted
