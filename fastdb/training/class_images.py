"""Class images: what the base model itself shows for the class, made before training changes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

from PIL import Image

from fastdb.images.photos import photos_in
from fastdb.inference.engine import Engine, Request
from fastdb.inference.pictures import parameters, png
from fastdb.sessions.session import Session
from fastdb.storage.durable import explained, make_folder, write_bytes
from fastdb.training.randomness import generator

NAME = "class-{number:04d}.png"
PATTERN = re.compile(r"class-(\d{4,})\.png")
STEPS = 20
GUIDANCE = 7.5


def class_images(
    session: Session,
    load_engine: Callable[[], Engine],
    progress: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> tuple[list[Path], list[str]]:
    """The session's class images, as many as its settings ask for; missing ones are generated.

    Pictures a person put into the folder count. Each generated one depends on the session's seed and
    its number alone, so an interrupted preparation goes on where it stopped; it returns early when
    `stopping()` says so. Those generated for another prompt, seed or size are set aside.

    Returns the images, and a line for what was set aside.

    Raises:
        StorageError: the folder cannot be written.
    """
    wanted, folder = session.config.prior.class_images, session.class_images
    if wanted == 0:
        return [], []
    session.check_there()
    make_folder(folder)
    said = _set_foreign_aside(session, folder)
    missing = wanted - len(photos_in(folder))
    if missing > 0:
        engine, number, done = load_engine(), 0, 0
        while done < missing and not stopping():
            number += 1
            path = folder / NAME.format(number=number)
            if not path.exists():
                request = _request(session, number)
                write_bytes(path, png(engine.generate(request)[0], parameters(request, request.seed)))
                done += 1
                progress(done, missing)
    return photos_in(folder)[:wanted], said


def _request(session: Session, number: int) -> Request:
    """What the base model is asked for the class image of a number."""
    size = session.config.resolution
    seed = generator(session.config.seed, "class", number).initial_seed() % 2**62
    return Request(session.class_prompt, seed=seed, steps=STEPS, guidance=GUIDANCE, width=size, height=size)


def _set_foreign_aside(session: Session, folder: Path) -> list[str]:
    """Move generated images that tell of another request than would be made now; a person's own stay."""
    foreign = []
    for path in photos_in(folder):
        number = PATTERN.fullmatch(path.name)
        if number is None:
            continue
        try:
            with Image.open(path) as picture:
                told = picture.info.get("parameters")
        except (OSError, SyntaxError):
            continue  # Not readable: said with its name when its latents are made.
        request = _request(session, int(number[1]))
        if told is not None and told != parameters(request, request.seed):
            foreign.append(path)
    if not foreign:
        return []
    aside = next(folder / f"set-aside-{n}" for n in count(1) if not (folder / f"set-aside-{n}").exists())
    with explained(aside):
        aside.mkdir()
        for path in foreign:
            path.rename(aside / path.name)
    return [f"{len(foreign)} class images of another prompt, seed or size were moved to {aside.name}"]
