"""`session.yaml`: what a session is, in a form both a person and a program read."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from fastdb.config import Config, Extension, Settings, build
from fastdb.errors import ConfigError, SessionError
from fastdb.sessions.migrations import FORMAT, migrated
from fastdb.storage.atomic_write import explained, write_bytes, write_text
from fastdb.storage.checksum_line import sealed
from fastdb.storage.safe_names import shown
from fastdb.storage.safe_yaml import parse
from fastdb.version import __version__

FILE = "session.yaml"
WRITER = f"fastdb {__version__}"
LARGEST = 1 << 20
"""Bytes of `session.yaml`; a long history takes a tenth of it."""


class BaseModelRecord(Settings):
    """The base model a session starts from."""

    folder: str = Field(description="A Stable Diffusion: one file or a diffusers folder; or `mini`.")
    fingerprint: str = Field(description="SHA-256 over its weights: another model is not taken for this one.")
    source: str = Field("", description="Where it was fetched from, such as owner/name@commit, and can be again.")


class Subject(Settings):
    """What is taught: a rare word and the class it belongs to."""

    token: str = Field("", description="The rare word, such as sks.")
    class_word: str = Field("", description="The class, such as dog.")


class Run(Settings):
    """One life of the trainer. A run without an end was killed, or is still going."""

    started: str = Field(description="UTC, ISO 8601.")
    begins: str = Field(description="Where it began, such as `text_encoder step 0`.")
    ended: str = Field("", description="UTC, ISO 8601.")
    outcome: str = Field("", description="finished, stopped or failed, and where.")


class Extended(Extension):
    """A time when the UNet's stage was given further steps."""

    when: str = Field(pattern=r"^[\dT:+-]{0,40}$", description="UTC, ISO 8601.")
    after: int = Field(ge=0, description="The step it was to end with until then.")

    def __str__(self) -> str:
        return f"after step {self.after} by {super().__str__()}"


class Record(Settings):
    """Everything `session.yaml` holds."""

    format: int = FORMAT
    written_by: str = WRITER
    """The version that wrote the file."""
    name: str
    created: str
    lineage: str = Field("", pattern=r"^([0-9a-f]{32})?$")
    """Which beginning of which session its checkpoints belong to; empty where that is not known."""
    base_model: BaseModelRecord
    subject: Subject = Subject()
    config: Config = Config()
    runs: tuple[Run, ...] = ()
    extended: tuple[Extended, ...] = ()


def new_lineage() -> str:
    """A lineage that no other session has, and this one had not before."""
    return uuid.uuid4().hex


def read_record(folder: Path) -> Record:
    """Read `session.yaml` of a session's folder; one of an earlier format is brought up to date, in memory alone.

    Raises:
        SessionError: it is missing, damaged, or of a format this version does not know.
        ConfigError: it holds settings that do not fit.
    """
    path = folder / FILE
    try:
        data = _plain(path)
    except FileNotFoundError:
        raise SessionError(
            "there is no session.yaml, so this is no session of fastdb", where=folder, fix="Choose another folder."
        ) from None
    _check_format(data, path)
    return build(Record, migrated(data), where=path)


def _plain(path: Path) -> Mapping[str, Any]:
    """The file as data, with a format and whatever else is in it.

    Raises:
        FileNotFoundError: there is none.
        SessionError: it cannot be read, or has no format.
    """
    try:
        with explained(path):
            if path.stat().st_size > LARGEST:
                raise SessionError("is larger than any session.yaml", where=path, fix="Put back the file it had.")
            data: Any = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        raise SessionError(
            "cannot be read as YAML" + (f" (line {line + 1})" if line is not None else ""),
            where=path,
            fix="Correct it by hand; nothing was changed.",
        ) from None
    if not isinstance(data, dict) or "format" not in data:
        raise SessionError("has no format number", where=path, fix="Put back the file this session had.")
    return data


def _check_format(data: Mapping[str, Any], path: Path) -> None:
    """Refuse a format that this version cannot read.

    Raises:
        SessionError: saying who wrote it, where that is known.
    """
    number, writer = data["format"], data.get("written_by")
    if type(number) is not int or number < 1:
        raise SessionError(
            f"has format {shown(str(number))}, which no version of fastdb writes",
            where=path,
            fix="Put back the file this session had.",
        )
    if number > FORMAT:
        by = f", written by {shown(writer)}" if isinstance(writer, str) and writer else ""
        raise SessionError(
            f"has format {number}{by}, and this version ({WRITER}) reads formats 1 to {FORMAT}",
            where=path,
            fix="Update fastdb and open it again; nothing was changed.",
        )


def _comes_back(text: str, data: Any) -> bool:
    try:
        return bool(parse(text) == data)
    except (yaml.YAMLError, ValueError):
        return False


def write_record(folder: Path, record: Record, *, keep: bool = True) -> Record:
    """Replace `session.yaml`, whole or not at all; returns the record as it was written.

    Where the file that is there has an earlier format, it is kept beside as `session.yaml.format-1`, once, so that
    the version that wrote it can have it back; not where `keep` is false, for a copy whose original has it still.

    Raises:
        ConfigError: it holds bytes that a terminal passed on though they are no text.
        StorageError: the folder cannot be written.
    """
    record = record.model_copy(update={"format": FORMAT, "written_by": WRITER})
    data = record.model_dump(mode="json")
    if any("\ud800" <= sign <= "\udfff" for sign in json.dumps(data, ensure_ascii=False)):
        raise ConfigError(
            "a word or prompt holds what is no text", where=record.name, fix="Type it anew, or leave it out."
        )
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
    if not _comes_back(text, data):
        # Line breaks of other scripts come back as ordinary ones, or not at all, unless they are escaped.
        text = yaml.safe_dump(data, sort_keys=False, width=110)
    if keep:
        _keep_earlier(folder / FILE)
    write_text(folder / FILE, sealed(text))
    return record


def _keep_earlier(path: Path) -> None:
    # What cannot be read has no format that could be gone back to.
    with suppress(FileNotFoundError, SessionError):
        number = _plain(path)["format"]
        beside = path.with_name(f"{FILE}.format-{number}")
        if type(number) is int and 0 < number < FORMAT and not beside.exists():
            write_bytes(beside, path.read_bytes())
