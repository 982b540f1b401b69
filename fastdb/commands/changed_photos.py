"""Verbs for a session whose training has begun and whose photos should change: new --from, remove-images."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdb.checkpoints.checkpoint import complete
from fastdb.commands.photo_sources import photo_files
from fastdb.commands.sessions import new
from fastdb.config import flat
from fastdb.errors import CheckpointError, ConfigError, ImageError, ModelError, SessionBusy, SessionNotFound
from fastdb.formats.reader import open_tensors
from fastdb.images.photo_files import photos_in
from fastdb.models.base_identity import remembered_sha256
from fastdb.models.resolve import ensure_base
from fastdb.reporting import SILENT, Note, Report, argument, counted, format_bytes
from fastdb.sessions.file_hashes import forget_files, record_files
from fastdb.sessions.lease_status import refuse_elsewhere
from fastdb.sessions.session import Session, SessionLike, check_free, check_name
from fastdb.storage.atomic_write import explained
from fastdb.storage.set_aside import next_aside
from fastdb.training import process

_WEIGHTS = "fastdb.weights"
"""Key in the header of a base model made of a session, a hash of the weights it was made of."""
_OF_ITS_STEPS = ("unet.extensions", "unet.rate_changes", "text_encoder.rate_changes")
"""Settings that refer to steps of the training so far."""
_OF_THE_SUBJECT = ("captions.instance_prompt", "prior.prompts", "samples.prompts")
"""Settings that contain the token or the class word."""


def new_from(
    name: str,
    source: str,
    photos: Sequence[str | Path] = (),
    *,
    token: str = "",
    class_word: str = "",
    root: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    report: Report = SILENT,
) -> Session:
    """Create a session that begins with the weights of another, whose subject and settings it has by default.

    Its base model is an export of the other session in single precision, which is written to that session's folder.

    Args:
        source: a session, or a session and a step of its UNet stage such as `my_dog:800`.

    Raises:
        ConfigError: there is no checkpoint of that step.
        FastDBError: the session cannot be created.
    """
    session, step = _session_and_step(source, root)
    check_name(name)
    check_free(name, root)
    with photo_files(photos):
        pass  # A wrong path is reported before gigabytes are written.
    config = dict(flat(session.config.changed({name: [] for name in _OF_ITS_STEPS}).model_dump(mode="json")))
    subject = session.record.subject
    if (token or subject.token, class_word or subject.class_word) != (subject.token, subject.class_word):
        config = {key: value for key, value in config.items() if key not in _OF_THE_SUBJECT}
    base = base_of(session, step, report)
    return new(
        name,
        base,
        photos,
        token=token or subject.token,
        class_word=class_word or subject.class_word,
        root=root,
        settings={**config, **(settings or {})},
        report=report,
    )


def base_of(session: Session, step: int | None = None, report: Report = SILENT) -> Path:
    """Export a session in single precision as a base model, unless the same weights were exported before.

    An earlier file of other weights stays, because another session may have it as its base model.

    Raises:
        ConfigError: there is no checkpoint of that step.
        ModelError, TrainingError: it cannot be exported.
        StorageError: the disk is full or read-only.
    """
    with report.progress("base model", "B") as update:
        base = ensure_base(session, update)
    # These load numpy and torch.
    from fastdb.checkpoints.export_parts import export_metadata, export_parts
    from fastdb.models.export import export_model

    parts, done = export_parts(session, base, step)
    whole = hashlib.sha256()
    for part, path in sorted(parts.items()):
        whole.update(f"{part} {remembered_sha256(path)}\n".encode())
    stem = f"{session.name}_step_{done['unet']}_fp32"
    names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    targets = (session.path / f"{name}.safetensors" for name in names)
    target = next(path for path in targets if not path.exists() or _weights_of(path) == whole.hexdigest())
    if target.exists():
        return target
    with report.progress(target.name, "tensor") as update:
        metadata = {**export_metadata(session, base, done), _WEIGHTS: whole.hexdigest()}
        written = export_model(parts, target, dtype="fp32", metadata=metadata, base=base.folder, progress=update)
    details = f"{counted(written.tensors, 'tensor')}, fp32, {format_bytes(written.bytes)}"
    report.note(Note("export verified", str(target), details))
    record_files(session.path, {target: written.sha256})
    return target


def remove_images(
    session: SessionLike, names: Sequence[str], *, root: str | Path | None = None, report: Report = SILENT
) -> Path:
    """Take photos out of a session with their originals and captions; they are moved aside, not deleted.

    Args:
        names: of instance images, with or without `.png`.

    Returns:
        The folder they were moved to.

    Raises:
        ImageError: no photo has such a name.
        ConfigError: training has begun with one of them.
        SessionBusy: the session is being trained.
        StorageError: a file cannot be moved.
    """
    session = Session.open(session, root)
    if process.find(session) is not None:
        fix = f"Stop it first: fastdb stop {argument(session.name)}"
        raise SessionBusy("is being trained; nothing was removed", subject=session.name, fix=fix)
    refuse_elsewhere(session.path, "Or stop it there.")
    present = (
        {path.name: path for path in photos_in(session.instance_images)} if session.instance_images.is_dir() else {}
    )
    chosen = [present.get(name) or present.get(f"{name}.png") for name in names]
    images = [path for path in chosen if path is not None]
    if not names or len(images) < len(names):
        missing = [name for name, path in zip(names, chosen, strict=True) if path is None]
        what = f"there is no instance image of the name {missing[0]}" if missing else "no instance image was named"
        raise ImageError(what, where=session.name, fix=f"Choose from {', '.join(sorted(present)) or 'none'}.")
    if trained := sorted({path.name for path in images} & _trained_images(session)):
        raise ConfigError(
            f"training has begun with {', '.join(trained)}",
            where=session.name,
            fix="Train a session without them from these weights: fastdb new NAME PHOTOS --from "
            f"{argument(session.name)}",
        )
    stems = {path.stem for path in images}
    aside, moved = next_aside(session.path), []
    with explained(session.path):
        for folder in (session.originals, session.captions, session.instance_images):
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.stem in stems and (folder != session.instance_images or path in images):
                    target = aside / folder.name / path.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.rename(target)
                    moved.append(path)
    forget_files(session.path, moved)
    record_files(session.path)
    for image in images:
        report.note(Note("photo removed", image.name, aside.name))
    return aside


def _session_and_step(source: str, root: str | Path | None) -> tuple[Session, int | None]:
    """Return the session and step of `SESSION` or `SESSION:STEP`.

    Raises:
        SessionNotFound: there is no such session.
    """
    try:
        return Session.open(source, root), None
    except SessionNotFound:
        name, _, step = source.rpartition(":")
        if not name or not step.isdecimal():
            raise
        return Session.open(name, root), int(step)


def _trained_images(session: Session) -> set[str]:
    """Return the names of the instance images that the session's checkpoints were trained with."""
    names: set[str] = set()
    for checkpoint in complete(session.checkpoint_folders, lineage=session.record.lineages):
        try:
            names |= set(checkpoint.state["recipe"]["instance images"])
        except (CheckpointError, KeyError, TypeError):
            continue
    return names


def _weights_of(file: Path) -> str:
    try:
        return open_tensors(file).metadata.get(_WEIGHTS, "")
    except ModelError:
        return ""
