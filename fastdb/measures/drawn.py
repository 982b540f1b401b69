"""Likeness of the base model mini by readings of its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from fastdb.measures.shots import CLASS, CONTEXT, OTHERS, SUBJECT
from fastdb.measures.values import Figure, Limit, Measured, Taken, Value, values_of
from fastdb.models.loading import load_part
from fastdb.reporting import Note, counted
from fastdb.world import readings, scene
from fastdb.world.likeness import Likeness, RoundTrip, read_subject

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


PHOTO_FIGURES = (
    Figure("near", "share of subject pictures as near to the photos as these are to one another", True, goal=True),
    *(
        replace(figure, about=figure.about.replace("that show the subject", "as near to the photos as these are"))
        for figure in FIGURES
        if figure.name not in ("subject", "both")
    ),
)
"""Figures for instance images that are not of the drawn world."""

FAINT = 0.5
"""Share of a region's contrast below which the autoencoder hardly shows it."""


class Drawn:
    """Measure of a subject by readings of the drawn world.

    Attributes:
        subject: as read from the instance images; None if they are not of the drawn world. Pictures are compared
            with them by nearness then.
        shape: the class word.
    """

    def __init__(self, instance_images: Sequence[Image], shape: str, round_trip: RoundTrip) -> None:
        self.subject = read_subject(instance_images, round_trip)
        self.shape = shape
        count = counted(len(instance_images), "instance image")
        if self.subject is None:
            self._photos = _thumbnails(instance_images)
            self.name = f"the drawn world's readings and nearness to {count}"
            self.figures: tuple[Figure, ...] = PHOTO_FIGURES
        else:
            regions = counted(len(self.subject.template.names), "region")
            self.name = f"the drawn world's readings, made from {count}: {regions}"
            self.figures = FIGURES

    def faint_regions(self) -> list[str]:
        """Return the colours of regions that the autoencoder hardly shows, such as `#b4dc28 (42 %)`."""
        if self.subject is None:
            return []
        shares = zip(self.subject.template.names, self.subject.kept.tolist(), strict=True)
        return [f"{name} ({share:.0%})" for name, share in shares if share < FAINT]

    def read(self, taken: Sequence[Taken]) -> Measured:
        """Measure pictures; readings are the judge's words and the likeness to the subject."""
        if not taken:
            return Measured({})
        pictures = [item.picture for item in taken]
        counts: dict[str, dict[int, float | bool]] = {figure.name: {} for figure in self.figures}
        lines = []
        found = zip(taken, readings.read(pictures), self._likenesses(pictures), strict=True)
        for number, (item, reading, likeness) in enumerate(found):
            parsed = scene.parse_prompt(item.shot.prompt)
            correct = {
                part: getattr(parsed, part) in (None, getattr(reading, part))
                for part in ("shape", "colour", "background", "texture")
            }
            for name, shown in self._shown(item.shot.group, bool(likeness["present"]), reading.shape, correct).items():
                if name in counts:
                    counts[name][number] = shown
            lines.append({**asdict(reading), **likeness})
        return Measured(values_of(counts), lines, [item.shot for item in taken])

    def remarks(self) -> list[Note]:
        """Return nothing; `faint_regions` are known before."""
        return []

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
            seen = {"subject": present, "near": present}
            return {**seen, "subject_class": shape == self.shape} if self.shape in scene.SHAPES else seen
        if group == CONTEXT:
            return {
                "near": present,
                "both": present and correct["background"],
                "background": correct["background"] and correct["texture"],
            }
        if group == OTHERS:
            return {"others": all(correct.values())}
        return {"leak" if group == CLASS else "coloured_leak": present}

    def _likenesses(self, pictures: Sequence[Image]) -> list[dict[str, Any]]:
        """Return the likeness of each picture for `evaluation.json`."""
        if self.subject is not None:
            return [_rounded(likeness) for likeness in self.subject.find(pictures)]
        photos = self._photos
        apart = torch.cdist(photos, photos) + torch.eye(len(photos)) * 1e9
        # A single photo is near to its copies only.
        usual = float(apart.amin(1).mean()) if len(photos) > 1 else 1.0
        nearest = torch.cdist(_thumbnails(pictures), photos).amin(1).tolist()
        return [{"distance": round(distance, 4), "present": distance <= usual} for distance in nearest]


def autoencoder(folder: Path) -> RoundTrip:
    """Load the autoencoder of a base model's folder, on the CPU; return its round trip."""
    vae = load_part(folder, "vae")

    @torch.no_grad()
    def round_trip(pictures: torch.Tensor) -> torch.Tensor:
        back = [vae.decode(vae.encode(some).latent_dist.mean).sample for some in pictures.split(32)]
        return torch.cat(back).clamp(-1, 1)

    return round_trip


def class_of(instance_images: Sequence[Image], class_word: str) -> str:
    """Return the class word, or the class that the judge reads in most instance images if it is empty."""
    shapes = [reading.shape for reading in readings.read(instance_images)]
    return class_word or max(shapes, key=shapes.count)


def _thumbnails(pictures: Sequence[Image]) -> torch.Tensor:
    """Return pictures as vectors of 16 x 16 colours, whose distance is their dissimilarity."""
    return torch.nn.functional.avg_pool2d(readings.to_tensor(pictures), 4).flatten(1)


def _rounded(likeness: Likeness) -> dict[str, Any]:
    """Return the likeness for `evaluation.json`."""
    return {
        "layout": round(likeness.layout, 4),
        "shape_likeness": round(likeness.shape, 4),
        "weakest_region": likeness.worst,
        "present": likeness.present,
    }
