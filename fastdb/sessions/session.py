"""`Session`: open, create, list. It is passed as an argument and never kept in a global."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fastdb.config import Config, Extension
from fastdb.errors import FastDBError, SessionError, SessionExists, SessionNotFound, StorageError
from fastdb.runtime.paths import expanded, sessions_root, work_folder
from fastdb.sessions.session_yaml import (
    FILE,
    BaseModelRecord,
    Extended,
    Record,
    Run,
    Subject,
    new_lineage,
    read_record,
    write_record,
)
from fastdb.storage.atomic_write import explained, make_folder
from fastdb.storage.safe_names import is_system_file, reserved_on_windows
from fastdb.storage.staged_folder import staged_folder

NAME = re.compile(r"[^\W_][\w.-]{0,62}")

_LONGEST = 200
"""Bytes of UTF-8, so that `<name>.safetensors` and what is put around it while writing fit into 255."""


@dataclass(frozen=True)
class Session:
    """A session's folder and what its `session.yaml` said when it was opened."""

    path: Path
    record: Record

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
        """Make a new session's folder from the template; it appears whole or not at all.

        Raises:
            SessionError: the name cannot be a folder's name everywhere.
            SessionExists: a session of that name is there already.
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
                raise _exists(path) from error
        return cls(path, record)

    @classmethod
    def open(cls, name: Path | str, root: Path | str | None = None) -> Session:
        """Open a session by its name below `root`, or by its folder's path, such as `./my_dog`.

        Raises:
            SessionNotFound: there is none; the nearest name is told.
            SessionError, ConfigError: its `session.yaml` cannot be used.
            StorageError: it may not be read.
        """
        path = expanded(name)
        with explained(path):
            if path.is_absolute() and not path.is_dir():
                raise SessionNotFound(
                    "there is no such folder", where=path, fix="Check the spelling, or mount the disk it lies on."
                )
            if not (path.is_dir() and (path.is_absolute() or os.sep in str(name))):
                path = sessions_root(root) / str(name)
                # Earlier versions made sessions with names such as com¹, which Windows reserves.
                if not (NAME.fullmatch(str(name)) and path.is_dir()):
                    check_name(str(name))
            if not path.is_dir():
                raise _not_found(str(name), sessions_root(root))
        path = path.absolute()
        return cls(path, read_record(path))

    @classmethod
    def list(cls, root: Path | str | None = None) -> Iterator[Session | FastDBError]:
        """Every session below `root` by name; one that cannot be opened comes as the reason why.

        Raises:
            StorageError: the folder may not be read.
        """
        for path in _folders(sessions_root(root)):
            try:
                yield cls(path, read_record(path))
            except FastDBError as error:
                yield error

    @property
    def name(self) -> str:
        """Its folder's name, by which it is opened; a copied or renamed folder is a session of its new name."""
        return self.path.name

    @property
    def config(self) -> Config:
        """Its settings."""
        return self.record.config

    @property
    def originals(self) -> Path:
        """The photos as they came."""
        return self.path / "originals"

    @property
    def instance_images(self) -> Path:
        """What training sees."""
        return self.path / "instance_images"

    @property
    def captions(self) -> Path:
        """Text to go with an instance image, as `<stem>.txt`."""
        return self.path / "captions"

    @property
    def class_images(self) -> Path:
        """Pictures of the class as the base model shows it."""
        return self.path / "class_images"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints that are published: what training goes on from on any machine."""
        return self.path / "checkpoints"

    @property
    def local_checkpoints(self) -> Path:
        """Checkpoints on this machine's own disk: training saves here, and they are published from here."""
        return work_folder(self.path) / "checkpoints"

    @property
    def checkpoint_folders(self) -> tuple[Path, Path]:
        """Where checkpoints may lie; of two of one step, that of the first place is nearer."""
        return self.local_checkpoints, self.checkpoints

    @property
    def samples(self) -> Path:
        """Pictures made on the way."""
        return self.path / "samples"

    @property
    def logs(self) -> Path:
        """What its trainers said, a file for each run."""
        return self.path / "logs"

    @property
    def class_prompts(self) -> tuple[str, ...]:
        """The prompts of the class images, which take turns."""
        return self.config.prior.prompts or (f"a photo of {self.record.subject.class_word}".strip(),)

    def with_config(self, config: Config) -> Session:
        """Write other settings into `session.yaml` and give the session that has them."""
        return self._rewritten(self.record.model_copy(update={"config": config}))

    def with_extension(self, more: Extension) -> Session:
        """Append further steps to the UNet's stage, and note that in the history; what a person has changed stays.

        Raises:
            ConfigError: it has as many extensions as it may have.
        """
        record = read_record(self.path)
        unet = record.config.unet
        given = [one.model_dump() for one in (*unet.extensions, more)]
        noted = Extended(when=now(), after=unet.all_steps, **more.model_dump())
        config = record.config.changed({"unet.extensions": given})
        return self._rewritten(
            record.model_copy(update={"config": config, "extended": (*record.extended, noted)}),
        )

    def with_new_lineage(self) -> Session:
        """Begin anew: what was trained so far belongs to an earlier beginning of the session from now on."""
        return self._rewritten(self.record.model_copy(update={"lineage": new_lineage()}))

    def with_run_begun(self, begins: str) -> Session:
        """Note in the history that a trainer begins; what a person has changed in the file meanwhile stays."""
        self.check_there()
        record = read_record(self.path)
        run = Run(started=now(), begins=begins)
        return self._rewritten(record.model_copy(update={"runs": (*record.runs, run)}))

    def with_run_ended(self, outcome: str) -> Session:
        """Note in the history how the trainer that began last has ended; what a person has changed stays."""
        self.check_there()
        record = read_record(self.path)
        *before, last = record.runs
        ended = last.model_copy(update={"ended": now(), "outcome": outcome})
        return self._rewritten(record.model_copy(update={"runs": (*before, ended)}))

    def check_there(self) -> None:
        """Make sure that the folder is still the session's before something is written below it.

        Raises:
            StorageError: it was renamed or removed, or the disk it lies on is gone.
        """
        with explained(self.path):
            there = (self.path / FILE).is_file()
        if not there:
            raise StorageError(
                "the session's folder is not there any more: renamed, removed, or its disk is no longer mounted",
                where=self.path,
                fix="Put it back, or mount the disk again, and run the same command again.",
            )

    def _rewritten(self, record: Record) -> Session:
        return Session(self.path, write_record(self.path, record))


def now() -> str:
    """The time in UTC to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_name(name: str) -> None:
    """Refuse a name that is no plain folder name on Drive, Linux, macOS and Windows alike.

    Raises:
        SessionError: with a name near it that would do.
    """
    if not _usable(name):
        near = near_name(name)
        raise SessionError(
            "cannot be the name of a session: letters, digits, _ - and . only, a letter or digit first, at most 63, "
            "and no name that Windows keeps for itself",
            where=repr(name) if len(name) < 100 else f"{name[:60]!r}...",
            fix=f"{near} would do." if near else "Choose a name such as my_dog.",
        )


def near_name(name: str) -> str:
    """The name itself where a session can have it, else one near it that would do; empty where there is none."""
    if _usable(name):
        return name
    plain = re.sub(r"[^\w-]+", "_", name).strip("_-")[:63]
    return next((near for near in (plain, f"{plain}_") if _usable(near)), "")


def check_free(name: str, root: Path | str | None = None) -> Path:
    """The folder that a new session of this name will have.

    Raises:
        SessionError: the name cannot be a folder's name everywhere.
        SessionExists: a session of that name is there already.
    """
    check_name(name)
    path = sessions_root(root) / name
    if os.path.lexists(path):
        raise _exists(path)
    return path


def _usable(name: str) -> bool:
    short = len(name.encode("utf-8", "replace")) <= _LONGEST
    return bool(NAME.fullmatch(name)) and short and not is_system_file(name) and not reserved_on_windows(name)


def template() -> Path:
    """The folder every new session starts as: inside the installed package, or beside it in the source tree."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "sessions_template"
    return installed if installed.is_dir() else package.parent / "sessions_template"


def lay_out(folder: Path) -> None:
    """Copy the template's folders and files where they are missing, but not its permissions: it may be read-only.

    Raises:
        FileExistsError: a file has the name of a folder.
    """
    source = template()
    for path in sorted(source.rglob("*")):
        target = folder / path.relative_to(source)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif not target.exists():
            target.write_bytes(path.read_bytes())


def _folders(root: Path) -> list[Path]:
    with explained(root):
        if not root.is_dir():
            return []
        return sorted(path for path in root.iterdir() if not path.name.startswith(".") and path.is_dir())


def _exists(path: Path) -> SessionExists:
    return SessionExists(
        "there is a session of this name already",
        where=path,
        fix=f"Go on with it (fastdb show {path.name}), or choose another name.",
    )


def _not_found(name: str, root: Path) -> SessionNotFound:
    import difflib

    names = [path.name for path in _folders(root)]
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        fix = f"Did you mean {near[0]}?"
    elif names:
        fix = "fastdb sessions lists those there are."
    else:
        fix = f"There are none yet; make one with: fastdb new {name}"
    return SessionNotFound(f"no session of this name in {root}", where=name, fix=fix)
