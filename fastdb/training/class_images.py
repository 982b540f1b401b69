"""Class images: what the base model itself shows for the class, made before training changes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from PIL import Image

from fastdb.images.captions import read_caption
from fastdb.images.photo_files import photos_in
from fastdb.inference.engine import Engine, Request
from fastdb.inference.pictures import parameters, png
from fastdb.sessions.file_hashes import forget_files, record_files
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained, make_folder, write_bytes
from fastdb.training.randomness import generator

NAME = "class-{number:04d}.png"
PATTERN = re.compile(r"class-(\d{4,})\.png")


@dataclass(frozen=True)
class ClassImage:
    """A picture of the class, and the prompt it is trained with."""

    path: Path
    prompt: str


def class_images(
    session: Session,
    load_engine: Callable[[], Engine],
    progress: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> tuple[list[ClassImage], list[str]]:
    """The session's class images, as many as its settings ask for; missing ones are generated.

    Pictures a person put into the folder count; `<stem>.txt` beside one says what it shows, else the first
    prompt does. Each generated one is a function of the settings and its number alone, so an interrupted
    preparation goes on where it stopped; it returns early when `stopping()` says so. Those that other settings
    would make otherwise are set aside.

    Returns the images, and a line for what was set aside.

    Raises:
        StorageError: the folder cannot be written.
        ImageError: a caption is no UTF-8 text.
    """
    wanted, folder = session.config.prior.class_images, session.class_images
    if wanted == 0:
        return [], []
    session.check_there()
    make_folder(folder)
    said = _set_foreign_aside(session, folder)
    missing = wanted - len(_photos(folder))
    if missing > 0:
        free = (number for number in count(1) if not _path(folder, number).exists())
        _make(session, list(islice(free, missing)), load_engine(), progress, stopping)
    return [ClassImage(path, _prompt(session, path)) for path in _photos(folder)[:wanted]], said


def _photos(folder: Path) -> list[Path]:
    with explained(folder):
        return photos_in(folder, skip_copies=True)


def _make(
    session: Session,
    numbers: Sequence[int],
    engine: Engine,
    progress: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> None:
    """Generate the class images of `numbers`, in passes of a whole group each.

    How many are made at once touches a picture's last bits, and so does its place among them. So a number
    always has the same place in the same group, even where the rest of the group is not wanted.
    """
    size, done = group_size(session.config.resolution), 0
    for group in dict.fromkeys((number - 1) // size for number in numbers):
        if stopping():
            return
        whole = range(group * size + 1, (group + 1) * size + 1)
        requests = [_request(session, number) for number in whole]
        pictures = engine.generate_together(requests)
        for number, request, picture in zip(whole, requests, pictures, strict=True):
            if number in numbers:
                write_bytes(_path(session.class_images, number), png(picture, parameters(request, request.seed)))
                done += 1
                progress(done, len(numbers))
    record_files(session.path, [_path(session.class_images, number) for number in numbers])


def group_size(resolution: int) -> int:
    """How many class images of `resolution` x `resolution` pixels are made at once: 4 of 512 px, and at most 8."""
    return max(1, min(8, 4 * 512**2 // resolution**2))


def _path(folder: Path, number: int) -> Path:
    return folder / NAME.format(number=number)


def _request(session: Session, number: int) -> Request:
    """What the base model is asked for the class image of a number, counted from 1; prompts take turns."""
    prior, size, prompts = session.config.prior, session.config.resolution, session.class_prompts
    seed = generator(session.config.seed, "class", number).initial_seed() % 2**62
    prompt = prompts[(number - 1) % len(prompts)]
    return Request(prompt, seed=seed, steps=prior.steps, guidance=prior.guidance, width=size, height=size)


def _prompt(session: Session, path: Path) -> str:
    """The prompt a class image is trained with: its caption file's, else the one it was made with, else the first."""
    if caption := " ".join(read_caption(path.with_suffix(".txt")).split()):
        return caption
    made = _generated(path)
    return _request(session, made[0]).prompt if made else session.class_prompts[0]


def _generated(path: Path) -> tuple[int, str] | None:
    """The number of a generated class image, and how it says it was made.

    None for a person's own picture, one that says nothing, and one that cannot be read: that is told when its
    latents are made.
    """
    number = PATTERN.fullmatch(path.name)
    if number is None:
        return None
    try:
        with Image.open(path) as picture:
            told = picture.info.get("parameters")
    except (OSError, SyntaxError):
        return None
    return None if told is None else (int(number[1]), told)


def _set_foreign_aside(session: Session, folder: Path) -> list[str]:
    """Move generated images that tell of another request than would be made now; a person's own stay."""
    foreign = []
    for path in photos_in(folder):
        if made := _generated(path):
            request = _request(session, made[0])
            if made[1] != parameters(request, request.seed):
                foreign.append(path)
    if not foreign:
        return []
    aside = next(folder / f"set-aside-{n}" for n in count(1) if not (folder / f"set-aside-{n}").exists())
    with explained(aside):
        aside.mkdir()
        for path in foreign:
            path.rename(aside / path.name)
    forget_files(session.path, foreign)
    return [f"class images of another prompt or other settings were moved to {aside.name}: {len(foreign)}"]
