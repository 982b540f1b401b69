"""Sessions, each of which is a folder on disk."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fastdb.config import Config, Extension
from fastdb.errors import FastDBError, SessionError, SessionNotFound, StorageError
from fastdb.reporting import argument
from fastdb.runtime.paths import expanded, sessions_root, work_folder
from fastdb.sessions.lineage import check_same, record_home
from fastdb.sessions.record_lock import record_lock
from fastdb.sessions.session_names import can_be_listed, check_name, exists_already, not_found
from fastdb.sessions.session_names import near_name as near_name
from fastdb.sessions.session_yaml import (
    FILE,
    BaseModelRecord,
    Exported,
    Extended,
    Record,
    Revision,
    Run,
    Subject,
    missing_parts,
    new_lineage,
    read_record,
    write_record,
)
from fastdb.storage.atomic_write import explained, make_folder
from fastdb.storage.staged_folder import staged_folder

SAMPLE = re.compile(r"(?P<stage>[a-z_]+)-(?P<step>\d+)-(?P<number>\d+)")
"""Stem of a sample's file."""
CHECKPOINTS = "checkpoints"
"""Name of the folder of checkpoints, in a session's folder and in its work folder."""

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "sessions_template"
TEMPLATE = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "sessions_template"
"""Template of sessions, in the installed package or beside it in the source tree."""
_FILE_SUFFIXES = (".safetensors", ".ckpt", ".zip")
"""Endings of exports and archives; `generate` and `adopt` take such a name for a file."""


@dataclass(frozen=True)
class Session:
    """Session's folder, and its `session.yaml` as it was when the session was opened."""

    path: Path
    record: Record
    name: str = field(init=False, repr=False, compare=False)
    """The folder's name, by which it is opened; a copied or renamed folder is a session of its new name."""
    config: Config = field(init=False, repr=False, compare=False)
    class_prompts: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Prompts of the class images, used in turn."""
    originals: Path = field(init=False, repr=False, compare=False)
    """Photos as they were added."""
    instance_images: Path = field(init=False, repr=False, compare=False)
    """Cropped photos, which are trained on."""
    captions: Path = field(init=False, repr=False, compare=False)
    """Texts for instance images, as `<stem>.txt`."""
    class_images: Path = field(init=False, repr=False, compare=False)
    checkpoints: Path = field(init=False, repr=False, compare=False)
    """Published checkpoints, from which training resumes on any machine."""
    samples: Path = field(init=False, repr=False, compare=False)
    logs: Path = field(init=False, repr=False, compare=False)
    """Events of its trainers, a file for each run."""

    def __post_init__(self) -> None:
        values = {"name": self.path.name, "config": self.record.config, "class_prompts": self.record.class_prompts}
        folders = ("originals", "instance_images", "captions", "class_images", "checkpoints", "samples", "logs")
        for name, value in (*values.items(), *((folder, self.path / folder) for folder in folders)):
            object.__setattr__(self, name, value)

    @classmethod
    def create(
        cls,
        name: str,
        *,
        base_model: BaseModelRecord,
        subject: Subject | None = None,
        config: Config | None = None,
        root: Path | str | None = None,
    ) -> Session:
        """Create a session's folder from the template; it appears whole or not at all.

        Raises:
            SessionError: the name is invalid.
            SessionExists: a session of that name exists.
            StorageError: the folder cannot be written.
        """
        path = check_free(name, root)
        folder = path.parent
        record = Record(
            name=name,
            created=now(),
            lineage=new_lineage(),
            base_model=base_model,
            subject=subject or Subject(),
            config=config or Config(),
        )
        make_folder(folder)
        with explained(path):
            try:
                with staged_folder(path, folder / f".{name}.{uuid.uuid4().hex[:8]}") as staged:
                    lay_out(staged)
                    write_record(staged, record)
            except FileExistsError as error:
                raise exists_already(path) from error
        session = cls(path, record)
        # A copy of it is known as one. On a full disk the first run records it.
        with suppress(StorageError, OSError):
            record_home(session.work, path, record.lineage)
        return session

    @classmethod
    def open(cls, name: SessionLike, root: Path | str | None = None) -> Session:
        """Open a session by its folder's name below `root`, or by its path, such as `./my_dog`.

        An open session is read again, because its trainer may have changed its record.

        Raises:
            SessionNotFound: it does not exist; the message contains the nearest name.
            SessionError, ConfigError: its `session.yaml` is invalid.
            StorageError: it cannot be read.
        """
        path = name.path if isinstance(name, Session) else expanded(name)
        with explained(path):
            if path.is_absolute() and not path.is_dir():
                raise SessionNotFound(
                    "the folder does not exist", where=path, fix="Check the spelling, or mount its disk."
                )
            if not (path.is_dir() and (path.is_absolute() or os.sep in str(name))):
                path = sessions_root(root) / str(name)
                # People and Google Drive rename folders, and every folder that is listed can be opened.
                if not (can_be_listed(str(name)) and path.is_dir()):
                    raise not_found(
                        str(name), sessions_root(root), [path.name for path in _folders(sessions_root(root))]
                    )
        path = path.absolute()
        return cls(path, read_record(path))

    @classmethod
    def list(cls, root: Path | str | None = None) -> Iterator[Session | FastDBError]:
        """Yield every session below `root` by name, and an error for each that cannot be opened.

        Raises:
            StorageError: the folder cannot be read.
        """
        for path in _folders(sessions_root(root)):
            try:
                yield cls(path, read_record(path))
            except FastDBError as error:
                yield error

    @property
    def exports(self) -> tuple[Path, ...]:
        """Exported files; those of a copy or of a folder renamed by hand have the former name, or are recorded."""
        names = tuple(filter(None, (self.name, self.record.name)))
        recorded = {export.file for export in self.record.exports}
        files = (path for path in sorted(self.path.glob("*")) if path.suffix in {".safetensors", ".ckpt"})
        return tuple(path for path in files if path.name.startswith(names) or path.name in recorded)

    @property
    def local_checkpoints(self) -> Path:
        """Folder on this machine's own disk to which training saves, and from which checkpoints are published."""
        return self.work / CHECKPOINTS

    @property
    def work(self) -> Path:
        """Folder on this machine's own disk for the working files of its trainer, found by its lineage."""
        return work_folder(self.path, self.record.lineage)

    @property
    def checkpoint_folders(self) -> tuple[Path, Path]:
        """Folders of checkpoints; of two checkpoints of a step, the one in the first folder is used."""
        return self.local_checkpoints, self.checkpoints

    def with_config(self, config: Config) -> Session:
        """Write other settings into `session.yaml`, and return the changed session."""
        self.check_complete()
        return self._rewritten(self.record.model_copy(update={"config": config}))

    def with_values(self, base_model: BaseModelRecord, subject: Subject, config: Config) -> Session:
        """Write another base model, subject and settings into `session.yaml`, and return the changed session."""
        self.check_complete()
        return self._rewritten(
            self.record.model_copy(update={"base_model": base_model, "subject": subject, "config": config})
        )

    def with_extension(self, extension: Extension) -> Session:
        """Append further steps to the UNet stage, and record them in the history.

        Like all changes of the history it keeps edits made to the file meanwhile.

        Raises:
            ConfigError: the session has the largest number of extensions.
            SessionError: its file is incomplete.
        """
        self.check_complete()
        with record_lock(self.work):
            record = read_record(self.path)
            unet = record.config.unet
            extensions = [step.model_dump() for step in (*unet.extensions, extension)]
            entry = Extended(when=now(), after=unet.all_steps, **extension.model_dump())
            config = record.config.changed({"unet.extensions": extensions})
            return self._rewritten(
                record.model_copy(update={"config": config, "extended": (*record.extended, entry)}),
            )

    def with_revision(self, config: Config, after: str, changes: Sequence[str], reason: str = "") -> Session:
        """Write other settings that hold from a step on, such as `unet step 40`, and record them in the history."""
        with record_lock(self.work):
            record = read_record(self.path)
            entries = (Revision(when=now(), after=after, change=change, reason=reason) for change in changes)
            update = {"config": config, "revised": (*record.revised, *entries)}
            return self._rewritten(record.model_copy(update=update))

    @property
    def extensions(self) -> tuple[Extended, ...]:
        """The extensions of the UNet stage in the settings, with the time of those that `extend` added unchanged."""
        extensions = []
        for segment in self.config.unet.segments:
            if segment.extension is None:
                continue
            entry = Extended(when="", after=segment.start, **segment.extension.model_dump())
            same = (one for one in self.record.extended if one.model_copy(update={"when": ""}) == entry)
            extensions.append(next(same, entry))
        return tuple(extensions)

    def with_new_lineage(self, inherited: tuple[str, ...] = ()) -> Session:
        """Give the session a lineage of its own.

        Args:
            inherited: earlier lineages whose checkpoints still belong to the session; training restarts without them.

        Raises:
            SessionError: its file is incomplete.
        """
        self.check_complete()
        return self._rewritten(
            self.record.model_copy(update={"lineage": new_lineage(), "inherited": inherited}),
        )

    def with_run_begun(self, begins: str, configurations: Mapping[str, str] | None = None) -> Session:
        """Record the start of a trainer in the history.

        Args:
            configurations: those of the base model, recorded if an earlier version of this package recorded none.
        """
        self.check_there()
        self.check_complete()
        with record_lock(self.work):
            record = read_record(self.path)
            base, run = record.base_model, Run(started=now(), begins=begins)
            if not base.configurations:
                base = base.model_copy(update={"configurations": dict(configurations or {})})
            return self._rewritten(record.model_copy(update={"runs": (*record.runs, run), "base_model": base}))

    def with_run_ended(self, outcome: str) -> Session:
        """Record the outcome of the trainer that started last in the history."""
        self.check_there()
        with record_lock(self.work):
            record = read_record(self.path)
            # Somebody may have put an older file back meanwhile.
            *before, last = record.runs or (Run(started=now(), begins=""),)
            ended = last.model_copy(update={"ended": now(), "outcome": outcome})
            return self._rewritten(record.model_copy(update={"runs": (*before, ended)}))

    def with_exports(self, file: str, trained: str) -> Session:
        """Record how far the training was that an exported file contains."""
        self.check_complete()
        with record_lock(self.work):
            record = read_record(self.path)
            others = [export for export in record.exports if export.file != file]
            made = Exported(file=file, trained=trained, when=now())
            return self._rewritten(record.model_copy(update={"exports": (*others, made)}))

    def check_there(self) -> None:
        """Raise if the session's folder is gone or holds another session, before anything is written below it.

        Raises:
            SessionBusy: it was renamed, or another session took its place.
            StorageError: it was removed, or its disk is gone.
        """
        check_same(self.path, self.record.lineage)
        with explained(self.path):
            exists = (self.path / FILE).is_file()
        if not exists:
            raise StorageError(
                "the session's folder is gone: it was renamed or removed, or its disk is not mounted",
                where=self.path,
                fix="Restore it, or mount the disk, and run the same command again.",
            )

    def check_complete(self) -> None:
        """Raise if `session.yaml` was cut short: defaults would silently replace its settings.

        Raises:
            SessionError: naming the missing parts.
            StorageError: it cannot be read.
        """
        if missing := missing_parts(self.path):
            raise SessionError(
                f"is incomplete: it lacks {', '.join(missing)}",
                subject=self.path / FILE,
                fix="Restore it from a copy. If you edited it and it is right, accept it with: fastdb check "
                f"{argument(self.name)} --accept",
            )

    def _rewritten(self, record: Record) -> Session:
        return Session(self.path, write_record(self.path, record))


SessionLike = Session | str | Path


def now() -> str:
    """Return the time in UTC to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_free(name: str, root: Path | str | None = None) -> Path:
    """Return the folder of a new session of this name.

    Raises:
        SessionError: the name is invalid.
        SessionExists: a session of that name exists.
    """
    check_name(name)
    if name.lower().endswith(_FILE_SUFFIXES):
        raise SessionError(
            "is the name of a file; the name of a session cannot end like this",
            subject=repr(name),
            fix=f"Use {name.rpartition('.')[0]}, for example.",
        )
    path = sessions_root(root) / name
    if os.path.lexists(path):
        raise exists_already(path)
    if twin := next((other for other in _folders(path.parent) if other.name.casefold() == name.casefold()), None):
        # On Windows and macOS, where people look at their Drive, these would be one folder.
        raise exists_already(twin)
    return path


def lay_out(folder: Path) -> None:
    """Copy the template's folders and files where they are missing, without its permissions: it may be read-only.

    Raises:
        FileExistsError: a file has the name of a folder.
    """
    source = TEMPLATE
    for path in sorted(source.rglob("*")):
        target = folder / path.relative_to(source)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif not target.exists():
            target.write_bytes(path.read_bytes())


def _folders(root: Path) -> list[Path]:
    with explained(root):
        if root.is_file():
            raise StorageError("is not a folder", subject=root, fix="Choose another folder.")
        if not root.is_dir():
            return []
        return sorted(path for path in root.iterdir() if not path.name.startswith(".") and path.is_dir())
