"""LoRA files that a generation uses, named by options and by tags in prompts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from fastdb.commands.lora import file_and_weight
from fastdb.commands.models import located
from fastdb.errors import ConfigError, FastDBError
from fastdb.formats.reader import open_tensors
from fastdb.models.detect import recognise
from fastdb.reporting import Note, Report
from fastdb.runtime.paths import sessions_root
from fastdb.sessions.session import Session

if TYPE_CHECKING:
    from fastdb.models.lora.reading import LoRAFile

_TAG = re.compile(r"<\s*lora\s*:([^<>]*)>", re.IGNORECASE)
_FOLDER = "LoRA"
"""Folder beside the sessions' for LoRA files that any prompt may name."""


@dataclass(frozen=True)
class TaggedPrompt:
    """A prompt without its tags such as `<lora:cup_lora:0.8>`, and the weight of each name in them."""

    text: str
    tags: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ChosenLoRAs:
    """LoRA files and their weights."""

    files: tuple[tuple[Path, float], ...]

    def read(self) -> list[LoRAFile]:
        """Read the files.

        Raises:
            ModelError: a file cannot be used.
        """
        if not self.files:
            return []
        from fastdb.models.lora.reading import read_lora

        return [read_lora(path).weighted(weight) for path, weight in self.files]

    def tagged(self, prompt: str) -> str:
        """Return a prompt with a tag for each file, as pictures record it."""
        return "".join([prompt, *(f" <lora:{path.stem}:{weight:g}>" for path, weight in self.files)])


def split_tags(prompt: str) -> TaggedPrompt:
    """Take the tags out of a prompt.

    Raises:
        ConfigError: a tag has no name, no number as its weight, or the name of another.
    """
    tags: dict[str, float] = {}
    for match in _TAG.finditer(prompt):
        name, colon, weight = match[1].partition(":")
        name = name.strip()
        try:
            value = float(weight) if colon else 1.0
        except ValueError:
            value = float("nan")
        if not name or not -100 <= value <= 100:
            raise ConfigError(
                "the tag has no name with a weight between -100 and 100",
                where=match[0],
                fix="Write it as <lora:NAME:0.8>.",
            )
        if name in tags:
            raise ConfigError(f"the prompt has two tags for {name}", where=match[0], fix="Leave out one of them.")
        tags[name] = value
    text = re.sub(r"\s{2,}", " ", _TAG.sub(" ", prompt)).strip(" ,") if tags else prompt
    return TaggedPrompt(text, tags)


def choose_loras(
    prompt: TaggedPrompt,
    negative: str,
    named: Sequence[str],
    model: Session | str,
    root: str | Path | None,
    report: Report,
) -> ChosenLoRAs:
    """Return the LoRA files of a generation; the weight in a tag replaces that of an option.

    A tag names a file by its stem or `ss_output_name`: one of the options, of the session's folder, or of the folder
    LoRA beside the sessions'. Files with the same trigger word are reported.

    Raises:
        ConfigError: a tag is in the negative prompt, names no file or several, or names the session's own LoRA.
        ModelError: a file does not exist or cannot be read.
    """
    if _TAG.search(negative):
        raise ConfigError(
            "has a tag of a LoRA", subject="the negative prompt", fix="Put it into the prompt, whose whole it changes."
        )
    options = [file_and_weight(text) for text in named]
    weights = {located(file, root).absolute(): weight for file, weight in options}
    names = {path: _names(path) for path in weights}
    session = model if isinstance(model, Session) else None
    if prompt.tags:
        names |= {path: _names(path) for path in _lying(session, root) if path not in names}
    for name, weight in prompt.tags.items():
        path = _only(name, names)
        if session is not None and session.config.method == "lora" and path.parent == session.path:
            raise ConfigError(
                f"is the LoRA of session {session.name}, which is applied already",
                subject=name,
                fix="Leave out its tag.",
            )
        weights[path] = weight
    for note in _shared_triggers(weights, session):
        report.note(note)
    return ChosenLoRAs(tuple(weights.items()))


def is_lora(path: Path) -> bool:
    """Return whether a file is a LoRA, by the names in its header; False if it cannot be read."""
    try:
        opened = open_tensors(path)
    except FastDBError:
        return False
    return recognise({name: info.shape for name, info in opened.tensors.items()}).role == "LoRA"


def _names(path: Path) -> set[str]:
    return {path.stem, *filter(None, [open_tensors(path).metadata.get("ss_output_name", "")])}


def _lying(session: Session | None, root: str | Path | None) -> Iterable[Path]:
    """Yield the LoRA files that tags may name without an option."""
    folders = [*([session.path] if session is not None else []), sessions_root(root).parent / _FOLDER]
    for folder in folders:
        for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
            if is_lora(path):
                yield path.absolute()


def _only(name: str, names: Mapping[Path, set[str]]) -> Path:
    paths = [path for path, own in names.items() if name in own]
    if len(paths) == 1:
        return paths[0]
    if paths:
        listed = ", ".join(map(str, paths))
        raise ConfigError(f"several LoRA files have this name: {listed}", where=name, fix="Rename one of the files.")
    known = ", ".join(sorted(min(own, key=len) for own in names.values())) or "none"
    raise ConfigError(
        f"there is no LoRA of this name; known are: {known}", where=name, fix="Name its file with --lora FILE."
    )


def _shared_triggers(files: Iterable[Path], session: Session | None) -> Iterable[Note]:
    triggers = {path.name: open_tensors(path).metadata.get("modelspec.trigger_phrase", "") for path in files}
    if session is not None:
        triggers[session.name] = session.record.subject.token
    for (one, first), (other, second) in combinations(triggers.items(), 2):
        if first and first == second:
            yield Note("trigger shared", first, f"{one} and {other}")
