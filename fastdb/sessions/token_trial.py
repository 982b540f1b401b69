"""Result of the trial of a session's token, as `samples/untrained.json` keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fastdb.reporting import Note, argument
from fastdb.sessions.session import Session

RECORD, SHEET = "untrained.json", "untrained.png"
"""Files in `samples/`: the record, and the contact sheet of the pictures."""

UNTRAINED = ("instance", "class")
"""Stages of the samples of step 0, which the untrained base draws of the instance prompt and of the class prompt."""


@dataclass(frozen=True)
class Tried:
    """A token that was tried.

    Attributes:
        pieces: number of entries of the tokenizer's vocabulary that it is made of.
        common: whether it is a common word.
        shown: number of its prompt's pictures that show the class; None if nothing could read them.
    """

    token: str
    prompt: str
    pieces: int
    common: bool
    shown: int | None


@dataclass(frozen=True)
class TokenTrial:
    """Trial of tokens by pictures that the untrained base drew.

    Attributes:
        token: that of the session.
        count: number of pictures of each prompt.
        key: the base model, settings and reader that the result depends on.
        class_shown: number of the class prompt's pictures that show the class; None if nothing could read them.
        better: rare words that did better than a token which did badly.
    """

    token: str
    class_word: str
    class_prompt: str
    count: int
    key: dict[str, Any]
    class_shown: int | None = None
    tried: tuple[Tried, ...] = ()
    better: tuple[Tried, ...] = ()

    def doubtful(self, tried: Tried) -> bool:
        """Return whether a token hides the class: in fewer than half of its pictures, and of those without it."""
        if tried.shown is None or self.class_shown is None:
            return False
        return tried.shown < self.count / 2 and tried.shown < self.class_shown / 2

    def share(self, shown: int | None) -> str:
        """Return how many pictures show the class, such as `dog in 3 of 16`; empty if nothing could read them."""
        return "" if shown is None else f"{self.class_word} in {shown} of {self.count}"

    def notes(self, session: Session, *, begins: bool) -> list[Note]:
        """Return the warnings about the tokens.

        Args:
            begins: training begins now, after which the token of this session cannot change.
        """
        notes = []
        for tried in self.tried:
            if self.doubtful(tried):
                shares = f"{tried.shown} of {self.count} pictures, and in {self.class_shown} without the token"
                notes.append(Note("token hides class", repr(tried.prompt), shares))
            if tried.common:
                notes.append(Note("token is common", tried.token))
            elif tried.pieces > 1:
                notes.append(Note("token in pieces", tried.token, str(tried.pieces)))
        if self.better:
            names = ", ".join(f"{each.token} ({each.shown} of {self.count})" for each in self.better)
            name, best = argument(session.name), f"--token {self.better[0].token}"
            if begins:
                notes.append(Note("better tokens for a copy", names, f"{name} NEW, then fastdb change NEW {best}"))
            else:
                notes.append(Note("better tokens", names, f"{name} {best}"))
        elif any(self.doubtful(tried) for tried in self.tried):
            notes.append(Note("no better token", argument(session.name)))
        if self.class_shown is None:
            notes.append(Note("class not readable", self.class_word or self.class_prompt, str(session.samples / SHEET)))
        return notes


def recorded(session: Session) -> TokenTrial | None:
    """Return the recorded trial of a session's token; None if there is none."""
    try:
        data = json.loads((session.samples / RECORD).read_text(encoding="utf-8"))
        tried = {name: tuple(Tried(**each) for each in data[name]) for name in ("tried", "better")}
        return TokenTrial(**{**data, **tried})
    except (OSError, ValueError, TypeError, KeyError):
        return None
