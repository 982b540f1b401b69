"""Likeness in the drawn world, where what a picture shows can be read back: the measure for the base model `mini`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastdb.evaluation.measures import Figure, Limit, Measured, Taken, Value, gathered
from fastdb.evaluation.prompts import ABOUT, CLASS, CONTEXT, OTHERS, SUBJECT, Group, Protocol, Words
from fastdb.world import readings, scene
from fastdb.world.subjects import Subject

COLOURED = "coloured class"

FIGURES = (
    Figure("subject", "share of subject pictures that show it, by its layout of colours", True, goal=True),
    Figure("subject_class", "share of subject pictures that the judge calls its class", True, goal=True),
    Figure("both", "share of context pictures with the subject and the background's colour asked for", True, goal=True),
    Figure("background", "share of context pictures with the background asked for, colour and texture", True),
    Figure(
        "leak",
        "share of class pictures that show the subject",
        False,
        limit=Limit(plus=0.1),
        broken="the class without the identifier turns into the subject",
        prior=True,
    ),
    Figure(
        "coloured_leak",
        "share of class pictures of an asked-for colour that show the subject",
        False,
        limit=Limit(plus=0.1),
        broken="the class in other colours turns into the subject",
        prior=True,
    ),
    Figure("others", "share of pictures of other classes with class, colour, background, texture all right", True),
    Figure(
        "others_kept",
        "that share as a part of the untrained base's",
        True,
        limit=Limit(plus=0.85),
        broken="other classes have drifted",
        prior=True,
    ),
)


class Drawn:
    """The measure of the drawn world's readings."""

    def __init__(self, subject: Subject) -> None:
        """Look for this subject."""
        self._subject = subject

    @property
    def about(self) -> str:
        """What is looked for."""
        return f"the drawn world's readings, subject: {self._subject.name}"

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All of them."""
        return FIGURES

    def read(self, taken: Sequence[Taken]) -> Measured:
        """Read pictures; each is told its reading and how much it shows the subject."""
        if not taken:
            return Measured({})
        pictures = [one.picture for one in taken]
        found: dict[str, list[float]] = {figure.name: [] for figure in FIGURES}
        lines = []
        seen = zip(taken, readings.read(pictures), readings.find_subject(pictures, self._subject), strict=True)
        for one, reading, alike in seen:
            asked = scene.parse_prompt(one.shot.prompt)
            right = {
                part: getattr(asked, part) in (None, getattr(reading, part))
                for part in ("shape", "colour", "background", "texture")
            }
            self._count(found, one.shot.group, alike.present, reading.shape, right)
            lines.append(_line(reading, alike))
        return Measured(gathered(found), lines)

    def compare(self, now: Mapping[str, Value], start: Mapping[str, Value]) -> dict[str, Value]:
        """What is left of the other classes' accuracy; its error is that of the share alone."""
        if "others" not in now or not start.get("others", Value(0)).mean:
            return {}
        before, after = start["others"].mean, now["others"]
        return {"others_kept": Value(after.mean / before, after.error / before, after.count)}

    def _count(
        self, found: Mapping[str, list[float]], group: str, present: bool, shape: str, right: Mapping[str, bool]
    ) -> None:
        """Enter one picture into the figures of its group."""
        if group == SUBJECT:
            found["subject"].append(present)
            found["subject_class"].append(shape == self._subject.shape)
        elif group == CONTEXT:
            found["both"].append(present and right["background"])
            found["background"].append(right["background"] and right["texture"])
        elif group == CLASS:
            found["leak"].append(present)
        elif group == COLOURED:
            found["coloured_leak"].append(present)
        elif group == OTHERS:
            found["others"].append(all(right.values()))


def drawn_protocol(words: Words, subject: Subject, seeds: int) -> Protocol:
    """The protocol of the drawn world: 16 backgrounds for the subject, its class in 8 colours, 24 of other classes."""
    said, shape = words.instance_prompts[0], subject.shape
    backgrounds, textures, colours = list(scene.BACKGROUNDS), list(scene.TEXTURES), list(scene.COLOURS)
    # Each background twice, with two textures; the same for colours and classes below.
    places = [
        f"{said} on a {textures[(number + number // 8) % 4]} {backgrounds[number % 8]} background"
        for number in range(16)
    ]
    coloured = [
        scene.prompt(shape, colour, backgrounds[(3 * number + 1) % 8], textures[number % 4])
        for number, colour in enumerate(colours)
    ]
    strangers = [name for name in scene.SHAPES if name != shape]
    others = [
        scene.prompt(
            strangers[number % len(strangers)],
            colours[(number + number // 8) % 8],
            backgrounds[(3 * number + number // 8) % 8],
            textures[(number + number // 4) % 4],
        )
        for number in range(24)
    ]
    return Protocol(
        (
            Group(SUBJECT, ABOUT[SUBJECT], (said,), times=4),
            Group(CONTEXT, ABOUT[CONTEXT], tuple(places)),
            Group(CLASS, ABOUT[CLASS], (scene.prompt(shape),), times=4),
            Group(COLOURED, "the class in a colour that is asked for: the subject must not appear", tuple(coloured)),
            Group(OTHERS, "other classes, all four attributes asked for: they must stay right", tuple(others)),
        ),
        seeds,
    )


def _line(reading: readings.Reading, alike: readings.Likeness) -> dict[str, object]:
    """What was read, for the report."""
    return {
        "shape": reading.shape,
        "colour": reading.colour,
        "background": reading.background,
        "texture": reading.texture,
        "layout": round(alike.layout, 4),
        "shape_likeness": round(alike.shape, 4),
        "present": alike.present,
    }
