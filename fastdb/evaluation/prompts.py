"""Prompts and seeds that every checkpoint is evaluated on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastdb.errors import ConfigError
from fastdb.images.captions import instance_images_of
from fastdb.sessions.session import Session

SUBJECT, CONTEXT, CLASS, OTHERS = "subject", "context", "class", "others"
"""Names of the groups."""

GOALS = (SUBJECT, CONTEXT)
"""The groups that show how like the subject pictures are."""

ABOUT = {
    SUBJECT: "the instance prompt, the subject alone",
    CONTEXT: "the subject in new places",
    CLASS: "the class without the identifier; the subject must not appear",
    OTHERS: "unrelated things, which must not change",
}
"""Purpose of each group."""

CONTEXTS = (
    "on a sandy beach",
    "in deep snow",
    "in a green forest",
    "on a city street at night",
    "on a wooden table",
    "in front of a mountain lake",
    "on a red carpet",
    "floating on water",
)
"""Places for a subject, similar to those of Ruiz et al. 2023 (DreamBooth, section 4 and supplement)."""

UNRELATED = (
    "a photo of a lighthouse by the sea",
    "a portrait of an old man with a hat",
    "a photo of a bowl of fruit",
    "a photo of a red bicycle against a wall",
    "a watercolour of a village in the hills",
)


@dataclass(frozen=True)
class Group:
    """Prompts of a common purpose; each has `times` pictures in a pass."""

    name: str
    about: str
    prompts: tuple[str, ...]
    times: int = 1


@dataclass(frozen=True)
class Shot:
    """A picture that every checkpoint draws; `turn` is the number of its pass."""

    group: str
    prompt: str
    seed: int
    turn: int = 0


@dataclass(frozen=True)
class Protocol:
    """Pictures to draw with each checkpoint, in passes over all groups.

    Attributes:
        groups: the prompts.
        seeds: number of passes.
        first_seed: another number gives other pictures.
    """

    groups: tuple[Group, ...]
    seeds: int
    first_seed: int = 0

    def __post_init__(self) -> None:
        """Validate the number of seeds and prompts.

        Raises:
            ConfigError: there are no prompts, or the number of seeds is out of bounds.
        """
        if not 1 <= self.seeds <= 1000:
            raise ConfigError("is not between 1 and 1000", subject=f"seeds {self.seeds}", fix="Try 4.")
        if not any(group.prompts for group in self.groups):
            raise ConfigError("there are no prompts to evaluate", where="prompts", fix="Pass at least 1 with --prompt.")

    def shots(self) -> list[Shot]:
        """Return every picture, sorted by pass, group and prompt."""
        return self._until(self.seeds)

    def more(self, passes: int) -> list[Shot]:
        """Return the pictures of the subject in further passes, up to the number `passes`."""
        return [shot for shot in self._until(passes) if shot.turn >= self.seeds and shot.group in GOALS]

    def goals_in_a_pass(self) -> int:
        """Return the number of pictures of the subject in a pass."""
        return sum(len(group.prompts) * group.times for group in self.groups if group.name in GOALS)

    def _until(self, passes: int) -> list[Shot]:
        """Return the pictures of the first passes.

        Each has a seed of its own, the hash of the first seed, its prompt and its number, or the next that is free:
        pictures of one seed resemble one another whatever their prompts are, and would count as fewer than they are.
        """
        shots, taken = [], set[int]()
        for turn in range(passes):
            for group in self.groups:
                for prompt in group.prompts:
                    for number in range(turn * group.times, (turn + 1) * group.times):
                        seed = _seed(self.first_seed, prompt, number)
                        while seed in taken:
                            seed = (seed + 1) % 2**32
                        taken.add(seed)
                        shots.append(Shot(group.name, prompt, seed, turn))
        return shots


def _seed(first_seed: int, prompt: str, number: int) -> int:
    """Return a seed below 2^32."""
    return int.from_bytes(hashlib.sha256(f"{first_seed} {number} {prompt}".encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Words:
    """The instance prompts of a session, its identifier, its class word and the class prompt that it preserves.

    All but the first may be empty.
    """

    instance_prompts: tuple[str, ...]
    token: str
    class_word: str
    class_prompt: str = ""


def words_of(session: Session, most: int = 4) -> Words:
    """Return the words of a session, with at most `most` of the prompts of its images.

    Raises:
        ImageError: there are no instance images, or a caption cannot be read.
    """
    captions, subject = session.config.captions, session.record.subject
    prompts = [captions.instance_prompt]
    if not captions.instance_prompt:
        folder = session.captions if captions.caption_files else None
        prompts = [image.prompt for image in instance_images_of(session.instance_images, folder, None)]
    kept = next((prompt for prompt in session.class_prompts if _contains(prompt, subject.class_word)), "")
    return Words(tuple(dict.fromkeys(prompts))[:most], subject.token, subject.class_word, kept)


def default_protocol(words: Words, seeds: int, first_seed: int = 0) -> Protocol:
    """Return the protocol for a real model, about sixteen prompts derived from the session's words."""
    instance = words.instance_prompts
    contexts = tuple(f"{instance[number % len(instance)]} {place}" for number, place in enumerate(CONTEXTS))
    # That which prior preservation keeps, if there is one.
    plain = words.class_prompt or without(instance[0], words.token)
    if plain == instance[0]:
        plain = f"a photo of {words.class_word}" if words.class_word else ""
    classes = (plain, f"{plain} {CONTEXTS[0]}") if plain else ()
    others = tuple(prompt for prompt in UNRELATED if not _contains(prompt, words.class_word))[:4]
    return Protocol(
        (
            Group(SUBJECT, ABOUT[SUBJECT], instance, times=2),
            Group(CONTEXT, ABOUT[CONTEXT], contexts),
            Group(CLASS, ABOUT[CLASS], classes, times=2),
            Group(OTHERS, ABOUT[OTHERS], others),
        ),
        seeds,
        first_seed,
    )


def custom_protocol(prompts: Sequence[str], words: Words, seeds: int, first_seed: int = 0) -> Protocol:
    """Return the protocol of the user's prompts, grouped by their words.

    Raises:
        ConfigError: a prompt is empty.
    """
    if not all(prompt.strip() for prompt in prompts):
        raise ConfigError("a prompt is empty", where="prompts", fix="Remove it or enter a description.")
    groups: dict[str, list[str]] = {SUBJECT: [], CONTEXT: [], CLASS: [], OTHERS: []}
    for prompt in dict.fromkeys(prompts):
        groups[_group_of(prompt, words)].append(prompt)
    return Protocol(
        tuple(Group(name, ABOUT[name], tuple(members)) for name, members in groups.items() if members),
        seeds,
        first_seed,
    )


def _group_of(prompt: str, words: Words) -> str:
    """Return the group of a user's prompt."""
    if prompt in words.instance_prompts:
        return SUBJECT
    if any(prompt.startswith(start) for start in words.instance_prompts) or _contains(prompt, words.token):
        return CONTEXT
    return CLASS if _contains(prompt, words.class_word) else OTHERS


def _contains(prompt: str, word: str) -> bool:
    """Return whether a prompt contains a word or phrase, ignoring case; False for an empty word."""
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE) is not None


def without(prompt: str, token: str) -> str:
    """Return a prompt without the identifier, which other models do not know."""
    if not token:
        return prompt
    return " ".join(re.sub(rf"(?<!\w){re.escape(token)}(?!\w)", " ", prompt, flags=re.IGNORECASE).split())
