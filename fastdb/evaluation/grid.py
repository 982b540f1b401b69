"""The grid: a row for each checkpoint, a column for each of some prompts, the instance images on top."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from PIL import Image

from fastdb.evaluation.candidates import Candidate
from fastdb.evaluation.picture_cache import Gallery
from fastdb.evaluation.prompts import Protocol, Shot
from fastdb.images.contact_sheet import Cell, Row, contact_sheet
from fastdb.images.photos import read_photo

COLUMNS = 8


def grid(
    gallery: Gallery,
    candidates: Sequence[Candidate],
    protocol: Protocol,
    instance_images: Sequence[Path],
    title: str,
    picked: int,
) -> Image.Image:
    """Instance images, then a row a candidate, the first with groups and prompts; row `picked` is marked.

    The pictures have to be there.
    """
    columns = shown(protocol)
    rows = [Row("instance images", [Cell(read_photo(path)) for path in instance_images[:COLUMNS]])]
    for number, candidate in enumerate(candidates):
        label = candidate.label + "\nuntrained" * (number == 0) + "\nuse this one" * (number == picked)
        said = [f"{shot.group}:\n{shot.prompt}" * (number == 0) for shot in columns]
        cells = [Cell(gallery.picture(candidate, shot), text) for shot, text in zip(columns, said, strict=True)]
        rows.append(Row(label, cells))
    return contact_sheet(rows, title=title, thumb=160)


def shown(protocol: Protocol, most: int = COLUMNS) -> list[Shot]:
    """The shots to show, in the protocol's order: a prompt of each group in turn; further seeds where those are few."""
    shots = protocol.shots()
    turns: list[Shot] = []
    for seed in range(max(shot.seed for shot in shots) + 1):
        groups = [
            [shot for shot in shots if (shot.group, shot.seed) == (group.name, seed)] for group in protocol.groups
        ]
        turns += [shot for turn in zip_longest(*groups) for shot in turn if shot is not None]
    return sorted(turns[:most], key=shots.index)
