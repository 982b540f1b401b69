"""Which of a session's checkpoints stay: the last ones, those at multiples of a step, and the one found best."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastdb.sessions.session import Session

KEEP = 2
"""An old checkpoint goes only when at least this many newer ones of its stage verify on a fresh read."""
PICKED = "evaluation.json"


@dataclass(frozen=True)
class Retention:
    """Which checkpoints of a stage are never removed unasked.

    Attributes:
        last: so many of the newest that verify; at least `KEEP`.
        every: those at multiples of so many steps; 0 keeps none for that.
        best: the step of the UNet stage that the last evaluation says to use.
    """

    last: int = KEEP
    every: int = 0
    best: int | None = None

    def stays(self, stage: str, step: int) -> bool:
        """Whether a checkpoint stays however many newer ones there are."""
        return bool(self.every and step % self.every == 0) or (stage == "unet" and step == self.best)


def retention(session: Session) -> Retention:
    """What is kept of a session, by its settings and its evaluation."""
    settings = session.config.checkpoints
    return Retention(settings.keep_last, settings.keep_every, best(session))


def best(session: Session) -> int | None:
    """The step of the UNet stage that the session's evaluation says to use; None where it says none."""
    try:
        step = json.loads((session.path / "evaluation" / PICKED).read_text(encoding="utf-8"))["picked"]["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None
