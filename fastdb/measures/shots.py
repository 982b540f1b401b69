"""Pictures to draw, by their prompts' purpose and words."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

SUBJECT, CONTEXT, CLASS, OTHERS = "subject", "context", "class", "others"
"""Names of the groups."""

COLOURED = "coloured class"
"""A further group of the drawn world."""

GOALS = (SUBJECT, CONTEXT)
"""The groups that show how like the subject pictures are."""


@dataclass(frozen=True)
class Shot:
    """A picture that every checkpoint draws; `turn` is the number of its pass."""

    group: str
    prompt: str
    seed: int
    turn: int = 0


def contains(prompt: str, word: str) -> bool:
    """Return whether a prompt contains a word or phrase, ignoring case; False for an empty word."""
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE) is not None


def without(prompt: str, token: str) -> str:
    """Return a prompt without the identifier, which other models do not know."""
    if not token:
        return prompt
    return " ".join(re.sub(rf"(?<!\w){re.escape(token)}(?!\w)", " ", prompt, flags=re.IGNORECASE).split())


def seed_of(first_seed: int, prompt: str, number: int) -> int:
    """Return the seed of a picture, below 2^32: the hash of the first seed, its prompt and its number."""
    return int.from_bytes(hashlib.sha256(f"{first_seed} {number} {prompt}".encode()).digest()[:4], "big")
