"""Sessions of the classic fast-DreamBooth notebook, which are never changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastdb.errors import ImageError
from fastdb.images.captions import prompt_from_name, read_caption
from fastdb.images.crop import choose_crop, crop_square
from fastdb.images.intake import Intake, add_photos
from fastdb.images.photo_files import photos_in
from fastdb.images.photos import read_photo, save_png
from fastdb.reporting import Note, Progress
from fastdb.sharing.untrusted_zip import opened
from fastdb.storage.atomic_write import explained, write_text

IMAGES, CAPTIONS, CONCEPT = "instance_images", "captions", "concept_images"


@dataclass(frozen=True)
class ClassicSession:
    """Content of a classic session's folder."""

    folder: Path
    photos: tuple[Path, ...]
    concept_images: tuple[Path, ...]
    models: tuple[Path, ...]
    """Trained models: `<name>.ckpt`, `<name>_step_<N>.ckpt`."""


def read_classic(folder: Path) -> ClassicSession:
    """Return the content of a classic session's folder.

    Raises:
        ImageError: it has no instance images.
        StorageError: it cannot be read.
    """
    with explained(folder):
        photos = _photos(folder / IMAGES)
        if not photos:
            raise ImageError(
                "this session of the classic notebook has no instance images",
                where=folder,
                fix=f"Put its photos into {IMAGES}.",
            )
        models = sorted(path for path in folder.iterdir() if path.suffix == ".ckpt" and path.is_file())
        return ClassicSession(folder, tuple(photos), tuple(_photos(folder / CONCEPT)), tuple(models))


def extract_zips(folder: Path, into: Path) -> bool:
    """Extract instance images and captions into `into` if a classic session has its images only in a zip.

    Captions outside the zips are copied.

    Returns:
        Whether it has.

    Raises:
        SessionError: a zip is unsafe or damaged.
        StorageError: a disk is full or failing.
    """
    with explained(folder):
        if _photos(folder / IMAGES) or not (folder / f"{IMAGES}.zip").is_file():
            return False
        for name in (IMAGES, CAPTIONS):
            (into / name).mkdir(parents=True)
            if (folder / f"{name}.zip").is_file():
                with opened(folder / f"{name}.zip") as archive:
                    within = all(member.name.startswith(f"{name}/") for member in archive.members)
                    archive.unpack(archive.members, into / name, f"{name}/" if within else "")
        for path in (folder / CAPTIONS).glob("*.txt"):
            if path.is_file() and not (into / CAPTIONS / path.name).exists():
                (into / CAPTIONS / path.name).write_bytes(path.read_bytes())
    return True


def _photos(folder: Path) -> list[Path]:
    return [path for path in photos_in(folder) if not path.is_symlink()] if folder.is_dir() else []


def add_classic(
    classic: ClassicSession,
    originals: Path,
    instance_images: Path,
    captions: Path,
    size: int,
    progress: Progress | None = None,
) -> tuple[Intake, list[Note]]:
    """Import a classic session's instance images and captions into a session's folders, square images uncropped.

    A caption is in `captions/`, or in the oldest sessions beside its image. `size` is in pixels.

    Returns:
        The imported photos, and a note for each caption that cannot be read.

    Raises:
        StorageError: a folder cannot be written.
        ImageError: the requested face detector is unavailable.
    """
    intake = add_photos(originals, instance_images, captions, classic.photos, size, progress, keep_squares=True)
    notes = []
    for added in intake.added:
        path = classic.folder / CAPTIONS / f"{added.source.stem}.txt"
        try:
            caption = read_caption(path)
        except ImageError as error:
            notes.append(Note("file skipped", path.name, error.what))
            continue
        if caption:
            write_text(captions / f"{added.name}.txt", caption + "\n")
    return intake, notes


def add_concept_images(classic: ClassicSession, class_images: Path, size: int) -> int:
    """Import a classic session's concept images as class images of `size` pixels, and return their number.

    The caption is made from the file name. Images that cannot be read are skipped.

    Raises:
        StorageError: the folder cannot be written.
        ImageError: the requested face detector is unavailable.
    """
    imported = 0
    for path in classic.concept_images:
        try:
            image = read_photo(path)
        except ImageError:
            continue
        crop = choose_crop(image, size=size, keep_square=True)
        imported += 1
        stem = f"concept-{imported:04d}"
        if prompt := prompt_from_name(path.stem):
            write_text(class_images / f"{stem}.txt", prompt + "\n")
        save_png(crop_square(image, crop, size), class_images / f"{stem}.png")
    return imported
