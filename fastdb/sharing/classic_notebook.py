"""The folder of a session of the classic fast-DreamBooth notebook, read and never changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastdb.errors import ImageError
from fastdb.images.captions import prompt_from_name, read_caption
from fastdb.images.crop import choose_crop, crop_square
from fastdb.images.intake import Intake, add_photos
from fastdb.images.photo_files import photos_in
from fastdb.images.photos import read_photo, save_png
from fastdb.reporting import Progress
from fastdb.sharing.untrusted_zip import opened
from fastdb.storage.atomic_write import explained, write_text

IMAGES, CAPTIONS, CONCEPT = "instance_images", "captions", "concept_images"


@dataclass(frozen=True)
class ClassicSession:
    """What a classic session's folder holds."""

    folder: Path
    photos: tuple[Path, ...]
    concept_images: tuple[Path, ...]
    models: tuple[Path, ...]
    """What was trained in it: `<name>.ckpt`, `<name>_step_<N>.ckpt`."""


def read_classic(folder: Path) -> ClassicSession:
    """Look into a classic session's folder.

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


def only_zipped(folder: Path) -> bool:
    """Whether a classic session has its instance images in `instance_images.zip` alone.

    Raises:
        StorageError: it cannot be read.
    """
    with explained(folder):
        return not _photos(folder / IMAGES) and (folder / f"{IMAGES}.zip").is_file()


def unzipped(folder: Path, into: Path) -> None:
    """Unpack the instance images and captions that a classic session has in zips into the folders of a new one; what
    lies beside the zips as files is copied.

    Raises:
        SessionError: a zip does what none of pictures does, or is damaged.
        StorageError: a disk is full or failing.
    """
    with explained(folder):
        for name in (IMAGES, CAPTIONS):
            (into / name).mkdir(parents=True)
            if (folder / f"{name}.zip").is_file():
                with opened(folder / f"{name}.zip") as archive:
                    within = all(member.name.startswith(f"{name}/") for member in archive.members)
                    archive.unpack(archive.members, into / name, f"{name}/" if within else "")
        for path in (folder / CAPTIONS).glob("*.txt"):
            if path.is_file() and not (into / CAPTIONS / path.name).exists():
                (into / CAPTIONS / path.name).write_bytes(path.read_bytes())


def _photos(folder: Path) -> list[Path]:
    return [path for path in photos_in(folder) if not path.is_symlink()] if folder.is_dir() else []


def add_classic(
    classic: ClassicSession,
    originals: Path,
    instance_images: Path,
    captions: Path,
    size: int,
    progress: Progress | None = None,
) -> tuple[Intake, list[str]]:
    """Take a classic session's instance images and captions into a session's folders; squares stay as they are.

    A caption lies in `captions/`, or in the oldest sessions beside its image. `size` is in pixels.

    Returns what became of each photo, and a line for each caption that could not be read.

    Raises:
        StorageError: a folder cannot be written.
        ImageError: the face detector asked for cannot be used.
    """
    intake = add_photos(originals, instance_images, captions, classic.photos, size, progress, keep_squares=True)
    said = []
    for added in intake.added:
        path = classic.folder / CAPTIONS / f"{added.source.stem}.txt"
        try:
            caption = read_caption(path)
        except ImageError as error:
            said.append(f"caption left out: {path.name}: {error.what}")
            continue
        if caption:
            write_text(captions / f"{added.name}.txt", caption + "\n")
    return intake, said


def add_concept_images(classic: ClassicSession, class_images: Path, size: int) -> int:
    """Take a classic session's concept images as class images of `size` pixels, each with what its name says as its
    caption; those that cannot be read are passed over. Returns how many came in.

    Raises:
        StorageError: the folder cannot be written.
        ImageError: the face detector asked for cannot be used.
    """
    come = 0
    for path in classic.concept_images:
        try:
            image = read_photo(path)
        except ImageError:
            continue
        crop = choose_crop(image, size=size, keep_square=True)
        come += 1
        stem = f"concept-{come:04d}"
        if said := prompt_from_name(path.stem):
            write_text(class_images / f"{stem}.txt", said + "\n")
        save_png(crop_square(image, crop, size), class_images / f"{stem}.png")
    return come
