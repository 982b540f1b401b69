"""Protocols derived from a session's words or from the user's prompts."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from fastdb.commands import sessions
from fastdb.errors import ConfigError, ImageError
from fastdb.evaluation.prompts import (
    CONTEXTS,
    GOALS,
    Protocol,
    _group_of,
    custom_protocol,
    default_protocol,
)
from fastdb.measures.shots import without
from fastdb.measures.words import Words, words_of

DOG = Words(("a photo of sks dog",), "sks", "dog")


def prompts(protocol: Protocol) -> dict[str, tuple[str, ...]]:
    return {group.name: group.prompts for group in protocol.groups}


def test_groups_are_derived_from_the_words() -> None:
    found = prompts(default_protocol(DOG, 4))
    assert found["subject"] == ("a photo of sks dog",)
    assert found["context"] == tuple(f"a photo of sks dog {place}" for place in CONTEXTS)
    assert found["class"] == ("a photo of dog", "a photo of dog on a sandy beach")
    kept = replace(DOG, class_prompt="a photo of a dog")
    assert prompts(default_protocol(kept, 4))["class"] == ("a photo of a dog", "a photo of a dog on a sandy beach")
    assert len(found["others"]) == 4
    assert not any("dog" in prompt or "sks" in prompt for prompt in found["others"])


def test_groups_differ_in_their_number_of_pictures() -> None:
    shots = default_protocol(DOG, 3).shots()
    assert len(shots) == len(set(shots)) == 6 + 8 * 3 + 2 * 6 + 4 * 3
    assert [shot.turn for shot in shots] == [0] * 18 + [1] * 18 + [2] * 18


def test_every_picture_has_a_seed_of_its_own() -> None:
    shots = default_protocol(DOG, 30).shots()
    assert len({shot.seed for shot in shots}) == len(shots)
    assert all(0 <= shot.seed < 2**32 for shot in shots)
    assert default_protocol(DOG, 4).shots() == shots[: 4 * 18], "more pictures reuse those drawn"
    others = default_protocol(DOG, 30, first_seed=1).shots()
    assert [shot.prompt for shot in others] == [shot.prompt for shot in shots]
    assert {shot.seed for shot in others}.isdisjoint(shot.seed for shot in shots)
    # The first of them by hand: a promise to pictures that were drawn.
    text = "0 0 a photo of sks dog"
    assert shots[0].seed == int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def test_a_seed_that_is_taken_moves_on_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdb.evaluation.prompts.seed_of", lambda first, prompt, number: 2**32 - 2)
    seeds = [shot.seed for shot in custom_protocol(["a dog", "a cat"], DOG, 2).shots()]
    assert seeds == [2**32 - 2, 2**32 - 1, 0, 1]


def test_further_passes_show_the_subject_only() -> None:
    protocol = default_protocol(DOG, 2)
    more = protocol.more(4)
    assert more == [shot for shot in default_protocol(DOG, 4).shots() if shot.turn >= 2 and shot.group in GOALS]
    assert len(more) == 2 * protocol.goals_in_a_pass() == 2 * 10
    assert protocol.more(2) == []


def test_unrelated_prompts_do_not_name_the_class() -> None:
    found = prompts(default_protocol(Words(("a photo of sks lighthouse",), "sks", "lighthouse"), 1))
    assert len(found["others"]) == 4
    assert not any("lighthouse" in prompt for prompt in found["others"])


def test_without_a_class_word_there_are_no_class_prompts() -> None:
    assert "class" in prompts(default_protocol(Words(("xyz in a garden",), "", "cat"), 1))
    assert prompts(default_protocol(Words(("xyz", "abc"), "", ""), 1))["class"] == ()
    assert prompts(default_protocol(Words(("xyz", "abc"), "", ""), 1))["context"][:2] == (
        "xyz on a sandy beach",
        "abc in deep snow",
    )


@pytest.mark.parametrize(
    ("prompt", "group"),
    [
        ("a photo of sks dog", "subject"),
        ("a photo of sks dog in a bucket", "context"),
        ("an oil painting of SKS dog", "context"),
        ("a dog asleep", "class"),
        ("a hotdog stand", "others"),
        ("a boat", "others"),
    ],
)
def test_a_users_prompt_is_grouped_by_its_words(prompt: str, group: str) -> None:
    assert _group_of(prompt, DOG) == group
    assert prompts(custom_protocol([prompt, prompt], DOG, 1)) == {group: (prompt,)}


def test_the_identifier_is_removed_only_as_a_whole_word() -> None:
    assert without("a photo of sks dog, SKS dog", "sks") == "a photo of dog, dog"
    assert without("a photo of tasks", "sks") == "a photo of tasks"
    assert without("a photo of sks dog", "") == "a photo of sks dog"


@pytest.mark.parametrize("seeds", [0, -1, 1001])
def test_seeds_out_of_bounds_are_refused(seeds: int) -> None:
    with pytest.raises(ConfigError, match=rf"^seeds {seeds} is not between 1 and 1000\. Try 4\.$"):
        default_protocol(DOG, seeds)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^prompts: a prompt is empty"):
        custom_protocol(["a dog", "  "], DOG, 1)


def test_words_come_from_the_settings_or_the_captions(photos: list[Path]) -> None:
    session = sessions.new("dog", "mini", photos, token="sks", class_word="dog")
    assert words_of(session) == replace(DOG, class_prompt="a photo of a dog")
    named = sessions.new("named", "mini", photos)
    assert words_of(named) == Words(("astronaut", "cat", "cup"), "", "")
    assert words_of(named, most=2).instance_prompts == ("astronaut", "cat")
    with pytest.raises(ImageError, match="no "):
        words_of(sessions.new("empty", "mini"))
