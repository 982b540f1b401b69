"""Import of photos into a session as originals, square crops and captions."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from fastdb.errors import ImageError
from fastdb.images.captions import read_caption
from fastdb.images.crop import Crop, choose_crop, crop_square
from fastdb.images.faces import face_detector
from fastdb.images.photo_files import photos_in
from fastdb.images.photos import load_photo, save_png
from fastdb.reporting import Progress
from fastdb.storage.atomic_write import explained, write_bytes, write_text
from fastdb.storage.safe_names import fit_stem

LONGEST_NAME = 200
"""Maximum bytes of a file name, so that temporary names stay within the 255 of most disks."""


@dataclass(frozen=True)
class Added:
    """An imported photo with its new stem, source and crop."""

    name: str
    source: Path
    crop: Crop


@dataclass(frozen=True)
class Refused:
    """A photo that could not be imported, and the reason."""

    source: Path
    reason: str


@dataclass(frozen=True)
class Intake:
    """The imported and refused photos, each in the order given."""

    added: tuple[Added, ...]
    refused: tuple[Refused, ...]
    known: tuple[str, ...] = ()
    """Stems of photos that were imported before and stay as they are."""


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
    progress: Progress | None = None,
    *,
    keep_squares: bool = False,
    again: Collection[Path] = (),
) -> Intake:
    """Import photos into a session's three folders.

    Unusable photos are refused, each with its reason. A photo becomes `originals/<name>`, byte for byte,
    `instance_images/<stem>.png` of `size` x `size` pixels and, if `<stem>.txt` lies beside it, `captions/<stem>.txt`.
    A photo that was imported before with the same caption stays as it is, with the crop that somebody may have edited;
    another photo with the same stem becomes `<stem> (2)`. The instance image is written last, so that an interrupted
    import is not trained on and is completed by the next.

    Args:
        originals: folder of the unchanged files.
        instance_images: folder of the crops.
        captions: folder of the captions.
        photos: the files to import.
        size: pixels per side of the crops.
        progress: called with the photos done and their total.
        keep_squares: use square photos whole, since somebody has cropped them.
        again: those of the photos to crop again that were imported before.

    Raises:
        StorageError: a folder cannot be written.
        ImageError: the configured face detector cannot be used.
    """
    face_detector()  # raises now instead of refusing every photo for the same reason
    folders = _Folders(originals, instance_images, captions)
    for folder in (originals, instance_images, captions):
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
    added: list[Added] = []
    refused: list[Refused] = []
    known: list[str] = []
    for done, photo in enumerate(photos, start=1):
        try:
            result = _add(folders, photo, size, keep_squares, photo in again)
            if isinstance(result, Added):
                added.append(result)
            else:
                known.append(result)
        except ImageError as error:
            refused.append(Refused(photo, f"{error.what}. {error.fix}".strip()))
        if progress is not None:
            progress(done, len(photos))
    return Intake(tuple(added), tuple(refused), tuple(known))


def would_change(originals: Path, instance_images: Path, captions: Path, photos: Sequence[Path]) -> list[Path]:
    """Return the photos that an import would add, or whose caption it would change; others were imported before.

    Raises:
        StorageError: a file cannot be read.
    """
    folders = _Folders(originals, instance_images, captions)
    changing = []
    for photo in photos:
        with explained(photo):
            stem, known = _place(folders, _safe_stem(photo), photo.read_bytes())
        beside, present = photo.with_suffix(".txt"), captions / f"{stem}.txt"
        caption = read_caption(beside) if beside.exists() else None
        if not known or (caption is not None and not (present.exists() and caption == read_caption(present))):
            changing.append(photo)
    return changing


def _add(folders: _Folders, photo: Path, size: int, keep_squares: bool, again: bool) -> Added | str:
    """Import a photo; return its stem if it was imported before and stays as it is."""
    data, image = load_photo(photo)
    beside = photo.with_suffix(".txt")
    caption = read_caption(beside) if beside.exists() else None
    wanted = _safe_stem(photo)
    with explained(folders.originals):
        stem, known = _place(folders, wanted, data)
        unchanged = caption is None or caption == read_caption(folders.captions / f"{stem}.txt")
        if known and unchanged and not again and (folders.instance_images / f"{stem}.png").exists():
            return stem
    crop = choose_crop(image, size=size, keep_square=keep_squares)
    if not known:
        write_bytes(folders.originals / f"{stem}{photo.suffix}", data)
    if caption is not None:
        write_text(folders.captions / f"{stem}.txt", caption + "\n")
    save_png(crop_square(image, crop, size), folders.instance_images / f"{stem}.png")
    return Added(stem, photo, crop)


def _safe_stem(photo: Path) -> str:
    """Return the photo's stem in a form that every disk accepts.

    Raises:
        ImageError: the name is too long or not text.
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
    """Return a photo's new stem, and whether its bytes are already there.

    The stem is the first of `wanted`, `wanted (2)` and so on that is free or belongs to the same photo.
    """
    taken = _stems(folders.instance_images)
    kept = _stems(folders.originals)
    for number in count(1):
        stem = wanted if number == 1 else f"{wanted} ({number})"
        same_stem = kept.get(stem.casefold(), [])
        for path in same_stem:
            if path.stat().st_size == len(data) and path.read_bytes() == data:
                return path.stem, True
        if not same_stem and stem.casefold() not in taken:
            return stem, False
    raise AssertionError("numbers do not end")


def _stems(folder: Path) -> dict[str, list[Path]]:
    """Return a folder's photos by case-folded stem.

    `Cup` and `cup` are the same name on some disks.
    """
    stems: dict[str, list[Path]] = {}
    for path in photos_in(folder):
        stems.setdefault(unicodedata.normalize("NFC", path.stem).casefold(), []).append(path)
    return stems
