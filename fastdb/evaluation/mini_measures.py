"""Likeness of the base model mini by readings of its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from fastdb.evaluation.measures import Figure, Limit, Measured, Taken, Value, values_of
from fastdb.evaluation.prompts import ABOUT, CLASS, CONTEXT, OTHERS, SUBJECT, Group, Protocol, Words
from fastdb.world import readings, scene
from fastdb.world.subjects import Subject

COLOURED = "coloured class"

FIGURES = (
    Figure("subject", "share of subject pictures that show the subject", True, goal=True),
    Figure("subject_class", "share of subject pictures with the subject's class", True, goal=True),
    Figure("both", "share of context pictures with the subject and the requested background colour", True, goal=True),
    Figure("background", "share of context pictures with the requested background colour and texture", True),
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
        "share of class pictures in a requested colour that show the subject",
        False,
        limit=Limit(plus=0.1),
        broken="the class in other colours turns into the subject",
        prior=True,
    ),
    Figure("others", "share of pictures of other classes with all requested attributes", True),
    Figure(
        "others_kept",
        "others as a fraction of its value at step 0",
        True,
        limit=Limit(plus=0.85),
        broken="other classes have drifted",
        prior=True,
    ),
)


class Drawn:
    """Measure of a subject by readings of the drawn world."""

    def __init__(self, subject: Subject) -> None:
        self.name = f"the drawn world's readings, subject: {subject.name}"
        self.figures: tuple[Figure, ...] = FIGURES
        self._subject = subject

    def read(self, taken: Sequence[Taken]) -> Measured:
        """Measure pictures; readings are the judge's words and the likeness to the subject."""
        if not taken:
            return Measured({})
        pictures = [item.picture for item in taken]
        counts: dict[str, dict[int, float | bool]] = {figure.name: {} for figure in FIGURES}
        lines = []
        found = zip(taken, readings.read(pictures), readings.find_subject(pictures, self._subject), strict=True)
        for number, (item, reading, likeness) in enumerate(found):
            parsed = scene.parse_prompt(item.shot.prompt)
            correct = {
                part: getattr(parsed, part) in (None, getattr(reading, part))
                for part in ("shape", "colour", "background", "texture")
            }
            for name, shown in self._shown(item.shot.group, likeness.present, reading.shape, correct).items():
                counts[name][number] = shown
            lines.append({**asdict(reading), **_rounded(likeness)})
        return Measured(values_of(counts), lines, [item.shot for item in taken])

    def compare(self, now: Mapping[str, Value], start: Mapping[str, Value]) -> dict[str, Value]:
        """Return the remaining accuracy on other classes.

        Its interval is that of the difference on the same pictures, divided by the accuracy at step 0, whose own error
        is left out.
        """
        if "others" not in now or not start.get("others", Value(0)).mean:
            return {}
        if now["others"] is start["others"]:
            return {"others_kept": Value(1.0, count=start["others"].count)}
        before, change = start["others"].mean, now["others"] - start["others"]
        low, high = (None if bound is None else 1 + bound / before for bound in (change.low, change.high))
        return {"others_kept": Value(now["others"].mean / before, low, high, change.count)}

    def _shown(self, group: str, present: bool, shape: str, correct: Mapping[str, bool]) -> dict[str, bool]:
        """Return what a picture shows, by the figures of its group."""
        if group == SUBJECT:
            return {"subject": present, "subject_class": shape == self._subject.shape}
        if group == CONTEXT:
            return {
                "both": present and correct["background"],
                "background": correct["background"] and correct["texture"],
            }
        if group == OTHERS:
            return {"others": all(correct.values())}
        return {"leak" if group == CLASS else "coloured_leak": present}


def drawn_protocol(words: Words, subject: Subject, seeds: int, first_seed: int = 0) -> Protocol:
    """Return the protocol for mini, with 16 backgrounds, the class in 8 colours and 24 prompts of other classes."""
    instance, shape = words.instance_prompts[0], subject.shape
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


def _rounded(likeness: readings.Likeness) -> dict[str, object]:
    """Return the likeness for `evaluation.json`."""
    return {
        "layout": round(likeness.layout, 4),
        "shape_likeness": round(likeness.shape, 4),
        "present": likeness.present,
    }
