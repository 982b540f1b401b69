"""Class images: what the base model itself shows for the class, made before training changes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastdb.images.photos import photos_in
from fastdb.inference.engine import Engine, Request
from fastdb.inference.pictures import parameters, png
from fastdb.sessions.session import Session
from fastdb.storage.durable import write_bytes
from fastdb.training.randomness import generator

STEPS = 20
GUIDANCE = 7.5


def class_images(
    session: Session,
    load_engine: Callable[[], Engine],
    progress: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> list[Path]:
    """The session's class images, as many as its settings ask for; missing ones are generated.

    Pictures a person put into the folder count. Each generated one depends on the session's seed and
    its number alone, so an interrupted preparation goes on where it stopped; it returns early when
    `stopping()` says so.

    Raises:
        StorageError: the folder cannot be written.
    """
    wanted, folder = session.config.prior.class_images, session.class_images
    if wanted == 0:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    have = photos_in(folder)
    missing = wanted - len(have)
    if missing > 0:
        engine, number, done = load_engine(), 0, 0
        while done < missing and not stopping():
            number += 1
            path = folder / f"class-{number:04d}.png"
            if not path.exists():
                _make(session, engine, number, path)
                done += 1
                progress(done, missing)
        have = photos_in(folder)
    return have[:wanted]


def _make(session: Session, engine: Engine, number: int, path: Path) -> None:
    size = session.config.resolution
    seed = generator(session.config.seed, "class", number).initial_seed() % 2**62
    request = Request(prompt=session.class_prompt, seed=seed, steps=STEPS, guidance=GUIDANCE, width=size, height=size)
    write_bytes(path, png(engine.generate(request)[0], parameters(request, seed)))
