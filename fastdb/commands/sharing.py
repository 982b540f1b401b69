"""Verbs that take a session elsewhere: share it as an archive, adopt one that has come, duplicate it.

Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb import console
from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.progress import check_step
from fastdb.checkpoints.publish import pending
from fastdb.commands.sessions import SessionLike, exports_of, open_session
from fastdb.config import Config
from fastdb.errors import ImageError, SessionBusy, SessionError, StorageError
from fastdb.reporting import format_bytes
from fastdb.runtime.paths import cache_folder, expanded
from fastdb.sessions.file_hashes import changes, record_files
from fastdb.sessions.session import Session, check_name, lay_out, near_name, now
from fastdb.sessions.session_yaml import BaseModelRecord, Record, new_lineage, read_record, write_record
from fastdb.sharing.incoming import Found, locate, locate_in, read_come, settle, without_history
from fastdb.sharing.transfer import (
    EXPORTS,
    HEAVY,
    README,
    check_manifest,
    copy_files,
    files_of,
    staged,
    write_archive,
)
from fastdb.sharing.untrusted_zip import MOST_BYTES, Archive, Member, opened
from fastdb.storage.manifest import MANIFEST
from fastdb.storage.set_aside import ASIDE

if TYPE_CHECKING:
    from fastdb.models.resolve import Base

ENDING = ".zip"


def share(
    session: SessionLike,
    target: str | Path | None = None,
    *,
    checkpoints: bool = False,
    root: str | Path | None = None,
) -> Path:
    """Write a session as a zip, with sizes and hashes of its files inside; it is read back before it gets its name.

    Exported models stay behind; so do checkpoints, class images and logs, unless `checkpoints` asks for them. The
    target is `<name>.zip` in the current folder where none is given.

    Raises:
        SessionError: a file has a name that other disks do not take, or changed meanwhile.
        SessionBusy: its checkpoints are wanted, and it is being trained.
        StorageError: there is a file of the target's name, or it cannot be written.
    """
    session = open_session(session, root)
    _check_still(session.path, session.name, checkpoints)
    name = near_name(session.name) or "session"
    path = _target(session, target, f"{name}{ENDING}")
    _say_changed(session.path)
    files, said = files_of(session.path, state=checkpoints, exports=False)
    for line in said:
        console.say(line)
    with console.bar(path.name, "B") as update:
        size = write_archive(session.path, files, path, name, update)
    console.say(f"verified {path}: {len(files)} files, {format_bytes(size)}")
    if not checkpoints:
        _say_left(session)
    _say_alone(session, checkpoints)
    return path


def adopt(
    source: str | Path,
    name: str | None = None,
    *,
    base: str | Path | None = None,
    root: str | Path | None = None,
) -> Session:
    """Make a session of one that has come: a zip, a folder, the link of a zip or of a shared folder on Google Drive, or
    the folder of a session of the classic notebook. It appears whole or not at all, and nothing is changed where it
    came from.

    `name` is the one it has where none is given. `base` names its base model as it lies here; for a classic session,
    which does not say what it was trained from, it is `mini` where none is given.

    Raises:
        SessionError: it is no session, damaged, or does what no archive of a session does.
        SessionExists: there is a session of that name already.
        ImageError: no picture of a classic session can be used.
        ModelError: the base model, or a file on Google Drive, cannot be had.
        StorageError: a disk is full or cannot be written.
    """
    from fastdb.sharing.drive_folder import fetch_folder, folder_number

    if name is not None:
        check_name(name)
    if number := folder_number(str(source)):
        coming = cache_folder() / "coming" / uuid.uuid4().hex[:12]
        try:
            with console.bar("Google Drive", "file") as update:
                called = fetch_folder(number, coming, update)
            session = _adopt_folder(coming, name, called, base, root, str(source))
        finally:
            shutil.rmtree(coming, ignore_errors=True)
            shutil.rmtree(coming.with_name(f"{coming.name}.coming"), ignore_errors=True)
    elif re.match(r"https?://", str(source)):
        session = _adopt_link(str(source), name, base, root)
    elif (path := expanded(source).absolute()).is_dir():
        session = _adopt_folder(path, name, path.name, base, root, path)
    else:
        session = _adopt_archive(path, name, base, root)
    console.say(f"new session: {session.path}")
    console.say(f"its base model: {session.record.base_model.folder}")
    return session


def duplicate(
    session: SessionLike,
    name: str,
    *,
    checkpoints: bool = False,
    from_step: int | None = None,
    root: str | Path | None = None,
) -> Session:
    """Make a new session with the photos, captions and settings of another one, and with all its training stands on
    where `checkpoints` is true; where `from_step` is given, with that up to this step of the UNet's stage.

    Raises:
        ConfigError, TrainingError: there is no checkpoint of that step, or it does not verify.
        SessionError: a file has a name that other disks do not take, or changed meanwhile.
        SessionExists: there is a session of that name already.
        SessionBusy: its checkpoints are wanted, and it is being trained.
        StorageError: the disk is full or cannot be written.
    """
    session, checkpoints = open_session(session, root), checkpoints or from_step is not None
    _check_still(session.path, session.name, checkpoints)
    _say_changed(session.path)
    files, said = files_of(session.path, state=checkpoints, exports=False)
    if from_step is not None:
        check_step(session, from_step, [session.checkpoints])
        files = _up_to(session, from_step, files)
    for line in said:
        console.say(line)
    with staged(name, root) as (beside, path), console.bar("copy", "B") as update:
        copy_files(session.path, files, beside, update)
        settle(beside, name, None, session.path)
        if not checkpoints:
            without_history(Session(beside, read_record(beside)))
        record_files(beside, lock=False)
    console.say(f"new session: {path}")
    if not checkpoints:
        _say_left(session)
    _say_alone(session, checkpoints)
    return Session(path, read_record(path))


def _say_alone(session: Session, checkpoints: bool) -> None:
    """Say which checkpoints did not come along because they are not in the session's folder yet."""
    if checkpoints and (alone := [one.path.name for one in pending(session)]):
        console.say(f"without {', '.join(alone)}, on this machine alone as yet: fastdb publish {session.name}")


def _up_to(session: Session, step: int, files: Sequence[str]) -> list[str]:
    """The files of a session without checkpoints after a step of the UNet's stage, and without what was set aside."""
    newer = {one.path.name for one in complete(session.checkpoints, "unet") if one.step > step}
    gone = tuple(f"checkpoints/{name}/" for name in newer)
    return [name for name in files if not name.startswith((f"checkpoints/{ASIDE}", *gone))]


def _adopt_link(link: str, name: str | None, base: str | Path | None, root: str | Path | None) -> Session:
    """Fetch a zip from the web and adopt it; what an earlier try left of it is gone on from.

    Raises:
        ModelError: it cannot be had.
        SessionError: it is larger than any session, or cannot be adopted.
    """
    from fastdb.downloads.civitai_and_drive import remote_of
    from fastdb.downloads.download import download
    from fastdb.downloads.source import CivitaiFile, DriveFile, WebFile, parse

    named = parse(link)
    if not isinstance(named, DriveFile | WebFile) or isinstance(named, CivitaiFile):
        raise SessionError("is the link of a model and of no session", where=named, fix="Give the link of a zip.")
    coming = cache_folder() / "coming" / hashlib.sha256(str(named).encode()).hexdigest()[:12]
    with console.bar("download", "B") as update:

        def arrived(done: int, total: int) -> None:
            if max(done, total) > MOST_BYTES:
                raise SessionError("is larger than any session", where=named, fix="Ask for a smaller one.")
            update(done, total)

        path = download(remote_of(named), coming, arrived)
    session = _adopt_archive(path, name, base, root)
    # What cannot be adopted stays for another try with other words; it is fetched once.
    shutil.rmtree(coming, ignore_errors=True)
    return session


def _adopt_archive(path: Path, name: str | None, base: str | Path | None, root: str | Path | None) -> Session:
    with opened(path) as archive:
        found = locate((member.name for member in archive.members), path)
        name = name or _name(found.name or path.stem, path)
        inside = [member for member in archive.members if member.name.startswith(found.prefix)]
        known = None if found.classic else _base(base)
        with staged(name, root) as (beside, final):
            if found.classic:
                unpacked = beside / ".unpacked"
                inside = [member for member in inside if not member.name.endswith(EXPORTS)]
                _unpack(archive, inside, unpacked, found)
                _take_classic(unpacked, beside, name, base, path)
                shutil.rmtree(unpacked)
            else:
                _unpack(archive, inside, beside, found)
                if not check_manifest(beside, path):
                    console.say("it has no manifest: that it is what was shared cannot be told")
                settle(beside, name, known, path, (found.name,))
            record_files(beside, lock=False)
    return Session(final, read_record(final))


def _unpack(archive: Archive, inside: Sequence[Member], folder: Path, found: Found) -> None:
    folder.mkdir(exist_ok=True)
    with console.bar("unpack", "B") as update:
        archive.unpack(inside, folder, found.prefix, update)


def _adopt_folder(
    top: Path, name: str | None, called: str, base: str | Path | None, root: str | Path | None, where: object
) -> Session:
    found = locate_in(top, where)
    folder = top / found.prefix
    name = name or _name(found.name or called, where)
    known = None if found.classic else _base(base)
    with staged(name, root) as (beside, final):
        if found.classic:
            _take_classic(folder, beside, name, base, where)
        else:
            _check_still(folder, str(where), True)
            _say_changed(folder)
            read_come(folder, where)
            files, said = files_of(folder)
            for line in said:
                console.say(line)
            whole = [*files, MANIFEST] if (folder / MANIFEST).is_file() else files
            with console.bar("copy", "B") as update:
                copy_files(folder, whole, beside, update)
            check_manifest(beside, where)
            settle(beside, name, known, where, (found.name, called))
        record_files(beside, lock=False)
    return Session(final, read_record(final))


def _take_classic(folder: Path, beside: Path, name: str, base: str | Path | None, where: object) -> None:
    """Make the session in `beside` out of a classic one's images and captions.

    Raises:
        ImageError: no picture can be used.
        ModelError: the base model cannot be had.
    """
    from fastdb.models.diffusers_folder import open_base_model
    from fastdb.models.mini_settings import recommended
    from fastdb.models.resolve import MINI
    from fastdb.sharing.classic_notebook import (
        add_classic,
        add_concept_images,
        only_zipped,
        read_classic,
        unzipped,
    )

    unpacked = beside / ".images"
    if only_zipped(folder):
        unzipped(folder, unpacked)
        folder = unpacked
    classic, model = read_classic(folder), _resolve(base or MINI)
    size = open_base_model(model.folder).sample_size
    config = Config().changed({**recommended(base or MINI, ""), "resolution": size})
    lay_out(beside)
    record = Record(name=name, created=now(), lineage=new_lineage(), base_model=_record(model), config=config)
    session = Session(beside, write_record(beside, record))
    with console.bar("photos", "photo") as update:
        intake, said = add_classic(
            classic,
            session.originals,
            session.instance_images,
            session.captions,
            size,
            update,
        )
    for refused in intake.refused:
        console.say(f"left out: {refused.source.name}: {refused.reason}")
    for line in said:
        console.say(line)
    if not intake.added:
        raise ImageError("none of its pictures can be used", where=where, fix="Mend those named above.")
    console.say(f"a session of the classic notebook: {len(intake.added)} of {len(classic.photos)} images are in")
    if concept := add_concept_images(classic, session.class_images, size):
        console.say(f"its {concept} concept images are class images now: prior.class_images={concept} trains with them")
    shutil.rmtree(unpacked, ignore_errors=True)
    for path in classic.models:
        console.say(f"to go on from what was trained in it, adopt it under another name with --base {path}")


def _base(base: str | Path | None) -> BaseModelRecord | None:
    return None if base is None else _record(_resolve(base))


def _resolve(base: str | Path) -> Base:
    from fastdb.models.resolve import resolve_base

    with console.bar("base model", "B") as update:
        return resolve_base(base, update)


def _record(model: Base) -> BaseModelRecord:
    from fastdb.models.diffusers_folder import fingerprint

    return BaseModelRecord(folder=model.named, fingerprint=fingerprint(model.folder), source=model.source)


def _name(called: str, where: object) -> str:
    """A name for what is `called` so where it came from.

    Raises:
        SessionError: no session can be called anything like it.
    """
    name = near_name(called)
    if not name:
        raise SessionError("has no name that a session can have", where=where, fix="Give it one: fastdb adopt ... NAME")
    if name != called:
        console.say(f"it is called {name} here")
    return name


def _target(session: Session, target: str | Path | None, usual: str) -> Path:
    """Where the archive of a session goes.

    Raises:
        StorageError: there is something already, or it is no place for it.
    """
    path = expanded(target if target is not None else usual).absolute()
    if path.is_dir():
        path = path / usual
    if path.suffix.lower() != ENDING:
        raise StorageError("is no name of a zip", where=path, fix=f"Give it the ending {ENDING}.")
    if path.is_relative_to(session.path.resolve()) or path.is_relative_to(session.path):
        raise StorageError("lies in the session itself", where=path, fix="Choose a place outside it.")
    if path.exists():
        raise StorageError("is there already", where=path, fix="Choose another name, or remove it.")
    return path


def _check_still(folder: Path, called: str, state: bool) -> None:
    """Make sure that no trainer writes what is to be copied, on this machine or, as far as is seen here, on another.

    Raises:
        SessionBusy: one does.
    """
    from fastdb.sessions.lease_status import refuse_elsewhere
    from fastdb.training.process import is_training

    if state and is_training(folder):
        raise SessionBusy("is being trained", where=called, fix=f"Stop that first: fastdb stop {called}")
    if state:
        refuse_elsewhere(folder, "Or stop it there.")


def _say_changed(folder: Path) -> None:
    """Tell what will be copied as it is, though it is not as it came."""
    for note in changes(folder):
        console.say(f"warning: {console.sentence(note)}")


def _say_left(session: Session) -> None:
    left = [name for name in HEAVY if any(path.name != README for path in _children(session.path / name))]
    if left:
        console.say(f"left out: {', '.join(left)}; --checkpoints takes them along")
    if exports := exports_of(session):
        console.say(f"left out: {', '.join(path.name for path in exports)}")


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
