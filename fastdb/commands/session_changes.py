"""Opening a session with values that a form or a command line asks for.

The session is the truth. A value that differs is applied on request before training has begun; otherwise it is reported
and the session keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.commands.differences import (
    Difference,
    has_begun,
    listed,
    moved,
    report_changed,
    report_kept,
    setting_differences,
)
from fastdb.commands.sessions import located_base, new
from fastdb.config import Config
from fastdb.errors import ConfigError, ImageError, SessionNotFound
from fastdb.images.captions import instance_prompt
from fastdb.images.photo_files import photos_in
from fastdb.models.mini_settings import recommended
from fastdb.models.resolve import base_record, is_base, is_replaced
from fastdb.reporting import SILENT, Note, Report
from fastdb.sessions import file_hashes
from fastdb.sessions.session import Session, SessionLike
from fastdb.sessions.session_yaml import Subject


@dataclass(frozen=True)
class Requested:
    """Values asked of a session; an empty value asks for nothing."""

    base: str | Path = ""
    token: str = ""
    class_word: str = ""
    settings: Mapping[str, Any] | None = None


def open_or_new(
    name: str,
    base: str | Path = "",
    *,
    token: str = "",
    class_word: str = "",
    settings: Mapping[str, Any] | None = None,
    change: bool = False,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> Session:
    """Open the session of this name, or create it; see `new`.

    An empty value asks for nothing. A value that differs from the session's is an error before training has begun,
    unless `change` is set. After that the session keeps its own values, and each difference is reported.

    Args:
        change: change the session to the values given. Crops are made again if the resolution changes.

    Raises:
        ConfigError: naming each difference.
        FastDBError: it cannot be opened or created.
    """
    try:
        session = Session.open(name, root)
    except SessionNotFound:
        return new(name, base, token=token, class_word=class_word, root=root, settings=settings, report=report)
    requested = Requested(located_base(base, root) if base else "", token, class_word, settings)
    differing = differences(session, requested)
    if not differing or has_begun(session):
        report.note(Note("existing session opened", session.name))
        report_kept(differing, report)
    elif change:
        session = _changed(session, requested, differing, report)
    else:
        raise ConfigError(
            f"the session exists and has other values: {listed(differing)}",
            where=session.name,
            fix="Tick change_session (in Python: change=True) to change it, choose another session name, or empty the "
            "fields to keep its values.",
        )
    return session


def change(
    session: SessionLike,
    *,
    base: str | Path = "",
    token: str = "",
    class_word: str = "",
    settings: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> Session:
    """Change base model, subject or settings of a session before its training begins; empty values stay.

    Raises:
        ConfigError: nothing was named, a value is invalid, or training has begun.
        SessionError, ModelError: the session or the base model cannot be opened.
    """
    session = Session.open(session, root)
    if not (base or token or class_word or settings):
        raise ConfigError(
            "no change was named",
            where=session.name,
            fix="Name a base model, a token, a class or a setting, such as: fastdb change "
            f"{session.name} --set unet.steps=800",
        )
    requested = Requested(located_base(base, root) if base else "", token, class_word, settings)
    differing = differences(session, requested)
    if requested.base and not any(each.name == "base model" for each in differing) and is_replaced(session):
        named = session.record.base_model.folder
        differing.insert(0, Difference("base model", f"{named} as it was", f"{named} as it is now"))
    if differing and has_begun(session):
        raise ConfigError(
            f"training has begun, so these cannot change: {listed(differing)}",
            where=session.name,
            fix="Create another session with fastdb new, or copy its photos: fastdb duplicate.",
        )
    if not differing:
        report.note(Note("nothing to change", session.name))
        return session
    return _changed(session, requested, differing, report)


def differences(session: Session, requested: Requested) -> list[Difference]:
    """Return the values of a session that differ from those asked for.

    Raises:
        ConfigError: a setting is unknown or its value is invalid.
    """
    record = session.record
    differing = []
    if requested.base and not is_base(requested.base, record.base_model):
        named = record.base_model.source or record.base_model.folder
        differing.append(Difference("base model", named, str(requested.base)))
    for name, current, asked in (
        ("token", record.subject.token, requested.token),
        ("class word", record.subject.class_word, requested.class_word),
    ):
        if asked and asked != current:
            differing.append(Difference(name, current, asked))
    return differing + setting_differences(session.config, session.config.changed(requested.settings or {}))


def _changed(session: Session, requested: Requested, differing: list[Difference], report: Report) -> Session:
    """Write the values asked for into a session that has not begun."""
    record, config = session.record, session.config
    old = record.subject
    subject = Subject(token=requested.token or old.token, class_word=requested.class_word or old.class_word)
    base_model, asked = record.base_model, dict(requested.settings or {})
    method, base, resolution = config.changed(asked).method, base_model.folder, {}
    if any(difference.name == "base model" for difference in differing):
        base = str(requested.base)
        base_model, size = base_record(requested.base, report)
        resolution = {"resolution": size}
    before = Config().changed(recommended(record.base_model.folder, old.class_word, config.method))
    after = Config().changed(recommended(base, subject.class_word, method))
    config = moved(config, before, after).changed(resolution)
    if config.captions.instance_prompt == instance_prompt(old.token, old.class_word):
        config = config.changed({"captions.instance_prompt": instance_prompt(subject.token, subject.class_word)})
    config = config.changed(asked)
    words = [difference for difference in differing if difference.name in ("base model", "token", "class word")]
    report_changed([*words, *setting_differences(session.config, config)], report)
    if config.resolution != session.config.resolution:
        _crop_again(session, config.resolution, report)
    return session.with_values(base_model, subject, config)


def _crop_again(session: Session, size: int, report: Report) -> None:
    """Make the instance images again in another size, except those that somebody cropped or removed.

    An image is made again if it is, pixel by pixel, what the session made of its original.
    """
    from fastdb.images.crop import choose_crop, crop_square
    from fastdb.images.photos import load_photo, read_photo, save_png

    made, kept = [], 0
    photos = photos_in(session.originals) if session.originals.is_dir() else []
    with report.progress("crop", "photo") as update:
        for done, original in enumerate(photos, start=1):
            update(done, len(photos))
            target = session.instance_images / f"{original.stem}.png"
            if not target.exists():
                continue
            try:
                image, present = load_photo(original)[1], read_photo(target)
            except ImageError:
                kept += 1
                continue
            for keep_square in (False, True):  # Photos of classic sessions, which somebody had cropped, stay whole.
                before = choose_crop(image, size=session.config.resolution, keep_square=keep_square)
                if crop_square(image, before, session.config.resolution).tobytes() == present.tobytes():
                    crop = choose_crop(image, size=size, keep_square=keep_square)
                    save_png(crop_square(image, crop, size), target)
                    made.append(target)
                    break
            else:
                kept += 1
    if made:
        file_hashes.record_files(session.path, made)
        report.note(Note("crops made again", str(len(made)), str(size)))
    if kept:
        report.note(Note("crops kept", str(kept)))
