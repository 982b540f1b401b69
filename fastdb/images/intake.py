"""Photos come in: the untouched file is kept, a square of it goes to training, its caption goes beside."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from PIL import Image

from fastdb.errors import ImageError
from fastdb.images.captions import instance_prompt, read_caption, subject_of
from fastdb.images.crop import Crop, choose_crop, crop_square
from fastdb.images.faces import face_detector
from fastdb.images.photos import decode_photo, own_photos_in, photo_bytes, photos_in
from fastdb.storage.atomic_write import explained, write_bytes, write_text, writing
from fastdb.storage.safe_names import fit_stem

LONGEST_NAME = 200
"""Bytes of a file name that every disk and Drive takes, with room for what is put around it."""


@dataclass(frozen=True)
class Added:
    """A photo that came in: its instance image's stem, the file it came from and the square taken."""

    name: str
    source: Path
    crop: Crop


@dataclass(frozen=True)
class Refused:
    """A photo that did not come in, and why in one line."""

    source: Path
    reason: str


@dataclass(frozen=True)
class Intake:
    """What became of every photo, in the order given."""

    added: tuple[Added, ...]
    refused: tuple[Refused, ...]


@dataclass(frozen=True)
class InstanceImage:
    """A picture to train on, the whole prompt that goes with it, and what is left of that without its caption."""

    path: Path
    prompt: str
    bare: str


@dataclass(frozen=True)
class _Folders:
    originals: Path
    instance_images: Path
    captions: Path


def add_photos(
    originals: Path,
    instance_images: Path,
    captions: Path,
    photos: Sequence[Path],
    size: int,
    progress: Callable[[int, int, str], None] | None = None,
    *,
    keep_squares: bool = False,
) -> Intake:
    """Take photos into a session's three folders; a bad one is refused with its reason and the others go on.

    A photo becomes `originals/<name>` byte for byte, `instance_images/<stem>.png` of `size` x `size` pixels
    and, when `<stem>.txt` lies beside it, `captions/<stem>.txt`. The same photo again takes its own place; a
    different one of the same stem is named `<stem> (2)`. The instance image is written last, so a photo cut
    off midway is not yet trained on and comes in whole the next time.

    Args:
        keep_squares: a photo that is square already is taken whole, as somebody has cropped it.
        progress: called after each photo with how many are done, how many there are, and the photo's name.

    Raises:
        StorageError: a folder cannot be written.
        ImageError: the face detector asked for cannot be used.
    """
    face_detector()  # what is wrong with it is said once, not once per photo
    folders = _Folders(originals, instance_images, captions)
    for folder in (originals, instance_images, captions):
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
    added: list[Added] = []
    refused: list[Refused] = []
    for done, photo in enumerate(photos, start=1):
        try:
            added.append(_add(folders, photo, size, keep_squares))
        except ImageError as error:
            refused.append(Refused(photo, f"{error.what}. {error.fix}".strip()))
        if progress is not None:
            progress(done, len(photos), photo.name)
    return Intake(tuple(added), tuple(refused))


def instance_images_of(instance_images: Path, captions: Path | None, template: str | None) -> list[InstanceImage]:
    """The pictures to train on with their prompts, in natural order, whoever put them into the folder.

    Args:
        captions: the folder of caption files, or None to leave them out.
        template: the whole instance prompt, or None for the name of each picture.

    Raises:
        ImageError: there are none, a caption is no UTF-8 text, or a prompt would be empty.
    """
    with explained(instance_images):
        found = own_photos_in(instance_images) if instance_images.is_dir() else []
    if not found:
        raise ImageError(
            "holds no instance images", where=instance_images, fix="Run add-images with some photos first."
        )
    said = {path: read_caption(captions / f"{path.stem}.txt") if captions else "" for path in found}
    images = []
    for path, caption in said.items():
        prompt = instance_prompt(path.stem, caption, template)
        # A caption that follows nothing is the prompt, and stays.
        images.append(InstanceImage(path, prompt, subject_of(path.stem, template) or prompt))
    return images


def _add(folders: _Folders, photo: Path, size: int, keep_squares: bool) -> Added:
    data = photo_bytes(photo)
    image = decode_photo(data, photo)
    beside = photo.with_suffix(".txt")
    caption = read_caption(beside) if beside.exists() else None
    whole = keep_squares and image.width == image.height
    crop = Crop(0, 0, image.width, "already square") if whole else choose_crop(image, size=size)
    wanted = _safe_stem(photo)
    with explained(folders.originals):
        stem, known = _place(folders, wanted, data)
    if not known:
        write_bytes(folders.originals / f"{stem}{photo.suffix}", data)
    if caption is not None:
        write_text(folders.captions / f"{stem}.txt", caption + "\n")
    save_png(crop_square(image, crop, size), folders.instance_images / f"{stem}.png")
    return Added(stem, photo, crop)


def save_png(image: Image.Image, path: Path) -> None:
    """Replace `path` by `image` as PNG, whole or not at all.

    Raises:
        StorageError: see `durable.writing`.
    """
    with writing(path) as beside:
        image.save(beside, format="PNG")


def _safe_stem(photo: Path) -> str:
    """The photo's stem as it will be used: one that every disk takes, and that Macs and Drive mean alike.

    Raises:
        ImageError: no disk would take the name.
    """
    try:
        stem = fit_stem(photo.stem)
        length = len(f"{stem}{photo.suffix}".encode())
    except UnicodeEncodeError as error:
        raise ImageError("the file's name is not text", where=ascii(photo.name), fix="Rename the photo.") from error
    if length > LONGEST_NAME:
        raise ImageError("the file's name is too long", where=photo, fix="Give the photo a shorter name.")
    return stem


def _place(folders: _Folders, wanted: str, data: bytes) -> tuple[str, bool]:
    """The stem a photo gets, and whether its very bytes are among the originals under it already.

    It is the first of `wanted`, `wanted (2)` and so on that is free or belongs to the same photo.
    """
    taken = _stems(folders.instance_images)
    kept = _stems(folders.originals)
    for number in count(1):
        stem = wanted if number == 1 else f"{wanted} ({number})"
        namesakes = kept.get(stem.casefold(), [])
        for path in namesakes:
            if path.stat().st_size == len(data) and path.read_bytes() == data:
                return path.stem, True
        if not namesakes and stem.casefold() not in taken:
            return stem, False
    raise AssertionError("numbers do not end")


def _stems(folder: Path) -> dict[str, list[Path]]:
    """The folder's pictures by stem, whatever the case: some disks take `Cup` and `cup` for one name."""
    stems: dict[str, list[Path]] = {}
    for path in photos_in(folder):
        stems.setdefault(unicodedata.normalize("NFC", path.stem).casefold(), []).append(path)
    return stems
