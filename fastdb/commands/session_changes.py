"""Opening a session with values that a form or a command line asks for.

The session is the truth. A value that differs is applied on request before training has begun; otherwise it is reported
and the session keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.checkpoints.checkpoint import complete
from fastdb.commands.sessions import new
from fastdb.config import Config, flat, format_setting
from fastdb.errors import ConfigError, SessionNotFound
from fastdb.images.captions import instance_prompt
from fastdb.images.photo_files import photos_in
from fastdb.models.mini_settings import recommended
from fastdb.models.resolve import base_record, is_base
from fastdb.reporting import SILENT, Note, Report
from fastdb.sessions import file_hashes
from fastdb.sessions.lease_status import in_use
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import Subject
from fastdb.training import process

CHANGEABLE = ("checkpoints.", "samples.", "precision", "gradient_checkpointing")
"""Beginnings of the names of settings that may change after training has begun: results differ by rounding at most."""

_SHOWN = 60
"""Longest value in a message, in characters."""


@dataclass(frozen=True)
class Requested:
    """Values asked of a session; an empty value asks for nothing."""

    base: str | Path = ""
    token: str = ""
    class_word: str = ""
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Difference:
    """A value of a session that differs from the one asked for."""

    name: str
    """A dotted setting, `base model`, `token` or `class word`."""
    current: str
    asked: str

    def __str__(self) -> str:
        return f"{self.name} {self.current or '(empty)'} -> {self.asked}"

    @property
    def changeable(self) -> bool:
        """Whether it may change after training has begun."""
        return self.name.startswith(CHANGEABLE)


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


def agreed_settings(session: Session, asked: Config, running: bool, keep: bool, report: Report) -> Config:
    """Return the settings to train with, of those asked for and those of a session that may have begun.

    Args:
        running: a trainer runs here, so none can change.
        keep: report settings that cannot change any more, instead of raising an error.

    Raises:
        ConfigError: a setting cannot change.
    """
    found = setting_differences(session.config, asked)
    kept = [difference for difference in found if running or not difference.changeable]
    if not kept or not has_begun(session):
        return asked
    if not keep:
        what, fix = "training is running", f"Stop it first: fastdb stop {session.name}"
        if not running:
            what = "training has begun"
            fix = (
                f"Resume without --set. For more steps: fastdb extend {session.name} --steps N; to change the UNet "
                "stage from its start: --from-step 0; for other settings create a session: fastdb new"
            )
        raise ConfigError(f"{what} with other settings: {listed(kept)}", where=session.name, fix=f"{fix}.")
    report_kept(kept, report)
    values = dict(flat(asked.model_dump()))
    return session.config.changed({d.name: values[d.name] for d in found if d not in kept})


def has_begun(session: Session) -> bool:
    """Return whether training has begun: there is a checkpoint, or a trainer runs here or elsewhere."""
    checkpoints = complete(session.checkpoint_folders, lineage=session.record.lineage)
    return bool(checkpoints) or process.find(session) is not None or bool(in_use(session.path))


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


def setting_differences(current: Config, asked: Config) -> list[Difference]:
    """Return the settings that differ."""
    old, new = (dict(flat(config.model_dump())) for config in (current, asked))
    return [Difference(name, _short(old[name]), _short(new[name])) for name in old if old[name] != new[name]]


def listed(found: list[Difference]) -> str:
    """Return differences as a clause."""
    return "; ".join(str(difference) for difference in found)


def report_kept(found: list[Difference], report: Report) -> None:
    """Report the differences in which a session keeps its own values."""
    for difference in found:
        report.note(Note("value kept", difference.name, f"{difference.current or '(empty)'}, not {difference.asked}"))


def report_changed(found: list[Difference], report: Report) -> None:
    """Report the differences that were applied."""
    for difference in found:
        report.note(Note("value changed", difference.name, f"{difference.current or '(empty)'} -> {difference.asked}"))


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


def _short(value: Any) -> str:
    text = format_setting(value)
    if len(text) <= _SHOWN:
        return text
    return f"{len(value)} values" if isinstance(value, list | tuple) else f"{text[:_SHOWN]}..."
