"""What a session's files cost, by their kind, and which of them can be done without. Only sizes are looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastdb.checkpoints.checkpoint import ASIDE, UNFINISHED, complete, spare
from fastdb.checkpoints.progress import STAGES, progress_of, steps_of
from fastdb.checkpoints.retention import retention
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE
from fastdb.storage.atomic_write import TEMPORARY
from fastdb.storage.delete import bytes_of

KINDS = (
    "checkpoints",
    "set-aside",
    "unfinished",
    "exports",
    "photos",
    "class-images",
    "samples",
    "evaluation",
    "logs",
    "other",
)
"""Kinds of what is in a session. Photos are the originals, the instance images and their captions."""

REMOVABLE = ("set-aside", "exports", "samples", "checkpoints", "unfinished", "class-images")
"""Kinds that can be removed, in part at least."""

_OF = {
    "originals": "photos",
    "instance_images": "photos",
    "instance_images.png": "photos",
    "captions": "photos",
    "class_images": "class-images",
    "samples": "samples",
    "evaluation": "evaluation",
    "logs": "logs",
}
_EXPORT = r"{name}(_step_\d+)?\.(safetensors|ckpt)"
_SAMPLE = re.compile(rf"({'|'.join(STAGES)})-\d+-\d+\.png")
_CLASS_IMAGE = re.compile(r"class-\d{4,}\.png")


@dataclass(frozen=True)
class Cost:
    """One thing in a session, a file or a folder, of one of `KINDS`, and its bytes."""

    kind: str
    path: Path
    bytes: int


def is_session(folder: Path) -> bool:
    """Whether a folder is a session's; its record is not read."""
    return (folder / FILE).is_file()


def costs_of(folder: Path) -> list[Cost]:
    """All that is in a session's folder: each checkpoint, export, folder set aside and unfinished rest by itself, each
    other folder as one.

    Raises:
        OSError: a folder may not be read.
    """
    export = re.compile(_EXPORT.format(name=re.escape(folder.name)))
    found: list[Cost] = []
    for path in sorted(folder.iterdir()):
        if path.name in ("checkpoints", "class_images") and path.is_dir():
            found += _within(path, "other" if path.name == "checkpoints" else "class-images")
            continue
        kind = _OF.get(path.name, "exports" if export.fullmatch(path.name) and path.is_file() else "other")
        found.append(Cost("unfinished" if _is_rest(path) else kind, path, bytes_of(path)))
    return found


def removable(session: Session, kind: str) -> list[Cost]:
    """What of a kind can be removed, so that nothing is lost that training needs to go on or a person brought along.

    Of checkpoints those that are `spare`, whose two newer ones of the stage are read and hashed for it. Of class images
    the generated ones, and none while checkpoints that were trained with them still have steps to go: made again on
    another machine they may differ in their last bits, and training would not go on with them.

    Args:
        kind: one of `REMOVABLE`.

    Raises:
        OSError: a folder may not be read.
    """
    if kind == "checkpoints":
        keep, lineage = retention(session), session.record.lineage
        going = [one for stage in STAGES for one in spare(session.checkpoints, stage, keep, lineage)]
        return [Cost(kind, one.path, bytes_of(one.path)) for one in going]
    if kind == "samples":
        return _files(session.samples, kind, _SAMPLE)
    if kind == "class-images":
        begun = progress_of(session)
        if any(begun.values()) and any(begun[stage] < steps_of(session, stage) for stage in STAGES):
            return []
        return [one for one in _files(session.class_images, kind, _CLASS_IMAGE) if _is_generated(one.path)]
    return [one for one in costs_of(session.path) if one.kind == kind]


def _within(folder: Path, rest: str) -> Iterator[Cost]:
    """The things in a folder of which some are by themselves; what remains is one of the kind `rest`."""
    whole, others = {one.path for one in complete(folder)} if rest == "other" else set(), 0
    for path in sorted(folder.iterdir()):
        if path in whole:
            yield Cost("checkpoints", path, bytes_of(path))
        elif path.name.startswith(ASIDE) and path.is_dir():
            yield Cost("set-aside", path, bytes_of(path))
        elif path.name.startswith(UNFINISHED) or _is_rest(path):
            yield Cost("unfinished", path, bytes_of(path))
        else:
            others += bytes_of(path)
    if others:
        yield Cost(rest, folder, others)


def _files(folder: Path, kind: str, name: re.Pattern[str]) -> list[Cost]:
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return [Cost(kind, path, bytes_of(path)) for path in there if name.fullmatch(path.name) and path.is_file()]


def _is_rest(path: Path) -> bool:
    """Whether a killed process left it while it was writing."""
    return path.name.startswith(".") and path.name.endswith(TEMPORARY)


def _is_generated(path: Path) -> bool:
    """Whether a picture says how it was made, as generated ones do; a person's own may have any name."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return "parameters" in picture.info
    except (OSError, SyntaxError):
        return False
