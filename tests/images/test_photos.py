"""Photos as phones, scanners and web pages write them."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from fastdb.errors import ImageError
from fastdb.images.photo_files import find_photos
from fastdb.images.photos import read_photo

Gallery = Callable[[str], Image.Image]


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean distance of two images of the same size, in levels of 255."""
    assert a.mode == b.mode == "RGB"
    assert a.size == b.size
    return float(np.abs(np.asarray(a, dtype=np.int16) - np.asarray(b, dtype=np.int16)).mean())


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand, for kinds Pillow reads but does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def test_folders_are_listed_in_natural_order_without_other_files(tmp_path: Path) -> None:
    names = ["img10.jpg", "img2.JPG", "img1.webp", "Img3.png", ".hidden.jpg", "img2.txt", "notes.pdf", "._img2.jpg"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "deeper.jpg").mkdir()
    (tmp_path / "deeper.jpg" / "inside.jpg").touch()
    assert [path.name for path in find_photos([tmp_path])] == ["img1.webp", "img2.JPG", "Img3.png", "img10.jpg"]


def test_files_are_listed_as_given_and_once(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.jpg", "odd.dat"):
        (tmp_path / name).touch()
    given = [tmp_path / "odd.dat", tmp_path / "b.jpg", tmp_path]
    assert [path.name for path in find_photos(given)] == ["odd.dat", "b.jpg", "a.jpg"]


def test_missing_photos_are_reported_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(ImageError, match=r"the folder contains no photos. Add JPEG"):
        find_photos([tmp_path])
    with pytest.raises(ImageError, match=r"there is no such file or folder. Check"):
        find_photos([tmp_path / "missing.jpg"])
    with pytest.raises(ImageError, match="cannot be read"):
        find_photos([tmp_path / ("x" * 300)])
    with pytest.raises(ImageError, match="no photos were given"):
        find_photos([])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(orientation: int, gallery: Gallery, tmp_path: Path) -> None:
    upright = gallery("coffee")
    stored = {
        1: lambda im: im,
        2: lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda im: im.rotate(180),
        4: lambda im: im.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(90, expand=True),
        6: lambda im: im.rotate(90, expand=True),
        7: lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(-90, expand=True),
        8: lambda im: im.rotate(-90, expand=True),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, options in (("a.jpg", {"quality": 95}), ("a.png", {}), ("a.webp", {"lossless": True})):
        stored.save(tmp_path / name, exif=exif, **options)
        assert difference(read_photo(tmp_path / name), upright) < 4, name


def test_damaged_exif_data_is_ignored(gallery: Gallery, tmp_path: Path) -> None:
    gallery("coffee").save(tmp_path / "a.jpg", exif=b"Exif\0\0" + b"MM\0*" + b"\xff" * 30)
    assert read_photo(tmp_path / "a.jpg").size == (600, 400)


def test_every_kind_of_transparency_becomes_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (100, 80), (200, 30, 30, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 50, 80))
    clear.paste((0, 0, 0, 128), (0, 60, 50, 80))
    grey = Image.merge("LA", (Image.new("L", (100, 80), 10), clear.getchannel("A")))
    palette = Image.new("P", (100, 80), 7)
    palette.putpalette([200, 30, 30] * 256)
    clear.save(tmp_path / "rgba.png")
    clear.save(tmp_path / "rgba.webp", lossless=True, exact=True)
    grey.save(tmp_path / "la.png")
    palette.save(tmp_path / "p.png", transparency=7)
    Image.new("RGB", (100, 80), (1, 2, 3)).save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    for name in ("rgba.png", "rgba.webp", "la.png", "p.png", "rgb.png"):
        photo = read_photo(tmp_path / name)
        assert (photo.mode, photo.getpixel((90, 10))) == ("RGB", (255, 255, 255)), name
    assert read_photo(tmp_path / "rgba.png").getpixel((10, 10)) == (0, 0, 255)
    assert read_photo(tmp_path / "rgba.png").getpixel((10, 70)) == (127, 127, 127)


def test_grey_palette_and_bilevel_images_are_decoded(gallery: Gallery, tmp_path: Path) -> None:
    photo = gallery("coffee")
    grey = photo.convert("L")
    grey.save(tmp_path / "l.jpg", quality=95)
    assert difference(read_photo(tmp_path / "l.jpg"), grey.convert("RGB")) < 2
    photo.quantize(256).save(tmp_path / "p.png")
    assert difference(read_photo(tmp_path / "p.png"), photo) < 8
    photo.save(tmp_path / "a.bmp")
    assert difference(read_photo(tmp_path / "a.bmp"), photo) == 0
    grey.convert("1").save(tmp_path / "1.png")
    assert set(np.unique(np.asarray(read_photo(tmp_path / "1.png")))) == {0, 255}


def test_16_bit_images_keep_their_levels(gallery: Gallery, tmp_path: Path) -> None:
    photo = gallery("coffee")
    grey = np.asarray(photo.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey.png")
    assert np.array_equal(np.asarray(read_photo(tmp_path / "grey.png"))[:, :, 1], grey)
    deep = (np.asarray(photo).astype(">u2") * 257).tobytes()
    rows = b"".join(b"\0" + deep[at : at + 600 * 6] for at in range(0, len(deep), 600 * 6))
    (tmp_path / "rgb.png").write_bytes(png(600, 400, 16, 2, rows))
    assert difference(read_photo(tmp_path / "rgb.png"), photo) == 0


def test_cmyk_is_decoded_without_inversion(gallery: Gallery, tmp_path: Path) -> None:
    photo = gallery("coffee")
    photo.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert difference(read_photo(tmp_path / "cmyk.jpg"), photo) < 4


def test_an_embedded_colour_profile_is_applied(gallery: Gallery, tmp_path: Path) -> None:
    """A phone's wide-gamut photo came out pale when its profile was passed over."""
    photo = gallery("coffee")
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    photo.save(tmp_path / "same.png", icc_profile=srgb.tobytes())
    assert difference(read_photo(tmp_path / "same.png"), photo) == 0
    photo.save(tmp_path / "misfit.png", icc_profile=ImageCms.ImageCmsProfile(lab).tobytes())
    assert difference(read_photo(tmp_path / "misfit.png"), photo) == 0
    photo.save(tmp_path / "garbage.png", icc_profile=b"not a profile")
    assert difference(read_photo(tmp_path / "garbage.png"), photo) == 0
    swapped = bytearray(srgb.tobytes())  # red's and blue's places exchanged, under another description
    tags = {
        swapped[at : at + 4].decode(): at for at in range(132, 132 + 12 * struct.unpack(">I", swapped[128:132])[0], 12)
    }
    swapped[tags["rXYZ"] : tags["rXYZ"] + 4], swapped[tags["bXYZ"] : tags["bXYZ"] + 4] = b"bXYZ", b"rXYZ"
    named = bytes(swapped).replace("sRGB".encode("utf-16-be"), "xxxx".encode("utf-16-be")).replace(b"sRGB", b"xxxx")
    photo.save(tmp_path / "swapped.png", icc_profile=named)
    red, green, blue = photo.split()
    assert difference(read_photo(tmp_path / "swapped.png"), Image.merge("RGB", (blue, green, red))) < 3


def jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()


def test_damaged_and_unsupported_files_are_refused_in_one_line(gallery: Gallery, tmp_path: Path) -> None:
    whole = jpeg(gallery("coffee"))
    huge = png(60_000, 60_000, 8, 2, b"\0" * 100)
    large = png(15_000, 11_000, 8, 2, b"\0" * 100)
    bomb_text = png(100, 100, 8, 0, b"\0" * 10_100, (b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 2**24)))
    bad = {
        "empty.jpg": (b"", "is empty"),
        "half.jpg": (whole[: len(whole) // 2], "is damaged.*truncated"),
        "stub.jpg": (whole[:10], "is not a supported image|is damaged"),
        "text.jpg": (b"hello, I am a letter\n" * 50, "is not a supported image"),
        "page.png": (b"<!DOCTYPE html><html>404</html>", "is not a supported image"),
        "half.png": (png(100, 100, 8, 2, b"\0" * 30_100)[:60], "is damaged|is not a supported image"),
        "huge.png": (huge, "too many pixels. Save a smaller"),
        "large.png": (large, r"too many pixels \(15000 x 11000\)"),
        "text bomb.png": (bomb_text, "is damaged"),
        "phone.heic": (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99,
            "HEIC is not supported. Export",
        ),
        "web.avif": (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + b"\0" * 99, "AVIF is not supported"),
        "clip.jpg": (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\0" * 99, "is a video"),
        "tiny.jpg": (jpeg(Image.new("RGB", (900, 63))), r"900 x 63 pixels\); the shorter side must have at least 64"),
    }
    for name, (data, reason) in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=reason) as caught:
            read_photo(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value), name
        assert caught.value.fix, name
    assert len(bad) == 13
    with pytest.raises(ImageError, match="cannot be read"):
        read_photo(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="is not a file"):
        read_photo(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="is not a file"):
        read_photo(tmp_path / "pipe.jpg")


def test_the_minimum_size_is_accepted(tmp_path: Path) -> None:
    Image.new("RGB", (64, 65)).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").size == (64, 65)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_random_damage_gives_an_image_or_a_refusal(kind: str, gallery: Gallery, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    gallery("coffee").resize((120, 80)).save(buffer, kind, **({} if kind == "BMP" else {"exif": exif}))
    dice = random.Random(7)
    refused = 0
    for _ in range(300):
        data = bytearray(buffer.getvalue())
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(min(len(data), 400))] = dice.randrange(256)
        (tmp_path / "a").write_bytes(data[: dice.choice([len(data), dice.randrange(1, len(data))])])
        try:
            assert read_photo(tmp_path / "a").mode == "RGB"
        except ImageError:
            refused += 1
    assert 30 < refused <= 300
