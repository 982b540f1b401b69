"""Verbs that move sessions: share, adopt, duplicate."""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.claims import claim, claims_kept
from fastdb.checkpoints.progress import check_step
from fastdb.checkpoints.publish import pending
from fastdb.commands.verification import warn_about_resuming
from fastdb.config import Config
from fastdb.downloads.civitai_and_drive import remote_of
from fastdb.downloads.download import download
from fastdb.downloads.source import CivitaiFile, DriveFile, WebFile, parse
from fastdb.errors import ImageError, SessionBusy, SessionError, StorageError
from fastdb.models.base_identity import version_of_earlier_mini
from fastdb.models.mini_settings import recommended
from fastdb.models.registry import check_chosen
from fastdb.models.resolve import base_record, check_present_base
from fastdb.reporting import SILENT, Note, Report, argument, counted, format_bytes
from fastdb.runtime.paths import cache_folder, expanded
from fastdb.sessions.file_hashes import changes, record_files
from fastdb.sessions.lease_status import refuse_elsewhere
from fastdb.sessions.session import CHECKPOINTS, Session, SessionLike, check_name, lay_out, near_name, now
from fastdb.sessions.session_yaml import BaseModelRecord, Record, new_lineage, read_record, write_record
from fastdb.sharing.drive_folder import fetch_folder, folder_number
from fastdb.sharing.incoming import Found, locate, locate_in, read_received, settle
from fastdb.sharing.transfer import EXPORTS, HEAVY, README, check_manifest, copy_files, files_of, staged, write_archive
from fastdb.sharing.untrusted_zip import MOST_BYTES, Archive, Member, opened
from fastdb.storage import MANIFEST
from fastdb.storage.set_aside import ASIDE
from fastdb.training.process import is_training

ENDING = ".zip"


@dataclass(frozen=True)
class _Adoption:
    """What a person asked for when adopting a session."""

    name: str | None
    base: str | Path | None
    root: str | Path | None
    report: Report

    def named(self, own: str, where: object) -> str:
        """Return the new session's name, made from the one it has where none was given.

        Raises:
            SessionError: nothing in its own name can be used.
        """
        if self.name is not None:
            return self.name
        name = near_name(own)
        if not name:
            raise SessionError(
                f"{own!r} cannot be used as a session name", where=where, fix="Name it: fastdb adopt ... NAME"
            )
        if name != own:
            self.report.note(Note("session renamed", own, name))
        return name

    def base_model(self) -> BaseModelRecord | None:
        """Return the record of the base model that was asked for, if any."""
        return None if self.base is None else base_record(self.base, self.report)[0]


@claims_kept()
def share(
    session: SessionLike,
    target: str | Path | None = None,
    *,
    checkpoints: bool = False,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> Path:
    """Write a session to a zip with sizes and checksums of its files; it is verified before it gets its name.

    Exported models are left out; so are checkpoints, class images, samples and logs by default.

    Args:
        target: `<name>.zip` in the current folder by default.
        checkpoints: include checkpoints, class images, samples and logs.

    Raises:
        SessionError: a file has a name that other disks do not support, or changed meanwhile.
        SessionBusy: checkpoints are wanted while the session is being trained.
        StorageError: the target exists, or cannot be written.
    """
    session = Session.open(session, root)
    session.check_complete()
    _check_not_trained(session.path, session.name, checkpoints)
    name = near_name(session.name) or "session"
    path = _target(session, target, f"{name}{ENDING}")
    files = _files(session.path, report, state=checkpoints, exports=False)
    with report.progress(path.name, "B") as update:
        size = write_archive(session.path, files, path, name, update)
    report.note(Note("archive verified", str(path), f"{counted(len(files), 'file')}, {format_bytes(size)}"))
    _report_left_out(session, checkpoints, report)
    return path


@claims_kept()
def adopt(
    source: str | Path,
    name: str | None = None,
    *,
    base: str | Path | None = None,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> Session:
    """Create a session from a zip, a folder, a link to a zip or to a shared Google Drive folder, or a classic session.

    It appears whole or not at all, and the source is not changed.

    Args:
        name: its own by default.
        base: its base model on this machine; required for a session of the classic notebook, which records none.

    Raises:
        SessionError: not a session, damaged, or an archive that is not safe.
        SessionExists: a session of that name exists.
        ImageError: no photo of a classic session can be used.
        ModelError: the base model, or a file on Google Drive, is not available.
        StorageError: a disk is full or cannot be written.
    """
    if name is not None:
        check_name(name)
    adoption = _Adoption(name, base, root, report)
    if number := folder_number(str(source)):
        coming = cache_folder() / "coming" / uuid.uuid4().hex[:12]
        try:
            with report.progress("Google Drive", "file") as update:
                folder_name = fetch_folder(number, coming, update)
            session = _adopt_folder(coming, folder_name, adoption, str(source))
        finally:
            shutil.rmtree(coming, ignore_errors=True)
            shutil.rmtree(coming.with_name(f"{coming.name}.coming"), ignore_errors=True)
    elif re.match(r"https?://", str(source)):
        session = _adopt_link(str(source), adoption)
    elif (path := expanded(source).absolute()).is_dir():
        session = _adopt_folder(path, path.name, adoption, path)
    else:
        session = _adopt_archive(path, adoption)
    report.note(Note("session created", str(session.path)))
    report.note(Note("base model", session.record.base_model.folder))
    warn_about_resuming(session, report)
    return session


@claims_kept()
def duplicate(
    session: SessionLike,
    name: str,
    *,
    checkpoints: bool = False,
    from_step: int | None = None,
    root: str | Path | None = None,
    report: Report = SILENT,
) -> Session:
    """Create a session with the photos, captions and settings of another.

    Args:
        checkpoints: copy checkpoints, class images, samples and logs too.
        from_step: copy them up to this step of the UNet stage.

    Raises:
        ConfigError, TrainingError: no valid checkpoint of that step.
        SessionError: a file has a name that other disks do not support, or changed meanwhile.
        SessionExists: a session of that name exists.
        SessionBusy: checkpoints are wanted while the session is being trained.
        StorageError: the disk is full or cannot be written.
        ModelError, TrainingError: the base model on this machine cannot be used or is another one.
    """
    session, checkpoints = Session.open(session, root), checkpoints or from_step is not None
    session.check_complete()
    _check_not_trained(session.path, session.name, checkpoints)
    if not version_of_earlier_mini(session.record.base_model):
        check_present_base(session)
    files = _files(session.path, report, state=checkpoints, exports=False)
    if from_step is not None:
        check_step(session, from_step, [session.checkpoints])
        newer = [one.path.name for one in complete(session.checkpoints, "unet") if one.step > from_step]
        left_out = (f"checkpoints/{ASIDE}", *(f"checkpoints/{folder}/" for folder in newer))
        files = [file for file in files if not file.startswith(left_out)]
    with staged(name, root) as (beside, path), report.progress("copy", "B") as update:
        copy_files(session.path, files, beside, update)
        settle(beside, name, None, session.path)
        if not checkpoints:
            write_record(
                beside,
                read_record(beside).model_copy(update={"runs": (), "extended": (), "revised": (), "exports": ()}),
                keep=False,
            )
        record_files(beside, lock=False)
    report.note(Note("session created", str(path)))
    _report_left_out(session, checkpoints, report)
    copy = Session(path, read_record(path))
    warn_about_resuming(copy, report)
    return copy


def _files(folder: Path, report: Report, *, state: bool = True, exports: bool = True) -> list[str]:
    """Return the files to copy; report those that were changed, and those that are left out.

    Checkpoints among them are claimed until the end of the verb.
    """
    for checkpoint in complete(folder / CHECKPOINTS) if state else ():
        claim(checkpoint.path)
    for note in changes(folder):
        report.note(note)
    files, skipped = files_of(folder, state=state, exports=exports)
    for note in skipped:
        report.note(note)
    return files


def _report_left_out(session: Session, checkpoints: bool, report: Report) -> None:
    if checkpoints:
        if local := [checkpoint.path.name for checkpoint in pending(session)]:
            report.note(Note("unpublished left out", session.name, ", ".join(local)))
        return
    heavy = [name for name in HEAVY if any(path.name != README for path in (session.path / name).glob("*"))]
    if heavy:
        report.note(Note("state left out", ", ".join(heavy)))
    if exports := session.exports:
        report.note(Note("exports left out", ", ".join(path.name for path in exports)))


def _adopt_link(link: str, adoption: _Adoption) -> Session:
    """Download a zip and adopt it; a partial download is resumed.

    Raises:
        ModelError: it is not available.
        SessionError: it is larger than any session, or cannot be adopted.
    """
    source = parse(link)
    if not isinstance(source, DriveFile | WebFile) or isinstance(source, CivitaiFile):
        raise SessionError("is the link of a model, not of a session", subject=source, fix="Give the link of a zip.")
    folder = cache_folder() / "coming" / hashlib.sha256(str(source).encode()).hexdigest()[:12]
    with adoption.report.progress("download", "B") as update:

        def arrived(done: int, total: int) -> None:
            if max(done, total) > MOST_BYTES:
                raise SessionError("is larger than any session", subject=source, fix="Ask for a smaller archive.")
            update(done, total)

        path = download(remote_of(source), folder, arrived)
    session = _adopt_archive(path, adoption)
    # An archive that cannot be adopted is kept for another try with other arguments.
    shutil.rmtree(folder, ignore_errors=True)
    return session


def _adopt_archive(path: Path, adoption: _Adoption) -> Session:
    with opened(path) as archive:
        place = locate((member.name for member in archive.members), path)
        name = adoption.named(place.name or path.stem, path)
        members = [member for member in archive.members if member.name.startswith(place.prefix)]
        base = None if place.classic else adoption.base_model()
        with staged(name, adoption.root) as (beside, final):
            if place.classic:
                unpacked = beside / ".unpacked"
                members = [member for member in members if not member.name.endswith(EXPORTS)]
                _unpack(archive, members, unpacked, place, adoption.report)
                _import_classic(unpacked, beside, name, adoption, path)
                shutil.rmtree(unpacked)
            else:
                _unpack(archive, members, beside, place, adoption.report)
                if not check_manifest(beside, path):
                    adoption.report.note(Note("no manifest", str(path)))
                settle(beside, name, base, path, (place.name,))
            record_files(beside, lock=False)
    return Session(final, read_record(final))


def _unpack(archive: Archive, members: Sequence[Member], folder: Path, place: Found, report: Report) -> None:
    folder.mkdir(exist_ok=True)
    with report.progress("extract", "B") as update:
        archive.unpack(members, folder, place.prefix, update)


def _adopt_folder(top: Path, own_name: str, adoption: _Adoption, where: object) -> Session:
    place = locate_in(top, where)
    folder = top / place.prefix
    name = adoption.named(place.name or own_name, where)
    base = None if place.classic else adoption.base_model()
    with staged(name, adoption.root) as (beside, final):
        if place.classic:
            _import_classic(folder, beside, name, adoption, where)
        else:
            _check_not_trained(folder, str(where), True)
            read_received(folder, where)
            files = _files(folder, adoption.report)
            with adoption.report.progress("copy", "B") as update:
                copy_files(folder, [*files, MANIFEST] if (folder / MANIFEST).is_file() else files, beside, update)
            check_manifest(beside, where)
            settle(beside, name, base, where, (place.name, own_name))
        record_files(beside, lock=False)
    return Session(final, read_record(final))


def _import_classic(folder: Path, beside: Path, name: str, adoption: _Adoption, where: object) -> None:
    """Create the session in `beside` from the images and captions of a classic session.

    Raises:
        ImageError: no photo can be used.
        ModelError: the base model is not available.
    """
    from fastdb.sharing.classic_notebook import add_classic, add_concept_images, extract_zips, read_classic

    report, base = adoption.report, check_chosen(adoption.base or "")
    unpacked = beside / ".images"
    if extract_zips(folder, unpacked):
        folder = unpacked
    classic = read_classic(folder)
    base_model, size = base_record(base, report)
    config = Config().changed({**recommended(base, ""), "resolution": size})
    lay_out(beside)
    record = Record(name=name, created=now(), lineage=new_lineage(), base_model=base_model, config=config)
    session = Session(beside, write_record(beside, record))
    with report.progress("photos", "photo") as update:
        folders = session.originals, session.instance_images, session.captions
        intake, remarks = add_classic(classic, *folders, size, update)
    for refused in intake.refused:
        report.note(Note("photo skipped", refused.source.name, refused.reason))
    for note in remarks:
        report.note(note)
    if not intake.added:
        raise ImageError("no photo can be used", where=where, fix="Fix or remove the photos named above.")
    report.note(Note("classic session imported", name, f"{len(intake.added)} of {len(classic.photos)}"))
    if concept := add_concept_images(classic, session.class_images, size):
        report.note(Note("concept images imported", name, str(concept)))
    shutil.rmtree(unpacked, ignore_errors=True)
    for path in classic.models:
        report.note(Note("classic model found", str(path)))


def _target(session: Session, target: str | Path | None, usual: str) -> Path:
    """Return the path of the archive.

    Raises:
        StorageError: the path exists or cannot be used.
    """
    path = expanded(target if target is not None else usual).absolute()
    if path.is_dir():
        path = path / usual
    if path.suffix.lower() != ENDING:
        raise StorageError("does not end in .zip", subject=path, fix=f"Give it the suffix {ENDING}.")
    if path.is_relative_to(session.path.resolve()) or path.is_relative_to(session.path):
        raise StorageError("is inside the session itself", subject=path, fix="Choose a place outside it.")
    if path.exists():
        raise StorageError("exists already", subject=path, fix="Choose another name, or remove it.")
    return path


def _check_not_trained(folder: Path, name: str, state: bool) -> None:
    """Check that no trainer writes what is to be copied.

    Raises:
        SessionBusy: a trainer does, on this machine or, as far as the lease shows, on another.
    """
    if state and is_training(folder):
        raise SessionBusy("is being trained", subject=name, fix=f"Stop it first: fastdb stop {argument(name)}")
    if state:
        refuse_elsewhere(folder, "Or stop it there.")
