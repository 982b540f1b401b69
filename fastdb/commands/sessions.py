"""Verbs about sessions: new, add-images, list, show, check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.leftovers import leftovers
from fastdb.checkpoints.progress import how_far, progress_of
from fastdb.checkpoints.publish import pending
from fastdb.commands import verification
from fastdb.commands.differences import has_begun
from fastdb.commands.export_states import ExportState, export_states
from fastdb.commands.photo_sources import check_all_known, photo_files
from fastdb.commands.session_warnings import prompt_notes, prompts_of, setting_warnings
from fastdb.config import Config, build
from fastdb.errors import FastDBError, ImageError, SessionBusy, TrainingError
from fastdb.images.captions import instance_prompt
from fastdb.images.originals import photo_notes, replaced
from fastdb.images.photo_files import photos_in
from fastdb.models.base_identity import base_fault, version_of_earlier_mini
from fastdb.models.mini_settings import recommended
from fastdb.models.registry import check_choice, check_chosen
from fastdb.models.resolve import base_record, check_present_base, known_base
from fastdb.reporting import SILENT, Note, Report, counted
from fastdb.runtime.drive import check_outlives
from fastdb.runtime.paths import sessions_root
from fastdb.sessions import file_hashes
from fastdb.sessions.exports import locate_file
from fastdb.sessions.lease_status import in_use, refuse_elsewhere
from fastdb.sessions.session import Session, SessionLike, check_free, check_name
from fastdb.sessions.session_yaml import Extended, Revision, Subject
from fastdb.sessions.token_trial import TokenTrial, recorded
from fastdb.storage.atomic_write import explained
from fastdb.storage.delete import bytes_of
from fastdb.storage.drive_uploads import waits_for_upload
from fastdb.training import process

if TYPE_CHECKING:
    from fastdb.images.intake import Added


@dataclass(frozen=True)
class SessionRow:
    """A session in a listing."""

    session: Session
    progress: str
    """Steps done of each stage, such as `text_encoder 350/350, unet 40/220`."""
    in_use: str
    """Where another machine trains it; empty if none does."""
    images: int


@dataclass(frozen=True)
class SessionList:
    """The sessions below a folder, and the errors of those that cannot be opened."""

    root: Path
    rows: tuple[SessionRow, ...]
    errors: tuple[FastDBError, ...]


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What a session contains and how far its training is."""

    session: Session
    in_use: str
    """Where another machine trains it; empty if none does."""
    trainer: process.Activity | None
    """The trainer on this machine."""
    base_fault: str
    """Why the base model on this machine cannot be the session's; empty if nothing is known."""
    images: int
    prompts: tuple[str, ...]
    """Different prompts of the instance images; empty if there are none."""
    class_images: int
    progress: str
    """Steps done of each stage, such as `text_encoder 350/350, unet 40/220`."""
    outcomes: tuple[str, ...]
    """How each run ended; an empty outcome has no recorded end."""
    extended: tuple[Extended, ...]
    revised: tuple[Revision, ...]
    token_trial: TokenTrial | None
    """What the untrained base drew for the present token, if it was tried."""
    exports: tuple[ExportState, ...]
    unpublished: tuple[str, ...]
    """Checkpoints on this machine only that another machine would need to resume."""
    not_uploaded: tuple[str, ...]
    """Files that Google Drive has not uploaded yet."""
    skipped: tuple[Note, ...]
    changed: tuple[Note, ...]
    """Files that were edited or damaged since they were recorded."""
    settings: tuple[str, ...]
    """Settings that differ from the defaults."""


def new(
    name: str,
    base: str | Path,
    photos: Sequence[str | Path] = (),
    *,
    token: str = "",
    class_word: str = "",
    root: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    report: Report = SILENT,
) -> Session:
    """Create a session and add photos to it.

    Args:
        base: a file or diffusers folder, a link, a Hub repository or file, a name such as `sd15`, or `mini`.
        token, class_word: together they make the instance prompt `a photo of <token> <class>`, unless one is set.
        settings: dotted names and values.

    Raises:
        SessionError, ModelError, ConfigError: nothing was created; also if a photo does not exist.
        ImageError: a photo cannot be used; the session was created with the other photos.
        StorageError: the folder cannot be written.
    """
    check_name(name)
    check_free(name, root)
    base = located_base(check_chosen(base), root)
    config = Config().changed(settings or {})
    config = Config().changed({**recommended(base, class_word, config.method), **(settings or {})})
    if (token or class_word) and not config.captions.instance_prompt:
        config = config.changed({"captions.instance_prompt": instance_prompt(token, class_word)})
        report.note(Note("instance prompt", config.captions.instance_prompt))
    subject = build(Subject, {"token": token, "class_word": class_word}, where="subject")
    check_outlives(root)
    with photo_files(photos, report) as files:
        if known := known_base(base):
            check_choice(known, resolution=config.resolution)
        record, size = base_record(base, report)
        if "resolution" not in (settings or {}) and config.resolution != size:
            config = config.changed({"resolution": size})
            report.note(Note("resolution of base model", str(size)))
        session = Session.create(name, base_model=record, subject=subject, config=config, root=root)
        report.note(Note("session created", str(session.path)))
        for note in setting_warnings(session, size):
            report.note(note)
        if files:
            _add_first_images(session, files, report)
        return session


def located_base(base: str | Path, root: str | Path | None) -> str | Path:
    """Return the path of a base model that is an export of a session, named by its file name alone; else `base`.

    Raises:
        ModelError: several sessions have a file of that name.
    """
    path = locate_file(base, root)
    return path.absolute() if path.is_absolute() and path.is_file() else base


def _add_first_images(session: Session, files: Sequence[Path], report: Report) -> None:
    """Add photos to a session that was just created; without a usable photo it is removed again.

    Raises:
        ImageError: a photo cannot be used.
    """
    try:
        add_images(session, files, report=report)
    except ImageError as error:
        if _photos(session.instance_images):
            raise
        rmtree(session.path)
        raise ImageError(
            f"{error.what}; no session was created", where=error.where, fix=f"{error.fix} Then run it again."
        ) from None


def add_images(
    session: SessionLike,
    photos: Sequence[str | Path],
    root: str | Path | None = None,
    *,
    report: Report = SILENT,
) -> Path:
    """Clean, crop and add photos to a session.

    Photos that cannot be used are reported; the others are added. Photos may be in the session's `originals/` already;
    one that replaced another there is cropped again. After training has begun, only photos that the session has
    already are accepted, whose lost crops are made again.

    Returns:
        The contact sheet of the crops.

    Raises:
        ImageError: no photos, or some cannot be used (after the others were added).
        ConfigError: training has begun without one of them.
        SessionBusy: the session is being trained.
    """
    from fastdb.images.contact_sheet import review_sheet
    from fastdb.images.intake import add_photos
    from fastdb.images.photos import save_png

    session = Session.open(session, root)
    if not photos:
        raise ImageError("no photos were given", where=session.name, fix="Name files or a folder of photos.")
    if process.find(session) is not None:
        raise SessionBusy("is being trained", subject=session.name, fix="Add photos when training has ended.")
    refuse_elsewhere(session.path, "Or stop it there, and add photos then.")
    with photo_files(photos, report) as files, report.progress("crop", "photo") as update:
        folders = (session.originals, session.instance_images, session.captions)
        begun, changed = has_begun(session), replaced(session, files)
        if begun:
            check_all_known(session, files, changed)
        intake = add_photos(*folders, files, session.config.resolution, update, again=changed)
    for added in intake.added:
        report.note(_crop_note(added, session.config.resolution))
    sheet = session.path / "instance_images.png"
    if intake.known:
        report.note(Note("photos known", str(len(intake.known))))
    if intake.added:
        save_png(review_sheet(session.name, intake.added), sheet)
        report.note(Note("crops saved", str(sheet)))
        file_hashes.record_files(session.path, [*_photo_files_of(session, intake.added), sheet])
    for note in (*prompt_notes(session), *photo_notes(session, begun)):
        report.note(note)
    if intake.refused:
        for refused in intake.refused:
            report.note(Note("photo skipped", str(refused.source), refused.reason))
        added_count = "1 was" if len(intake.added) == 1 else f"{len(intake.added)} were"
        raise ImageError(
            f"{len(intake.refused)} of {len(files)} photos cannot be used; {added_count} added",
            where=session.name,
            fix="Fix or remove the photos named above.",
        )
    return sheet


def _crop_note(added: Added, resolution: int) -> Note:
    crop, size = added.crop, f"{added.crop.size} x {added.crop.size}"
    details = f"({size})" if crop.whole else f"{size} ({crop.reason})"
    details += f", trained at {resolution}"
    return Note("photo used whole" if crop.whole else "photo cropped", added.name, details)


def list_sessions(root: str | Path | None = None) -> SessionList:
    """List the sessions below `root`; a session that cannot be opened is listed with its error."""
    rows, errors = [], []
    for session in Session.list(root):
        if isinstance(session, FastDBError):
            errors.append(session)
        else:
            images = len(_photos(session.instance_images))
            rows.append(SessionRow(session, _progress(session), in_use(session.path), images))
    return SessionList(sessions_root(root), tuple(rows), tuple(errors))


def show(session: SessionLike, root: str | Path | None = None) -> Overview:
    """Return what a session contains and how far its training is.

    Raises:
        SessionError: no such session, or it cannot be opened.
        StorageError: a folder cannot be read.
    """
    session = Session.open(session, root)
    return Overview(
        session=session,
        in_use=in_use(session.path),
        trainer=process.activity(session),
        base_fault=base_fault(session.record.base_model),
        images=len(_photos(session.instance_images)),
        prompts=tuple(prompts_of(session)),
        class_images=len(_photos(session.class_images)),
        progress=_progress(session),
        outcomes=tuple(run.outcome for run in session.record.runs),
        extended=session.extensions,
        revised=session.record.revised,
        token_trial=_token_trial(session),
        exports=tuple(export_states(session)),
        unpublished=tuple(checkpoint.path.name for checkpoint in pending(session)),
        not_uploaded=tuple(_not_uploaded(session)),
        skipped=tuple(leftovers(session)),
        changed=tuple(file_hashes.changes(session.path, quick=True)),
        settings=tuple(session.config.summary(Config())),
    )


def check(
    session: SessionLike,
    *,
    quick: bool = False,
    accept: bool = False,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> list[Note]:
    """Verify every file of a session against its checksum.

    Args:
        quick: compare sizes only, except of small files.
        accept: record the current files as correct first, except checkpoints and damaged PNG files.

    Returns:
        Files that are skipped or were added, and the reason if training would not resume.

    Raises:
        SessionError: no such session, or it cannot be opened.
        StorageError: a file is damaged, was edited or is missing; or the disk does not answer.
        ModelError, TrainingError: the base model on this machine cannot be used or is another one.
    """
    session = Session.open(session, root)
    if accept:
        verification.accept(session)
        report.note(Note("files accepted", session.name))
    damaged = {checkpoint.path.name for checkpoint in complete(session.checkpoints)}
    remarks = [note for note in leftovers(session) if note.subject not in damaged]
    with explained(session.path), report.progress("check", "B") as update:
        total, done = bytes_of(session.path), 0

        def advance(size: int) -> None:
            nonlocal done
            done = min(done + size, total)
            update(done, total)

        findings = verification.verify(session, quick=quick, progress=advance)
    skipped = {note.subject for note in remarks}
    remarks += [note for note in findings.added if note.subject not in skipped]
    remarks += verification.resume_refusals(session)
    for note in (*findings.changed, *findings.damaged, *remarks):
        report.note(note)
    if failure := verification.failure(session, findings):
        raise failure
    try:
        check_present_base(session)
    except TrainingError as error:
        if not version_of_earlier_mini(session.record.base_model):
            raise
        remarks.append(Note("resume refused", session.name, str(error)))
        report.note(remarks[-1])
    checked = findings.checked
    report.note(Note("sizes match" if quick else "files match", session.name, counted(checked, "file")))
    return remarks


def _photo_files_of(session: Session, added: Sequence[Added]) -> list[Path]:
    """Return the original, instance image and caption of each photo that was added."""
    stems = {photo.name for photo in added}
    folders = (session.originals, session.instance_images, session.captions)
    return [path for folder in folders for path in folder.iterdir() if path.stem in stems]


def _not_uploaded(session: Session) -> list[str]:
    """Return the names of what Google Drive has not uploaded yet, newest first."""
    paths = [checkpoint.path for checkpoint in reversed(complete(session.checkpoints))]
    paths += [*session.exports, session.instance_images]
    with explained(session.path):
        return [path.name for path in paths if path.exists() and waits_for_upload(path)]


def _token_trial(session: Session) -> TokenTrial | None:
    """Return the recorded trial, unless token or class have changed since."""
    trial, subject = recorded(session), session.record.subject
    same = trial is not None and (trial.token, trial.class_word) == (subject.token, subject.class_word)
    return trial if same else None


def _photos(folder: Path) -> list[Path]:
    return photos_in(folder) if folder.is_dir() else []


def _progress(session: Session) -> str:
    return how_far(session, progress_of(session))
