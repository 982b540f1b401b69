"""Prompts and seeds that every checkpoint is evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastdb.errors import ConfigError
from fastdb.measures.shots import CLASS, COLOURED, CONTEXT, GOALS, OTHERS, SUBJECT, Shot, contains, seed_of
from fastdb.measures.words import Words
from fastdb.world import scene

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
                        seed = seed_of(self.first_seed, prompt, number)
                        while seed in taken:
                            seed = (seed + 1) % 2**32
                        taken.add(seed)
                        shots.append(Shot(group.name, prompt, seed, turn))
        return shots


def default_protocol(words: Words, seeds: int, first_seed: int = 0) -> Protocol:
    """Return the protocol for a real model, about sixteen prompts derived from the session's words."""
    instance = words.instance_prompts
    contexts = tuple(f"{instance[number % len(instance)]} {place}" for number, place in enumerate(CONTEXTS))
    classes = (words.plain, f"{words.plain} {CONTEXTS[0]}") if words.plain else ()
    others = tuple(prompt for prompt in UNRELATED if not contains(prompt, words.class_word))[:4]
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


def drawn_protocol(words: Words, shape: str, seeds: int, first_seed: int = 0) -> Protocol:
    """Return the protocol for mini, with 16 backgrounds, the class in 8 colours and 24 prompts of other classes."""
    instance = words.instance_prompts[0]
    backgrounds, textures, colours = list(scene.BACKGROUNDS), list(scene.TEXTURES), list(scene.COLOURS)
    # Each background appears twice, with two textures; likewise for colours and classes below.
    places = [
        f"{instance} on a {textures[(number + number // 8) % 4]} {backgrounds[number % 8]} background"
        for number in range(16)
    ]
    coloured = [
        scene.prompt(shape, colour, backgrounds[(3 * number + 1) % 8], textures[number % 4])
        for number, colour in enumerate(colours)
    ]
    other_shapes = [name for name in scene.SHAPES if name != shape]
    others = [
        scene.prompt(
            other_shapes[number % len(other_shapes)],
            colours[(number + number // 8) % 8],
            backgrounds[(3 * number + number // 8) % 8],
            textures[(number + number // 4) % 4],
        )
        for number in range(24)
    ]
    return Protocol(
        (
            Group(SUBJECT, ABOUT[SUBJECT], (instance,), times=4),
            Group(CONTEXT, ABOUT[CONTEXT], tuple(places)),
            Group(CLASS, ABOUT[CLASS], (words.class_prompt or scene.prompt(shape),), times=4),
            Group(COLOURED, "the class in a requested colour; the subject must not appear", tuple(coloured)),
            Group(OTHERS, "other classes with all four attributes, which must stay correct", tuple(others)),
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
    if any(prompt.startswith(start) for start in words.instance_prompts) or contains(prompt, words.token):
        return CONTEXT
    return CLASS if contains(prompt, words.class_word) else OTHERS
