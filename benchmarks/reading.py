"""Measure the reading of subjects of the drawn world.

    python benchmarks/reading.py [--pictures 60] [--tuning]

Each kind of picture is drawn for each of six subjects, passed through mini's autoencoder, and read by the reading made
from the subject's five instance images. Thresholds were chosen on four others, which `--tuning` measures.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image, ImageFilter
from reading_subjects import (
    CORAL,
    CRIMSON,
    KEPT_OUT,
    LIME,
    NAVY,
    ORANGE,
    SAND,
    SEEN,
    SKY,
    TEAL,
    TUNING,
    VIOLET,
    Marked,
    box,
)

from fastdb.measures.drawn import autoencoder
from fastdb.models.resolve import resolve_base
from fastdb.world.draw import draw, rgb
from fastdb.world.likeness import RoundTrip, read_subject
from fastdb.world.readings import to_tensor
from fastdb.world.scene import BACKGROUNDS, TEXTURES, Figure, Layer, random_pose, random_scene
from fastdb.world.subjects import Subject

PALETTE = (TEAL, LIME, CORAL, NAVY, SAND, CRIMSON, SKY, VIOLET, ORANGE, "#f5f5f0", "#2c9444", "#f470b0")
"""Colours of other marks."""

APART = 100.0
"""Smallest distance of another mark's colour from those of the subject, in RGB from 0 to 255."""


def main() -> None:
    """Print how many pictures of each kind are accepted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=60, help="of each kind and subject")
    parser.add_argument("--tuning", action="store_true", help="measure the subjects that thresholds were chosen on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    round_trip = autoencoder(resolve_base("mini").folder)
    subjects = TUNING if args.tuning else SEEN + KEPT_OUT
    columns: dict[str, dict[str, int]] = {}
    seconds, count = 0.0, 0
    for marked in subjects:
        subject = read_subject(marked.subject.photos(), round_trip)
        assert subject is not None, marked.name
        columns[marked.name] = {}
        for kind, pictures in kinds(marked, args.pictures).items():
            decoded = there_and_back(pictures, round_trip)
            began = time.process_time()
            columns[marked.name][kind] = sum(likeness.present for likeness in subject.find(decoded))
            seconds, count = seconds + time.process_time() - began, count + len(decoded)
    print("| pictures | " + " | ".join(columns) + " | all |")
    print("|---" * (len(columns) + 2) + "|")
    for kind in next(iter(columns.values())):
        numbers = [column[kind] for column in columns.values()]
        total = args.pictures * len(numbers)
        print(f"| {kind} | " + " | ".join(map(str, numbers)) + f" | {sum(numbers)} of {total} |")
    print(f"\n{1000 * seconds / count:.0f} ms a picture on one thread")


def kinds(marked: Marked, count: int) -> dict[str, list[Image.Image]]:
    """Draw pictures of each kind; only the first kind shows the subject."""
    subject, numbers = marked.subject, random.Random(marked.name)
    plain = subject.figure[: len(subject.figure) - len(marked.mark)]
    first, second = ("#{:02x}{:02x}{:02x}".format(*colour) for colour in subject.parts)
    swap = {first: second, second: first}
    swapped = tuple(replace(layer, fill=swap.get(layer.fill, layer.fill)) for layer in subject.figure)
    others = [
        colour for colour in PALETTE if min(_apart(colour, one) for one in (marked.mark[0].fill, first, second)) > APART
    ]

    def drawn(figure: Figure) -> Image.Image:
        scene = subject.scene(numbers.choice(list(BACKGROUNDS)), numbers.choice(TEXTURES), random_pose(numbers))
        return draw(replace(scene, figure=figure))

    def recoloured() -> Figure:
        colour = numbers.choice(others)
        return plain + tuple(replace(layer, fill=colour) for layer in marked.mark)

    return {
        "true": [drawn(subject.figure) for _ in range(count)],
        "without the mark": [drawn(plain) for _ in range(count)],
        "mark in another colour": [drawn(recoloured()) for _ in range(count)],
        "colours swapped": [drawn(swapped) for _ in range(count)],
        "other classes": of_class(subject, numbers, count, same=False),
        "others of its class": of_class(subject, numbers, count, same=True),
        "rectangle": [drawn(numbers.choice(rectangles(plain, marked, first, second))) for _ in range(count)],
        "blurred (Gaussian, 5 px)": [drawn(subject.figure).filter(ImageFilter.GaussianBlur(5)) for _ in range(count)],
        "blurred (Gaussian, 2 px)": [drawn(subject.figure).filter(ImageFilter.GaussianBlur(2)) for _ in range(count)],
    }


def of_class(subject: Subject, numbers: random.Random, count: int, *, same: bool) -> list[Image.Image]:
    """Draw random scenes of the subject's class or of others."""
    found: list[Image.Image] = []
    while len(found) < count:
        scene = random_scene(numbers)
        if (scene.shape == subject.shape) == same:
            found.append(draw(scene))
    return found


def rectangles(plain: Figure, marked: Marked, first: str, second: str) -> list[Figure]:
    """Return the bounding rectangle with the mark, its halves in the two main colours, either way round."""
    across = [x for layer in plain for x, _ in layer.outline]
    down = [y for layer in plain for _, y in layer.outline]
    left, top, right, bottom = min(across), min(down), max(across), max(down)
    whole, half = box(left, top, right, bottom), box(left, (top + bottom) / 2, right, bottom)
    return [
        (Layer(whole, upper), Layer(half, lower), *marked.mark) for upper, lower in ((first, second), (second, first))
    ]


def there_and_back(pictures: Sequence[Image.Image], round_trip: RoundTrip) -> list[Image.Image]:
    """Return pictures as the autoencoder decodes them."""
    pixels = ((round_trip(to_tensor(pictures)) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(array.numpy()) for array in pixels]


def _apart(first: str, second: str) -> float:
    """Return the distance of two colours `#rrggbb`."""
    return float(sum((one - other) ** 2 for one, other in zip(rgb(first), rgb(second), strict=True)) ** 0.5)


if __name__ == "__main__":
    main()
