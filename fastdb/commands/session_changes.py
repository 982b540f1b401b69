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
    report_changed,
    report_kept,
    setting_differences,
)
from fastdb.commands.sessions import new
from fastdb.config import Config, flat
from fastdb.errors import ConfigError, SessionNotFound
from fastdb.images.captions import instance_prompt
from fastdb.images.photo_files import photos_in
from fastdb.models.mini_settings import recommended
from fastdb.models.resolve import base_record, is_base
from fastdb.reporting import SILENT, Note, Report
from fastdb.sessions import file_hashes
from fastdb.sessions.session import Session
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
    requested = Requested(base, token, class_word, settings)
    found = differences(session, requested)
    if not found:
        report.note(Note("existing session opened", session.name))
    elif has_begun(session):
        report.note(Note("existing session opened", session.name))
        report_kept(found, report)
    elif change:
        session = _changed(session, requested, found, report)
    else:
        raise ConfigError(
            f"the session exists and has other values: {listed(found)}",
            where=session.name,
            fix="Tick change_session (in Python: change=True) to change it, choose another session name, or empty the "
            "fields to keep its values.",
        )
    return session


def differences(session: Session, requested: Requested) -> list[Difference]:
    """Return the values of a session that differ from those asked for.

    Raises:
        ConfigError: a setting is unknown or its value is invalid.
    """
    record = session.record
    found = []
    if requested.base and not is_base(requested.base, record.base_model):
        named = record.base_model.source or record.base_model.folder
        found.append(Difference("base model", named, str(requested.base)))
    for name, current, asked in (
        ("token", record.subject.token, requested.token),
        ("class word", record.subject.class_word, requested.class_word),
    ):
        if asked and asked != current:
            found.append(Difference(name, current, asked))
    return found + setting_differences(session.config, session.config.changed(requested.settings or {}))


def _changed(session: Session, requested: Requested, found: list[Difference], report: Report) -> Session:
    """Write the values asked for into a session that has not begun."""
    record, config = session.record, session.config
    old = record.subject
    subject = Subject(token=requested.token or old.token, class_word=requested.class_word or old.class_word)
    base_model, asked = record.base_model, dict(requested.settings or {})
    if any(difference.name == "base model" for difference in found):
        base_model, size = base_record(requested.base, report)
        before = Config().changed(recommended(record.base_model.folder, old.class_word))
        after = Config().changed(recommended(requested.base, subject.class_word))
        config = _moved(config, before, after).changed({"resolution": size})
    elif subject != old:
        before, after = (Config().changed(recommended(base_model.folder, words.class_word)) for words in (old, subject))
        config = _moved(config, before, after)
    if config.captions.instance_prompt == instance_prompt(old.token, old.class_word):
        config = config.changed({"captions.instance_prompt": instance_prompt(subject.token, subject.class_word)})
    config = config.changed(asked)
    words = [difference for difference in found if difference.name in ("base model", "token", "class word")]
    report_changed([*words, *setting_differences(session.config, config)], report)
    resized = config.resolution != session.config.resolution
    session = session.with_values(base_model, subject, config)
    if resized:
        _crop_again(session, report)
    return session


def _moved(config: Config, before: Config, after: Config) -> Config:
    """Return settings with the defaults of one base model replaced by those of another; other values stay."""
    values, old, new = (dict(flat(each.model_dump())) for each in (config, before, after))
    return config.changed({name: new[name] for name in values if values[name] == old[name] != new[name]})


def _crop_again(session: Session, report: Report) -> None:
    """Make the instance images again in the session's resolution, except those that were edited or removed."""
    from fastdb.images.intake import add_photos

    edited = {Path(note.subject).stem for note in file_hashes.changes(session.path, within=["instance_images"])}
    present = {path.stem for path in photos_in(session.instance_images)} if session.instance_images.is_dir() else set()
    photos = [path for path in photos_in(session.originals) if path.stem in present - edited] if present else []
    if not photos:
        return
    with report.progress("crop", "photo") as update:
        add_photos(
            session.originals,
            session.instance_images,
            session.captions,
            photos,
            session.config.resolution,
            update,
            again=True,
        )
    stems = {path.stem for path in photos}
    file_hashes.record_files(session.path, [path for path in photos_in(session.instance_images) if path.stem in stems])
    report.note(Note("crops made again", str(len(photos)), str(session.config.resolution)))
