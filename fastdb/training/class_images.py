"""Class images, which the base model draws before training for prior preservation."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb.images.captions import read_caption
from fastdb.images.photo_files import photos_in
from fastdb.inference.pictures import parameters, png, recorded_parameters
from fastdb.inference.request import Request, group_size
from fastdb.reporting import Note, Progress
from fastdb.sessions.file_hashes import forget_files, record_files
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained, make_folder, write_bytes
from fastdb.storage.set_aside import move_aside
from fastdb.training.batches import generator

if TYPE_CHECKING:
    from fastdb.inference.engine import Engine

_NAME = "class-{number:04d}.png"
_PATTERN = re.compile(r"class-(\d{4,})\.png")


@dataclass(frozen=True)
class ClassImage:
    """A picture of the class and the prompt that it is trained with."""

    path: Path
    prompt: str


def class_images(
    session: Session,
    load_engine: Callable[[], Engine],
    progress: Progress,
    stopping: Callable[[], bool],
) -> tuple[list[ClassImage], Note | None]:
    """Return the session's class images, generating those that are missing.

    A person's own pictures in the folder count; their prompt is `<stem>.txt`, else the first prompt. Each generated
    image is a function of the settings and its number alone, so an interrupted generation continues. Images that the
    present settings would generate differently are moved to `set-aside-N`, which the note reports.

    Args:
        load_engine: called only if an image is missing.
        stopping: asked between passes whether to return early.

    Raises:
        StorageError: the folder cannot be written.
        ImageError: a caption is not UTF-8 text.
    """
    wanted, folder = session.config.prior.class_images, session.class_images
    if wanted == 0:
        return [], None
    session.check_there()
    make_folder(folder)
    note = _set_foreign_aside(session, folder)
    missing = wanted - len(_photos(folder))
    if missing > 0:
        free = (number for number in count(1) if not _path(folder, number).exists())
        _make(session, list(islice(free, missing)), load_engine(), progress, stopping)
    return [ClassImage(path, _prompt(session, path)) for path in _photos(folder)[:wanted]], note


def _photos(folder: Path) -> list[Path]:
    with explained(folder):
        return photos_in(folder, skip_copies=True)


def _make(
    session: Session,
    numbers: Sequence[int],
    engine: Engine,
    progress: Progress,
    stopping: Callable[[], bool],
) -> None:
    """Generate the class images of `numbers` in passes of whole groups.

    The size of a pass and the place in it change a picture's last bits. So a number always has the same place in the
    same group, even if the rest of the group is not needed.
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


def _path(folder: Path, number: int) -> Path:
    return folder / _NAME.format(number=number)


def _request(session: Session, number: int) -> Request:
    """Return the request for the class image of a number, counted from 1; prompts take turns."""
    prior, size, prompts = session.config.prior, session.config.resolution, session.class_prompts
    seed = generator(session.config.seed, "class", number).initial_seed() % 2**62
    prompt = prompts[(number - 1) % len(prompts)]
    return Request(prompt, seed=seed, steps=prior.steps, guidance=prior.guidance, width=size, height=size)


def _prompt(session: Session, path: Path) -> str:
    """Return a class image's prompt from its caption file, else from its generation, else the first prompt."""
    if caption := " ".join(read_caption(path.with_suffix(".txt")).split()):
        return caption
    made = _generated(path)
    return _request(session, made[0]).prompt if made else session.class_prompts[0]


def _generated(path: Path) -> tuple[int, str] | None:
    """Return the number of a generated class image and its recorded parameters.

    None for a person's own picture, a picture without parameters and an unreadable picture, which raises an error when
    its latents are made.
    """
    number = _PATTERN.fullmatch(path.name)
    if number is None:
        return None
    recorded = recorded_parameters(path)
    return None if recorded is None else (int(number[1]), recorded)


def _set_foreign_aside(session: Session, folder: Path) -> Note | None:
    """Move generated images of another request than the present settings make; a person's own pictures stay."""
    foreign = []
    for path in photos_in(folder):
        if made := _generated(path):
            request = _request(session, made[0])
            if made[1] != parameters(request, request.seed):
                foreign.append(path)
    aside = move_aside(folder, foreign)
    if aside is None:
        return None
    forget_files(session.path, foreign)
    return Note("class images set aside", aside.name, str(len(foreign)))
