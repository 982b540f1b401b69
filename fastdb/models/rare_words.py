"""Words as a base model's tokenizer has them: pieces, common words, and rare ones to use as tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastdb.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES

CANDIDATES = ("ohwx", "xyz", "zwx", "nmwx", "hta", "olis", "phol", "nlwx")
"""Short words without a meaning that are single entries of CLIP's vocabulary, or of mini's."""

_RARE = 0.8
"""Fraction of a large vocabulary behind which its rare words are.

Byte pair encoding merges the most frequent pair first (Sennrich et al. 2016, section 3.2), so an entry's number is its
rank by frequency. Among CLIP's 49,408 are gun 3,496, zebra 22,548, corgi 31,320, tabby 36,145, ohwx 47,993, sks 48,136.
"""

_LARGE = 40_000
"""Entries from which a vocabulary is one of a language; that of mini has only the words of its world as common ones."""


def pieces_of(tokenizer: Any, word: str) -> int:
    """Return the number of entries of the vocabulary that a word is made of."""
    return len(tokenizer.tokenize(word))


def is_common(tokenizer: Any, word: str) -> bool:
    """Return whether a word is a single entry that the text encoder has often seen."""
    pieces = tokenizer.tokenize(word)
    if len(tokenizer) < _LARGE:
        return word.casefold() in {*SHAPES, *COLOURS, *BACKGROUNDS, *TEXTURES}
    return len(pieces) == 1 and tokenizer.convert_tokens_to_ids(pieces[0]) < _RARE * len(tokenizer)


def rare_words(tokenizer: Any, without: Iterable[str] = ()) -> list[str]:
    """Return the candidates that are a single entry and not common."""
    excluded = {word.casefold() for word in without}
    return [
        word
        for word in CANDIDATES
        if word not in excluded and pieces_of(tokenizer, word) == 1 and not is_common(tokenizer, word)
    ]
