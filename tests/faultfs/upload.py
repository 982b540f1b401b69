"""From the VM's disk to the cloud: at once, late and out of order, or slower than what is written."""

from __future__ import annotations

import math
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

PARALLEL = 10
"""Drive's client uploads this many files at a time."""

SMALL = 4096
"""Files up to this many bytes arrive before larger ones; so do folders and removals."""

ENTRY = 500
"""What a folder, a removal or an empty file costs in bytes of the line."""


def twin(path: str) -> str:
    """The name by which a drive shows the second thing of a name: `state (1).json`, `unet-000100 (1)`."""
    stem, ending = os.path.splitext(path)
    return f"{stem} (1){ending}"


@dataclass(frozen=True)
class Uploads:
    """When what changed reaches the cloud, on a clock of operations.

    delay: each path arrives at a random moment within so much time, small ones in the first quarter of it.
    rate: so many bytes per unit of time go through, shared by ten paths in random order; None for any number.
    """

    delay: float = 0
    rate: float | None = None
    seed: int = 0


def AtOnce() -> Uploads:
    """Each change is in the cloud before the operation returns; a file's when it is closed."""
    return Uploads()


def Late(seed: int, delay: float = 200) -> Uploads:
    """Each change arrives after a random while, and not in order."""
    return Uploads(delay=delay, seed=seed)


def Slow(seed: int, rate: float = 50) -> Uploads:
    """Changes go over a line of `rate` bytes per unit of time, not in order."""
    return Uploads(rate=rate, seed=seed)


class Uploader:
    """Makes the cloud like the disk, path by path.

    A path is uploaded as it is when its turn comes, and a renamed one is two: one to remove, one to make. A file
    that was written and not closed since is never uploaded.
    """

    def __init__(self, disk: Path, cloud: Path, uploads: Uploads) -> None:
        self.disk, self.cloud, self.uploads = disk, cloud, uploads
        self.passing = cloud.with_name(f"{cloud.name}.passing")
        self.unknown = disk.with_name(f"{disk.name}.unknown")
        """What is in the cloud and not in this machine's listing."""
        self.unheard: set[str] = set()
        """The paths of it."""
        self.full = False
        """The account has no room: what holds bytes is taken, and never uploaded."""
        self.chance = random.Random(uploads.seed)
        self.open: set[str] = set()
        self.waiting: dict[str, float] = {}
        """By path: the moment it is due or, on a line, the bytes that are still to go."""
        self.before = 0.0
        self.room = 0.0
        """Bytes that the line has carried and that are not yet counted to a path."""
        self.stopped = False

    def written(self, path: str) -> None:
        """A file was written to and is still open."""
        self.open.add(path)
        self.waiting.pop(path, None)

    def closed(self, path: str) -> None:
        """A file was closed."""
        if path in self.open:
            self.open.discard(path)
            self.changed(path)

    def renamed(self, old: str, new: str) -> None:
        """A file or folder has a new name; so has everything in it."""
        real = self.disk / new[1:]
        inner = ["", *(f"/{path.relative_to(real)}" for path in real.rglob("*"))]
        for rest in inner:
            if old + rest in self.open:
                self.open.discard(old + rest)
                self.open.add(new + rest)
            else:
                self.changed(new + rest)
        for rest in reversed(inner):
            self.changed(old + rest)

    def changed(self, path: str) -> None:
        """Something came, went or has other content."""
        self.waiting.pop(path, None)
        real = self.disk / path[1:]
        size = real.stat().st_size if real.is_file() else 0
        if self.uploads.rate is not None:
            self.waiting[path] = size + ENTRY
        elif self.uploads.delay:
            share = 1 if size > SMALL else 0.25
            self.waiting[path] = self.before + self.chance.uniform(0, share * self.uploads.delay)
        else:
            self.waiting[path] = 0

    def tick(self, now: float) -> None:
        """Upload what is due."""
        passed, self.before = now - self.before, now
        if self.stopped:
            return
        if self.uploads.rate is None:
            for path in sorted(
                (path for path, due in self.waiting.items() if due <= now), key=self.waiting.__getitem__
            ):
                self.upload(path)
            return
        self.room += passed * self.uploads.rate
        while self.waiting and self.room >= 1:
            going = list(self.waiting)[: 3 * PARALLEL]
            going = self.chance.sample(going, min(PARALLEL, len(going)))
            each = self.room / len(going)
            for path in going:
                part = min(each, self.waiting[path])
                self.waiting[path] -= part
                self.room -= part
                if self.waiting[path] <= 0:
                    self.upload(path)
        if not self.waiting:
            self.room = 0  # what an idle line could have carried is gone

    def refused(self, here: Path) -> bool:
        """Whether a file is not taken by the cloud."""
        return self.full and here.stat().st_size > 0

    def known_as(self, path: str) -> str:
        """A path as the cloud has it: what was made here under a name that it has already becomes a twin."""
        for taken in self.unheard:
            if path == taken or path.startswith(f"{taken}/"):
                return twin(taken) + path[len(taken) :]
        return path

    def forget(self, path: str) -> None:
        """This machine's listing does not have a path that is in the cloud."""
        aside = self.unknown / path[1:]
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.rename(self.disk / path[1:], aside)
        self.unheard.add(path)

    def hear(self) -> None:
        """This machine's listing has all that the cloud has; what it made under names that were taken is renamed."""
        for path in sorted(self.unheard):
            here = self.disk / path[1:]
            if here.exists():
                os.rename(here, self.disk / twin(path)[1:])
                self.open = {twin(path) + one[len(path) :] if one.startswith(path) else one for one in self.open}
                waiting = {self.known_as(one): due for one, due in self.waiting.items()}
                self.waiting = waiting
            here.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.unknown / path[1:], here)
            self.unheard.discard(path)

    def settle(self) -> None:
        """Upload everything that waits."""
        for path in list(self.waiting):
            self.upload(path)

    def identity(self, path: str) -> str:
        """What Drive calls it: an id that begins with `local` while it is not as it is here in the cloud."""
        local = path in self.open or path in self.waiting
        return f"local-{path}" if local else f"id-{path}"

    def upload(self, path: str) -> None:
        """Make a path in the cloud as it is here."""
        here, there = self.disk / path[1:], self.cloud / self.known_as(path)[1:]
        if here.is_file() and self.refused(here):
            self.waiting[path] = math.inf
            return
        self.waiting.pop(path, None)
        if path in self.open:
            return
        if here.is_dir():
            there.mkdir(parents=True, exist_ok=True)
        elif here.is_file():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(here, self.passing)
            os.replace(self.passing, there)
        elif there.is_dir():
            shutil.rmtree(there)
        else:
            there.unlink(missing_ok=True)
