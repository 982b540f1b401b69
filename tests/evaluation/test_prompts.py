"""What checkpoints are asked to draw: derived from the session's words, or named by a person."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdb.commands import sessions
from fastdb.errors import ConfigError, ImageError
from fastdb.evaluation.prompts import (
    CONTEXTS,
    Protocol,
    Shot,
    Words,
    asked_for,
    group_of,
    protocol_of,
    without,
    words_of,
)

DOG = Words(("a photo of sks dog",), "sks", "dog")


def prompts(protocol: Protocol) -> dict[str, tuple[str, ...]]:
    return {group.name: group.prompts for group in protocol.groups}


def test_the_groups_follow_from_the_words() -> None:
    found = prompts(protocol_of(DOG, 4))
    assert found["subject"] == ("a photo of sks dog",)
    assert found["context"] == tuple(f"a photo of sks dog {place}" for place in CONTEXTS)
    assert found["class"] == ("a photo of dog", "a photo of dog on a sandy beach")
    assert len(found["others"]) == 4
    assert not any("dog" in prompt or "sks" in prompt for prompt in found["others"])


def test_every_group_has_seeds_of_its_own_number() -> None:
    shots = protocol_of(DOG, 3).shots()
    assert len(shots) == len(set(shots)) == 6 + 8 * 3 + 2 * 6 + 4 * 3
    assert shots[:2] == [Shot("subject", "a photo of sks dog", 0), Shot("subject", "a photo of sks dog", 1)]
    assert {shot.seed for shot in shots if shot.group == "context"} == {0, 1, 2}
    assert {shot.seed for shot in shots if shot.group == "subject"} == {0, 1, 2, 3, 4, 5}


def test_what_is_of_the_class_is_not_among_the_others() -> None:
    found = prompts(protocol_of(Words(("a photo of sks lighthouse",), "sks", "lighthouse"), 1))
    assert len(found["others"]) == 4
    assert not any("lighthouse" in prompt for prompt in found["others"])


def test_without_a_class_word_there_are_no_class_prompts() -> None:
    assert "class" in prompts(protocol_of(Words(("xyz in a garden",), "", "cat"), 1))
    assert prompts(protocol_of(Words(("xyz", "abc"), "", ""), 1))["class"] == ()
    assert prompts(protocol_of(Words(("xyz", "abc"), "", ""), 1))["context"][:2] == (
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
def test_a_persons_prompt_goes_where_its_words_put_it(prompt: str, group: str) -> None:
    assert group_of(prompt, DOG) == group
    assert prompts(asked_for([prompt, prompt], DOG, 1)) == {group: (prompt,)}


def test_the_identifier_is_left_out_as_a_word_and_not_as_letters() -> None:
    assert without("a photo of sks dog, SKS dog", "sks") == "a photo of dog, dog"
    assert without("a photo of tasks", "sks") == "a photo of tasks"
    assert without("a photo of sks dog", "") == "a photo of sks dog"


@pytest.mark.parametrize("seeds", [0, -1, 1001])
def test_seeds_out_of_bounds_are_refused(seeds: int) -> None:
    with pytest.raises(ConfigError, match=rf"^seeds: {seeds} is not between 1 and 1000\. Try 4\.$"):
        protocol_of(DOG, seeds)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^a prompt: is empty"):
        asked_for(["a dog", "  "], DOG, 1)


def test_the_words_of_a_session(photos: list[Path]) -> None:
    session = sessions.new("dog", "mini", photos, token="sks", class_word="dog")
    assert words_of(session) == DOG
    named = sessions.new("named", "mini", photos)
    assert words_of(named) == Words(("astronaut", "cat", "cup"), "", "")
    assert words_of(named, most=2).instance_prompts == ("astronaut", "cat")
    with pytest.raises(ImageError, match="no "):
        words_of(sessions.new("empty", "mini"))
