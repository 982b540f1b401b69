"""`session.yaml`: what a session is, in a form both a person and a program read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from fastdb.config import Config, Settings, build
from fastdb.errors import SessionError
from fastdb.storage.durable import explained, write_text

FORMAT = 1
FILE = "session.yaml"
LARGEST = 1 << 20
"""Bytes of `session.yaml`; a long history takes a tenth of it."""


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "aliases have no place here", event.start_mark)
        return super().compose_node(parent, index)


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


class Record(Settings):
    """Everything `session.yaml` holds."""

    format: int = FORMAT
    name: str
    created: str
    base_model: BaseModelRecord
    subject: Subject = Subject()
    config: Config = Config()
    runs: tuple[Run, ...] = ()


def read_record(folder: Path) -> Record:
    """Read `session.yaml` of a session's folder.

    Raises:
        SessionError: it is missing, damaged, or of a format this version does not know.
        ConfigError: it holds settings that do not fit.
    """
    path = folder / FILE
    try:
        with explained(path):
            if path.stat().st_size > LARGEST:
                raise SessionError("is larger than any session.yaml", where=path, fix="Put back the file it had.")
            data: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # a SafeLoader
    except FileNotFoundError:
        raise SessionError(
            "there is no session.yaml, so this is no session of fastdb", where=folder, fix="Choose another folder."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        raise SessionError(
            "cannot be read as YAML" + (f" (line {line + 1})" if line is not None else ""),
            where=path,
            fix="Correct it by hand; nothing was changed.",
        ) from None
    if not isinstance(data, dict) or "format" not in data:
        raise SessionError("has no format number", where=path, fix="Put back the file this session had.")
    if data["format"] != FORMAT:
        raise SessionError(
            f"has format {data['format']!r}, and this version of fastdb reads {FORMAT}",
            where=path,
            fix="Update fastdb and open it again.",
        )
    return build(Record, data, where=path)


def write_record(folder: Path, record: Record) -> None:
    """Replace `session.yaml`, whole or not at all.

    Raises:
        StorageError: the folder cannot be written.
    """
    text = yaml.safe_dump(record.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
    write_text(folder / FILE, text)
