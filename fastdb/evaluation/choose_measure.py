"""Choice of the measure and the prompts of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastdb.downloads.encoders import cached_encoder, fetch_encoder
from fastdb.errors import ImageError, ModelError
from fastdb.evaluation.options import Options
from fastdb.evaluation.prompts import Protocol, custom_protocol, default_protocol, drawn_protocol
from fastdb.images.photo_files import photos_in
from fastdb.images.photos import read_photo
from fastdb.inference.pictures import recorded_parameters
from fastdb.measures.shots import contains
from fastdb.measures.values import Measure, Unmeasured
from fastdb.measures.words import words_of
from fastdb.models.diffusers_folder import BaseModel
from fastdb.models.registry import MINI
from fastdb.reporting import Note, Report, argument, format_bytes
from fastdb.runtime.device import choose_device
from fastdb.sessions.session import Session

_MOST_CLASS_IMAGES = 100


def choose_measure(session: Session, base: BaseModel, options: Options, report: Report) -> tuple[Measure, Protocol]:
    """Return the measure and its prompts. Runs before anything is drawn so that errors come at once.

    Nothing is measured if CLIP is neither on this machine nor can be downloaded.

    Raises:
        ImageError: there are no instance images, or one cannot be read.
        ModelError: a model that was named cannot be loaded.
    """
    words, photos = words_of(session), photos_in(session.instance_images)
    if not photos:
        raise ImageError("there are no instance images to compare with", where=session.name, fix="Add photos first.")
    images = [read_photo(path) for path in photos]
    seeds = (options.seeds, options.first_seed)
    custom = custom_protocol(options.prompts, words, *seeds) if options.prompts else None
    # A model that is named is wanted.
    on_mini = session.record.base_model.folder == MINI and options.clip is None and options.dino is None
    if options.measure == "drawn" or (options.measure == "auto" and on_mini):
        from fastdb.measures.drawn import Drawn, autoencoder, class_of

        shape = class_of(images, words.class_word)
        drawn = Drawn(images, shape, autoencoder(base.folder))
        if drawn.subject is None:
            report.note(Note("photos not drawn", session.name))
        elif faint := drawn.faint_regions():
            report.note(Note("faint regions", ", ".join(faint)))
        return drawn, custom or drawn_protocol(words, shape, *seeds)
    from fastdb.measures.clip_dino import Likeness
    from fastdb.measures.encoders import CLIP, DINO, Clip, Dino

    protocol, device = custom or default_protocol(words, *seeds), choose_device().kind
    try:
        clip = Clip(options.clip or _encoder(CLIP, report), device)
    except ModelError as error:
        if options.clip is not None:
            fix = f"{error.fix.rstrip('.')}, or export without an evaluation: fastdb export {argument(session.name)}"
            raise ModelError(error.what, where=error.where, fix=fix) from error
        report.note(Note("CLIP missing", argument(session.name), error.problem))
        return Unmeasured(), protocol
    try:
        dino = Dino(options.dino or _encoder(DINO, report), device)
    except ModelError as error:
        if options.dino is not None:
            raise
        report.note(Note("DINO missing", DINO[0], error.problem))
        dino = None
    class_images = _class_images(session, words.class_word)
    return Likeness(clip, dino, images, words.token, [read_photo(path) for path in class_images]), protocol


def _encoder(names: Sequence[str], report: Report) -> str:
    """Return the folder of a model that measures pictures, downloaded if it is not cached; its size is reported first.

    Raises:
        ModelError: it cannot be downloaded.
    """
    if (folder := cached_encoder(names)) is not None:
        return str(folder)
    with report.progress("measuring model", "B") as update:
        return str(
            fetch_encoder(
                names, lambda name, size: report.note(Note("measuring model", name, format_bytes(size))), update
            )
        )


def _class_images(session: Session, class_word: str) -> list[Path]:
    """Return the session's class images of the class, without those of other prompts."""
    chosen = []
    for path in photos_in(session.class_images, skip_copies=True) if session.class_images.is_dir() else []:
        recorded = recorded_parameters(path)
        if recorded is None or not class_word or contains(recorded.splitlines()[0], class_word):
            chosen.append(path)
    return chosen[:_MOST_CLASS_IMAGES]
