"""The pictures of an evaluation on disk: each made once, and used again only where everything about it is the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from fastdb.evaluation.candidates import Candidate
from fastdb.evaluation.measures import Taken
from fastdb.evaluation.prompts import Shot
from fastdb.images.photo_files import png_fault
from fastdb.inference.engine import Request
from fastdb.inference.pictures import parameters, png
from fastdb.runtime.device import release_memory
from fastdb.storage.atomic_write import make_folder, write_bytes
from fastdb.training.class_images import group_size


@dataclass(frozen=True)
class Gallery:
    """The pictures below `folder`, drawn with the settings of `request` (all but prompt and seed).

    `arithmetic` names the number format they are computed in: with another one they are others.
    """

    folder: Path
    request: Request
    arithmetic: str

    def missing(self, candidate: Candidate, shots: Sequence[Shot]) -> list[Shot]:
        """The different pictures of a candidate that are not there, or were made otherwise."""
        return [shot for shot in _different(shots) if self._opened(candidate, shot) is None]

    def make(self, candidate: Candidate, shots: Sequence[Shot], progress: Callable[[int], None]) -> None:
        """Draw what is missing, several at once, and write each when its pass is through.

        How many are drawn at once touches a picture's last bits, and so does its place among them: a pass always has
        the same ones in it, even where only some are missing. `progress` is told how many came to lie there.

        Raises:
            ModelError: the candidate cannot be loaded.
            StorageError: the folder cannot be written.
        """
        missing = set(self.missing(candidate, shots))
        if not missing:
            return
        engine, several = candidate.load(), group_size(max(self.request.width, self.request.height))
        make_folder(self._folder(candidate))
        different = _different(shots)
        for at in range(0, len(different), several):
            together = different[at : at + several]
            if missing.isdisjoint(together):
                continue
            requests = [self._request(shot) for shot in together]
            for shot, request, picture in zip(together, requests, engine.generate_together(requests), strict=True):
                if shot in missing:
                    write_bytes(self.path(candidate, shot), png(picture, self._told(candidate, request)))
                    progress(1)
        del engine
        release_memory()

    def taken(self, candidate: Candidate, shots: Sequence[Shot]) -> list[Taken]:
        """The pictures of a candidate, opened; they have to be there."""
        return [Taken(shot, self.picture(candidate, shot)) for shot in shots]

    def picture(self, candidate: Candidate, shot: Shot) -> Image.Image:
        """One picture, RGB; it has to be there."""
        with Image.open(self.path(candidate, shot)) as picture:
            return picture.convert("RGB")

    def path(self, candidate: Candidate, shot: Shot) -> Path:
        """Where a picture lies: `pictures/<candidate>-<hash>/<words>-<hash>-seed<seed>.png`."""
        words = re.sub(r"\W+", "_", shot.prompt)[:48].strip("_")
        prompt = hashlib.sha256(shot.prompt.encode()).hexdigest()[:6]
        return self._folder(candidate) / f"{words}-{prompt}-seed{shot.seed}.png"

    def _folder(self, candidate: Candidate) -> Path:
        made = self._told(candidate, replace(self.request, prompt="", seed=0))
        label = re.sub(r"\W+", "_", candidate.label)
        return self.folder / f"{label}-{hashlib.sha256(made.encode()).hexdigest()[:10]}"

    def _request(self, shot: Shot) -> Request:
        return replace(self.request, prompt=shot.prompt, seed=shot.seed)

    def _told(self, candidate: Candidate, request: Request) -> str:
        """All that a picture depends on, as it is written into it."""
        key = hashlib.sha256(candidate.key.encode()).hexdigest()[:16]
        return f"{parameters(request, request.seed)}, Model hash: {key}, Precision: {self.arithmetic}"

    def _opened(self, candidate: Candidate, shot: Shot) -> Path | None:
        """Where a picture lies that was made as it would be now and can be read; else None."""
        path = self.path(candidate, shot)
        try:
            if png_fault(path.read_bytes()):
                return None
            with Image.open(path) as picture:
                picture.load()
                told = picture.info.get("parameters")
        except (OSError, SyntaxError, ValueError):
            return None
        return path if told == self._told(candidate, self._request(shot)) else None


def _different(shots: Sequence[Shot]) -> list[Shot]:
    """The first shot of each prompt and seed: two groups that ask for the same get the same picture."""
    found: dict[tuple[str, int], Shot] = {}
    for shot in shots:
        found.setdefault((shot.prompt, shot.seed), shot)
    return list(found.values())
