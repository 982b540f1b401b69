"""Weights to evaluate, and the cache of the pictures drawn with them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open

from fastdb.checkpoints.compressed_checkpoint import raw_files, raw_sha256
from fastdb.checkpoints.finite_numbers import not_finite
from fastdb.checkpoints.progress import Standing, standings
from fastdb.images.photo_files import png_fault
from fastdb.inference.engine import Engine
from fastdb.inference.open_model import open_source
from fastdb.inference.pictures import parameters, png
from fastdb.inference.request import Request, group_size
from fastdb.measures.shots import Shot
from fastdb.measures.values import Taken
from fastdb.models.diffusers_folder import BaseModel
from fastdb.reporting import Note
from fastdb.runtime.device import release_memory
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import explained, make_folder, write_bytes
from fastdb.storage.manifest import sha256
from fastdb.training.batches import INSTANCE

STAGE = "unet"


@dataclass(frozen=True)
class Candidate:
    """Weights to evaluate.

    Attributes:
        step: of the UNet stage; None for an exported file without this metadata.
        key: changes with the weights.
        load: returns the engine that draws with them.
        fixed_noise: the last losses on fixed noise that its training measured, by the group of images.
    """

    label: str
    step: int | None
    key: str
    load: Callable[[], Engine]
    fixed_noise: Mapping[str, float] = field(default_factory=dict)


def untrained(session: Session, base: BaseModel) -> Candidate:
    """Return the base model before training, step 0, the reference."""
    fingerprint = session.record.base_model.fingerprint
    return Candidate("step 0", 0, fingerprint, lambda: Engine.from_base(base))


def checkpoints_of(
    session: Session, base: BaseModel, steps: Sequence[int] | None
) -> tuple[list[Candidate], list[Note]]:
    """Return the valid checkpoints of the UNet stage, each with the session's trained text encoder.

    Args:
        steps: steps of checkpoints, or None for all.

    Returns the candidates by step, and a note for each skipped checkpoint.

    Raises:
        TrainingError: there is no valid checkpoint, or that of the text encoder is missing or damaged.
        ConfigError: a requested checkpoint is missing or invalid.
    """
    valid, skipped = standings(session, steps, not_finite(base.folder))
    return [_checkpoint(session, base, standing) for standing in valid], skipped


def file_of(session: Session, base: BaseModel, file: Path) -> Candidate:
    """Return an exported file of the session's model.

    Raises:
        ModelError: the file does not exist.
        StorageError: it cannot be read.
    """
    file = file.expanduser().absolute()
    source = open_source(str(file), base.folder, None)
    with explained(file):
        key = sha256(file)
    return Candidate(file.name, _step_of_export(file), key, source.load)


def _checkpoint(session: Session, base: BaseModel, standing: Standing) -> Candidate:
    keys = [session.record.base_model.fingerprint, *map(raw_sha256, standing.weights.values())]
    step = standing.done(STAGE)
    return Candidate(
        f"step {step}",
        step,
        " ".join(keys),
        lambda: Engine.from_base(base, trained=raw_files(standing.weights, base.folder)),
        _fixed_noise(standing.checkpoints[STAGE].state),
    )


def _fixed_noise(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the last losses on fixed noise in a checkpoint's state; empty in those of earlier versions."""
    measured = [figures for _, figures in state.get("checks", ()) if INSTANCE in figures]
    return dict(measured[-1]) if measured else {}


def _step_of_export(file: Path) -> int | None:
    """Return the UNet step from an export's metadata, such as `text_encoder 350/350, unet 500/1500`."""
    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, framework="pt") as weights:
            trained = (weights.metadata() or {}).get("fastdb.trained", "")
    except (SafetensorError, OSError):
        return None  # Loading reports the reason later.
    match = re.search(rf"(?:^|, ){STAGE} (\d+)/", trained, re.ASCII)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class PictureCache:
    """The pictures of an evaluation on disk, reused only if every input is the same.

    Attributes:
        folder: holds a folder for each candidate.
        request: the settings of all pictures; prompt and seed are replaced.
        precision: the number format of the computation, which changes pictures.
    """

    folder: Path
    request: Request
    precision: str

    def missing(self, candidate: Candidate, shots: Sequence[Shot]) -> list[Shot]:
        """Return the distinct shots of a candidate whose pictures are missing, damaged or of other inputs."""
        return [shot for shot in _distinct(shots) if not self._is_current(candidate, shot)]

    def draw_missing(self, candidate: Candidate, shots: Sequence[Shot], progress: Callable[[int], None]) -> None:
        """Draw the missing pictures in batches and write each after its batch; `progress` gets their number.

        Batch size and place in the batch change the last bits of a picture. Batches are therefore always composed
        alike, of a group's pictures in one pass, even if only some of them are missing or later passes follow.

        Raises:
            ModelError: the candidate cannot be loaded.
            StorageError: the folder cannot be written.
        """
        missing = set(self.missing(candidate, shots))
        if not missing:
            return
        engine, size = candidate.load(), group_size(max(self.request.width, self.request.height))
        make_folder(self._folder(candidate))
        for batch in _batches(_distinct(shots), size):
            if missing.isdisjoint(batch):
                continue
            requests = [self._request(shot) for shot in batch]
            for shot, request, picture in zip(batch, requests, engine.generate_together(requests), strict=True):
                if shot in missing:
                    write_bytes(self.path(candidate, shot), png(picture, self._parameters(candidate, request)))
                    progress(1)
        del engine
        release_memory()

    def load(self, candidate: Candidate, shots: Sequence[Shot]) -> list[Taken]:
        """Load the pictures of a candidate, RGB; none may be missing."""
        taken = []
        for shot in shots:
            with Image.open(self.path(candidate, shot)) as picture:
                taken.append(Taken(shot, picture.convert("RGB")))
        return taken

    def bytes_of_a_picture(self, candidate: Candidate, shots: Sequence[Shot]) -> int:
        """Return the mean size of a candidate's pictures, none of which may be missing."""
        sizes = [self.path(candidate, shot).stat().st_size for shot in shots]
        return sum(sizes) // len(sizes)

    def path(self, candidate: Candidate, shot: Shot) -> Path:
        """Return the path of a picture, `<candidate>-<hash>/<words>-<hash>-seed<seed>.png` below the folder."""
        words = re.sub(r"\W+", "_", shot.prompt)[:48].strip("_")
        prompt = hashlib.sha256(shot.prompt.encode()).hexdigest()[:6]
        return self._folder(candidate) / f"{words}-{prompt}-seed{shot.seed}.png"

    def _folder(self, candidate: Candidate) -> Path:
        inputs = self._parameters(candidate, replace(self.request, prompt="", seed=0))
        label = re.sub(r"\W+", "_", candidate.label)
        return self.folder / f"{label}-{hashlib.sha256(inputs.encode()).hexdigest()[:10]}"

    def _request(self, shot: Shot) -> Request:
        return replace(self.request, prompt=shot.prompt, seed=shot.seed)

    def _parameters(self, candidate: Candidate, request: Request) -> str:
        """Return all inputs of a picture as written into its metadata."""
        key = hashlib.sha256(candidate.key.encode()).hexdigest()[:16]
        return f"{parameters(request, request.seed)}, Model hash: {key}, Precision: {self.precision}"

    def _is_current(self, candidate: Candidate, shot: Shot) -> bool:
        """Return whether a readable picture of the same inputs exists."""
        path = self.path(candidate, shot)
        try:
            if png_fault(path.read_bytes()):
                return False
            with Image.open(path) as picture:
                picture.load()
                inputs = picture.info.get("parameters")
        except (OSError, SyntaxError, ValueError):
            return False
        return bool(inputs == self._parameters(candidate, self._request(shot)))


def _batches(shots: Sequence[Shot], size: int) -> Iterator[list[Shot]]:
    """Yield the shots of each pass and group in batches of at most `size`."""
    for _, members in groupby(shots, key=lambda shot: (shot.turn, shot.group)):
        together = list(members)
        for at in range(0, len(together), size):
            yield together[at : at + size]


def _distinct(shots: Sequence[Shot]) -> list[Shot]:
    """Return the first shot of each prompt and seed; groups with the same prompt share a picture."""
    distinct: dict[tuple[str, int], Shot] = {}
    for shot in shots:
        distinct.setdefault((shot.prompt, shot.seed), shot)
    return list(distinct.values())
