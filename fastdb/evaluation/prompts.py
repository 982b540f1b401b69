"""What every checkpoint is asked to draw: groups of prompts, each asked for a reason, and seeds. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastdb.errors import ConfigError
from fastdb.images.captions import instance_images_of
from fastdb.sessions.session import Session

SUBJECT, CONTEXT, CLASS, OTHERS = "subject", "context", "class", "others"
"""The groups by name: the subject alone, the subject elsewhere, its class without the identifier, anything else."""

ABOUT = {
    SUBJECT: "the instance prompt: the subject alone",
    CONTEXT: "the subject where no instance image shows it",
    CLASS: "the class without the identifier: the subject must not appear",
    OTHERS: "things that have nothing to do with the subject: they must stay as they were",
}

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
"""Where a subject may be put; DreamBooth's authors ask for the like (Ruiz et al. 2023, section 4 and supplement)."""

UNRELATED = (
    "a photo of a lighthouse by the sea",
    "a portrait of an old man with a hat",
    "a photo of a bowl of fruit",
    "a photo of a red bicycle against a wall",
    "a watercolour of a village in the hills",
)


@dataclass(frozen=True)
class Group:
    """Prompts asked for one reason; each is drawn with `times` as many seeds as were asked for."""

    name: str
    about: str
    prompts: tuple[str, ...]
    times: int = 1


@dataclass(frozen=True)
class Shot:
    """One picture that every checkpoint has to draw."""

    group: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Protocol:
    """The groups, and how many seeds each prompt has: 0, 1, 2 and so on, the same for every checkpoint."""

    groups: tuple[Group, ...]
    seeds: int

    def __post_init__(self) -> None:
        """Check what was asked for.

        Raises:
            ConfigError: no prompts, or a number of seeds out of bounds.
        """
        if not 1 <= self.seeds <= 1000:
            raise ConfigError(f"{self.seeds} is not between 1 and 1000", where="seeds", fix="Try 4.")
        if not any(group.prompts for group in self.groups):
            raise ConfigError("there are none", where="prompts", fix="Name one with --prompt.")

    def shots(self) -> list[Shot]:
        """Every picture, group by group, prompt by prompt, seed by seed."""
        return [
            Shot(group.name, prompt, seed)
            for group in self.groups
            for prompt in group.prompts
            for seed in range(self.seeds * group.times)
        ]


@dataclass(frozen=True)
class Words:
    """How a session speaks of its subject: instance prompts, the identifier and the class word, both may be empty."""

    instance_prompts: tuple[str, ...]
    token: str
    class_word: str

    @property
    def class_prompt(self) -> str:
        """The instance prompt without the identifier, `a photo of dog`; empty where there is neither."""
        first = self.instance_prompts[0]
        if self.token and without(first, self.token) != first:
            return without(first, self.token)
        return f"a photo of {self.class_word}" if self.class_word else ""


def words_of(session: Session, most: int = 4) -> Words:
    """The words of a session; without an instance prompt, the first `most` different ones of its images.

    Raises:
        ImageError: there are no instance images, or a caption cannot be read.
    """
    captions, subject = session.config.captions, session.record.subject
    prompts = [captions.instance_prompt]
    if not captions.instance_prompt:
        folder = session.captions if captions.caption_files else None
        prompts = [image.prompt for image in instance_images_of(session.instance_images, folder, None)]
    return Words(tuple(dict.fromkeys(prompts))[:most], subject.token, subject.class_word)


def protocol_of(words: Words, seeds: int) -> Protocol:
    """The protocol for a real model: about sixteen prompts derived from the session's words."""
    said = words.instance_prompts
    contexts = tuple(f"{said[number % len(said)]} {place}" for number, place in enumerate(CONTEXTS))
    plain = words.class_prompt
    classes = (plain, f"{plain} {CONTEXTS[0]}") if plain else ()
    others = tuple(prompt for prompt in UNRELATED if not names(prompt, words.class_word))[:4]
    return Protocol(
        (
            Group(SUBJECT, ABOUT[SUBJECT], said, times=2),
            Group(CONTEXT, ABOUT[CONTEXT], contexts),
            Group(CLASS, ABOUT[CLASS], classes, times=2),
            Group(OTHERS, ABOUT[OTHERS], others),
        ),
        seeds,
    )


def asked_for(prompts: Sequence[str], words: Words, seeds: int) -> Protocol:
    """The protocol of prompts a person names; each goes to the group that its words put it in.

    Raises:
        ConfigError: a prompt is empty.
    """
    if not all(prompt.strip() for prompt in prompts):
        raise ConfigError("is empty", where="a prompt", fix="Leave it out, or say what to draw.")
    found: dict[str, list[str]] = {SUBJECT: [], CONTEXT: [], CLASS: [], OTHERS: []}
    for prompt in dict.fromkeys(prompts):
        found[group_of(prompt, words)].append(prompt)
    return Protocol(tuple(Group(name, ABOUT[name], tuple(asked)) for name, asked in found.items() if asked), seeds)


def group_of(prompt: str, words: Words) -> str:
    """The group a person's prompt belongs to: does it ask for the subject, its class, or anything else?"""
    if prompt in words.instance_prompts:
        return SUBJECT
    if any(prompt.startswith(said) for said in words.instance_prompts) or names(prompt, words.token):
        return CONTEXT
    return CLASS if names(prompt, words.class_word) else OTHERS


def names(prompt: str, word: str) -> bool:
    """Whether a prompt holds a word (or several together), whatever the case; an empty one is in none."""
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE) is not None


def without(prompt: str, token: str) -> str:
    """A prompt without the identifier, which stands for nothing that another model could know."""
    if not token:
        return prompt
    return " ".join(re.sub(rf"(?<!\w){re.escape(token)}(?!\w)", " ", prompt, flags=re.IGNORECASE).split())
