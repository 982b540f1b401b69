"""The record of a session in `session.yaml`, which people may edit."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from fastdb.config import Config, Extension, Settings, build
from fastdb.errors import ConfigError, SessionError
from fastdb.runtime.paths import SESSION_FILE, derived_lineage
from fastdb.storage.atomic_write import explained, write_bytes, write_text
from fastdb.storage.safe_names import shown
from fastdb.storage.safe_yaml import parse
from fastdb.version import __version__

FILE = SESSION_FILE
FORMAT = 4
"""Format that this version writes. A new number needs a migration, and a sample of the old one in `tests/formats`."""
_GROUPS = ("written_by", "name", "created", "lineage", "base_model", "subject", "config", "runs", "extended")
_INNER = ("text_encoder", "unet", "prior", "captions", "optimizer", "checkpoints", "samples")
"""Entries at the top of every `session.yaml` from format 2 on, and the groups of its settings."""
WRITER = f"fastdb {__version__}"
_CHECKSUM = "# sha256 of the lines above: "
"""Start of the last line, by which edits are detected."""
_SEAL = re.compile(rf"^{_CHECKSUM}[0-9a-f]{{64}}\s*\Z", re.MULTILINE)
LARGEST = 1 << 20
"""Bytes of `session.yaml`; a long history takes a tenth of it."""


class BaseModelRecord(Settings):
    """Base model of a session."""

    folder: str = Field(description="A model file, a diffusers folder, or `mini`.")
    fingerprint: str = Field(description="SHA-256 over its weights.")
    source: str = Field("", description="Origin from which it can be downloaded again, such as owner/name@commit.")
    configurations: dict[str, str] = Field(
        default_factory=dict, description="Hash of each file that decides its behaviour; empty if not recorded yet."
    )


class Subject(Settings):
    """Subject that is taught."""

    token: str = Field("", description="Rare word, such as sks.")
    class_word: str = Field("", description="Class, such as dog.")


class Run(Settings):
    """Run of the trainer; without an end it crashed or is running."""

    started: str = Field(description="UTC, ISO 8601.")
    begins: str = Field(description="First step, such as `text_encoder step 0`.")
    ended: str = Field("", description="UTC, ISO 8601.")
    outcome: str = Field("", description="finished, stopped or failed, with the step.")


class Extended(Extension):
    """Extension of the UNet stage, with its time."""

    when: str = Field(pattern=r"^[\dT:+-]{0,40}$", description="UTC, ISO 8601.")
    after: int = Field(ge=0, description="Last step of the stage before.")

    def __str__(self) -> str:
        return f"after step {self.after} by {super().__str__()}"


class Revision(Settings):
    """Change of a setting of a training that has begun, which holds from a step on."""

    when: str = Field(description="UTC, ISO 8601.")
    after: str = Field(description="Last step before it, such as `unet step 40`.")
    change: str = Field(description="The setting and its values, such as `unet.learning_rate 2e-06 -> 2e-07`.")
    reason: str = Field("", description="Empty if it was asked for.")

    def __str__(self) -> str:
        return f"after {self.after}: {self.change}{f' ({self.reason})' if self.reason else ''}"


class Exported(Settings):
    """Exported file, with the progress of the training that it contains."""

    file: str = Field(description="Name of the file.")
    trained: str = Field(description="Steps of each stage, such as `text_encoder 350, unet 1500`.")
    when: str = Field(description="UTC, ISO 8601.")


class Record(Settings):
    """Content of `session.yaml`."""

    format: int = FORMAT
    written_by: str = WRITER
    """Version that wrote the file."""
    name: str
    created: str
    lineage: str = Field("", pattern=r"^([0-9a-f]{32})?$")
    """Identifies one start of training, to which checkpoints belong; empty if unknown."""
    inherited: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")], ...] = ()
    """Lineages of the sessions that this one is a copy of; their checkpoints in its folder belong to it too."""
    base_model: BaseModelRecord
    subject: Subject = Subject()
    class_article: bool = True
    """Whether the default prompt of class images has an article; those of sessions of formats 1 to 3 have none."""
    config: Config = Config()
    runs: tuple[Run, ...] = ()
    extended: tuple[Extended, ...] = ()
    revised: tuple[Revision, ...] = ()
    exports: tuple[Exported, ...] = ()

    @property
    def class_prompts(self) -> tuple[str, ...]:
        """Prompts of the class images, used in turn."""
        word = self.subject.class_word
        return self.config.prior.prompts or (
            f"a photo of {with_article(word) if self.class_article else word}".strip(),
        )

    @property
    def lineages(self) -> frozenset[str]:
        """Lineages whose checkpoints belong to the session; empty if its own is unknown."""
        return frozenset((self.lineage, *self.inherited)) if self.lineage else frozenset()


def with_article(word: str) -> str:
    """Return `a dog` or `an apple`, by the first letter; unchanged if empty or with an article."""
    if not word or word.casefold().startswith(("a ", "an ", "the ")):
        return word
    return f"{'an' if word[0].casefold() in 'aeiou' else 'a'} {word}"


def new_lineage() -> str:
    """Return a unique lineage."""
    return uuid.uuid4().hex


def read_record(folder: Path) -> Record:
    """Read `session.yaml` of a session's folder, and migrate an earlier format in memory.

    Raises:
        SessionError: it is missing, damaged, or has an unsupported format.
        ConfigError: it contains invalid settings.
    """
    path = folder / FILE
    try:
        data = _plain(path)
    except FileNotFoundError:
        raise SessionError(
            "it contains no session.yaml, so it is not a session", where=folder, fix="Choose another folder."
        ) from None
    _check_format(data, path)
    return build(Record, _migrated(data), where=path)


def _plain(path: Path) -> Mapping[str, Any]:
    """Return the file as plain data, of any format.

    Raises:
        FileNotFoundError: it does not exist.
        SessionError: it cannot be read, or has no format number.
    """
    try:
        with explained(path):
            if path.stat().st_size > LARGEST:
                raise SessionError("is too large for a session.yaml", subject=path, fix="Restore the original file.")
            data: Any = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        raise SessionError(
            "cannot be read as YAML" + (f" (line {line + 1})" if line is not None else ""),
            subject=path,
            fix="Correct it by hand; nothing was changed.",
        ) from None
    if not isinstance(data, dict) or "format" not in data:
        raise SessionError("has no format number", subject=path, fix="Restore the original file.")
    return data


def _to_2(data: Mapping[str, Any]) -> dict[str, Any]:
    """Migrate format 1 to 2, which adds `lineage` and `written_by`.

    The lineage is a function of the creation time and the base model, so that copies which are read on two machines
    before either writes them keep the same lineage.
    """
    base = data.get("base_model")
    made_from = base.get("fingerprint") if isinstance(base, Mapping) else base
    lineage = derived_lineage(data.get("created"), made_from)
    return {**data, "format": 2, "written_by": "", "lineage": lineage}


def _to_3(data: Mapping[str, Any]) -> dict[str, Any]:
    """Migrate format 2 to 3, which adds `exports`; how far the exports so far were trained is not known."""
    return {**data, "format": 3, "exports": []}


def _to_4(data: Mapping[str, Any]) -> dict[str, Any]:
    """Migrate format 3 to 4, which renames `captions.dropout` and adds an article to the default class prompt.

    It also adds `inherited` and `configurations` of the base model, which the next run records.
    """
    config = data.get("config")
    if isinstance(config, Mapping) and isinstance(config.get("captions"), Mapping):
        captions = dict(config["captions"])
        if "dropout" in captions:
            captions["caption_dropout"] = captions.pop("dropout")
        config = {**config, "captions": captions}
    return {**data, "format": 4, "class_article": False, **({"config": config} if "config" in data else {})}


MIGRATIONS: Mapping[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: _to_2, 2: _to_3, 3: _to_4}
"""Migrations to the next format, by the format that they start from."""


def _migrated(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a `session.yaml` of format 1 to `FORMAT` in `FORMAT`; `data` is unchanged."""
    current = dict(data)
    while current["format"] != FORMAT:
        current = MIGRATIONS[current["format"]](current)
    return current


def _check_format(data: Mapping[str, Any], path: Path) -> None:
    """Raise if this version cannot read the format.

    Raises:
        SessionError: naming the version that wrote it, if known.
    """
    number, writer = data["format"], data.get("written_by")
    if type(number) is not int or number < 1:
        raise SessionError(
            f"has format {shown(str(number))}, which no version of fastdb writes",
            subject=path,
            fix="Restore the original file.",
        )
    if number > FORMAT:
        by = f", written by {shown(writer)}" if isinstance(writer, str) and writer else ""
        raise SessionError(
            f"has format {number}{by}, and this version ({WRITER}) reads formats 1 to {FORMAT}",
            subject=path,
            fix="Update fastdb and open it again; nothing was changed.",
        )


def _comes_back(text: str, data: Any) -> bool:
    try:
        return bool(parse(text) == data)
    except (yaml.YAMLError, ValueError):
        return False


def write_record(folder: Path, record: Record, *, keep: bool = True) -> Record:
    """Replace `session.yaml` atomically, and return the record as it was written.

    A file of an earlier format is kept beside it as `session.yaml.format-1`, so that earlier versions can use it, and
    one that was cut short as `session.yaml.incomplete`.

    Args:
        keep: set to False for a copy, whose original still has the file.

    Raises:
        ConfigError: a word is not valid Unicode, as terminals may pass on.
        StorageError: the folder cannot be written.
    """
    record = record.model_copy(update={"format": FORMAT, "written_by": WRITER})
    data = record.model_dump(mode="json")
    if any("\ud800" <= letter <= "\udfff" for letter in json.dumps(data, ensure_ascii=False)):
        raise ConfigError(
            "a word or prompt is not valid Unicode", where=record.name, fix="Type it again, or leave it out."
        )
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
    if not _comes_back(text, data):
        # YAML changes or drops Unicode line breaks such as U+2028 unless they are escaped.
        text = yaml.safe_dump(data, sort_keys=False, width=110)
    if keep:
        _keep_earlier(folder / FILE)
    write_text(folder / FILE, sealed(text))
    return record


def missing_parts(folder: Path) -> list[str]:
    """Return the parts that `session.yaml` lacks at its end, such as a group of settings or the checksum.

    Nothing is missing from a file whose checksum is right, or from one of format 1, which has no checksum. Of newer
    formats nothing is known.

    Raises:
        StorageError: it cannot be read.
    """
    path = folder / FILE
    with explained(path):
        text = path.read_bytes().decode("utf-8", "replace")
    if text == sealed(text):
        return []
    try:
        data = _plain(path)
    except (FileNotFoundError, SessionError):
        return []  # `read_record` names the fault.
    if type(data["format"]) is not int or not 2 <= data["format"] <= FORMAT:
        return []
    groups = [name for name in _GROUPS if name not in data]
    config = data.get("config")
    groups += [f"config.{name}" for name in _INNER if isinstance(config, Mapping) and name not in config]
    return groups if _SEAL.search(text) else [*groups, "the last line, which has the checksum"]


def _keep_earlier(path: Path) -> None:
    # An unreadable file has no format to return to.
    with suppress(FileNotFoundError, SessionError):
        cut = path.with_name(f"{FILE}.incomplete")
        if missing_parts(path.parent) and "base_model" in _plain(path) and not cut.exists():
            write_bytes(cut, path.read_bytes())
        number = _plain(path)["format"]
        beside = path.with_name(f"{FILE}.format-{number}")
        if type(number) is int and 0 < number < FORMAT and not beside.exists():
            write_bytes(beside, path.read_bytes())


def sealed(text: str) -> str:
    """Return a text of whole lines with its checksum as the last line, in place of an earlier checksum."""
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(_CHECKSUM))
    text += "" if text.endswith("\n") else "\n"
    return f"{text}{_CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()}\n"
