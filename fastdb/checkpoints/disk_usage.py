"""Disk usage of a session by kind of file, and the files that can be deleted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastdb.checkpoints.checkpoint import UNFINISHED, complete
from fastdb.checkpoints.progress import STAGES, progress_of, steps_of
from fastdb.checkpoints.retention import retention, spare
from fastdb.sessions.session import Session
from fastdb.sessions.token_trial import UNTRAINED
from fastdb.storage.atomic_write import is_temporary
from fastdb.storage.delete import bytes_of
from fastdb.storage.set_aside import ASIDE

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
"""Kinds of files in a session. Photos are the originals, the instance images and their captions."""

REMOVABLE = ("set-aside", "exports", "samples", "checkpoints", "unfinished", "class-images")
"""Kinds of which at least some files can be deleted."""

_KINDS_OF = {
    "originals": "photos",
    "instance_images": "photos",
    "instance_images.png": "photos",
    "captions": "photos",
    "class_images": "class-images",
    "samples": "samples",
    "evaluation": "evaluation",
    "logs": "logs",
}
_EXPORT = r"{name}(_step_\d+(_fp32(_\d+)?)?)?(_lora(_diffusers)?)?\.(safetensors|ckpt)"
_SAMPLE = re.compile(rf"({'|'.join((*STAGES, *UNTRAINED))})-\d+-\d+\.png|(tokens-)?untrained\.(png|json)")
_CLASS_IMAGE = re.compile(r"class-\d{4,}\.png")


@dataclass(frozen=True)
class Cost:
    """A file or folder in a session, its kind of `KINDS`, and its size in bytes."""

    kind: str
    path: Path
    bytes: int


def costs_of(folder: Path) -> list[Cost]:
    """Measure everything in a session's folder.

    Each checkpoint, export, set-aside folder and unfinished file is an entry of its own; each other folder is one
    entry. Only sizes are read.

    Raises:
        OSError: a folder cannot be read.
    """
    export = re.compile(_EXPORT.format(name=re.escape(folder.name)))
    costs: list[Cost] = []
    for path in sorted(folder.iterdir()):
        if path.name in ("checkpoints", "class_images") and path.is_dir():
            costs += _within(path, "other" if path.name == "checkpoints" else "class-images")
            continue
        kind = _KINDS_OF.get(path.name, "exports" if export.fullmatch(path.name) and path.is_file() else "other")
        if path.name.startswith(ASIDE) and path.is_dir():
            kind = "set-aside"
        costs.append(Cost("unfinished" if _is_unfinished(path) else kind, path, bytes_of(path)))
    return costs


def removable(session: Session, kind: str) -> list[Cost]:
    """List the files of a kind that can be deleted without losing a person's files or the state to resume from.

    Of checkpoints these are the `spare` ones; the newer checkpoints are read and hashed for that. Of class images these
    are the generated ones, and none while training with them is unfinished: generated again on another machine, they
    may differ in their last bits, and training would refuse to resume.

    Args:
        kind: one of `REMOVABLE`.

    Raises:
        OSError: a folder cannot be read.
    """
    if kind == "checkpoints":
        keep, lineage = retention(session), session.record.lineages
        going = [checkpoint.path for stage in STAGES for checkpoint in spare(session.checkpoints, stage, keep, lineage)]
        return [Cost(kind, path, bytes_of(path)) for path in going]
    if kind == "samples":
        return _files(session.samples, kind, _SAMPLE)
    if kind == "class-images":
        done = progress_of(session)
        if any(done.values()) and any(done[stage] < steps_of(session, stage) for stage in STAGES):
            return []
        return [cost for cost in _files(session.class_images, kind, _CLASS_IMAGE) if _is_generated(cost.path)]
    return [cost for cost in costs_of(session.path) if cost.kind == kind]


def _within(folder: Path, rest: str) -> Iterator[Cost]:
    """Yield the entries of a folder that are listed by themselves, then all others as one entry of kind `rest`."""
    whole, others = {checkpoint.path for checkpoint in complete(folder)} if rest == "other" else set(), 0
    for path in sorted(folder.iterdir()):
        if path in whole:
            yield Cost("checkpoints", path, bytes_of(path))
        elif path.name.startswith(ASIDE) and path.is_dir():
            yield Cost("set-aside", path, bytes_of(path))
        elif path.name.startswith(UNFINISHED) or _is_unfinished(path):
            yield Cost("unfinished", path, bytes_of(path))
        else:
            others += bytes_of(path)
    if others:
        yield Cost(rest, folder, others)


def _files(folder: Path, kind: str, name: re.Pattern[str]) -> list[Cost]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [Cost(kind, path, bytes_of(path)) for path in paths if name.fullmatch(path.name) and path.is_file()]


def _is_unfinished(path: Path) -> bool:
    """Whether a killed process left a file behind while writing it."""
    return is_temporary(path.name)


def _is_generated(path: Path) -> bool:
    """Whether a picture contains generation parameters; a person's own picture may have any name."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return "parameters" in picture.info
    except (OSError, SyntaxError):
        return False
