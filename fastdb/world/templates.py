"""A subject's template, made from its pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from fastdb.world.alignment import REACH, align, cut_out
from fastdb.world.backgrounds import find_backgrounds
from fastdb.world.draw import DARK, SIDE

GRID = 160
"""Side of a template in cells."""

LEAST = 12.0
"""Smallest area of a region, in pixels of a picture."""

MERGE = 40.0
"""Colours nearer than this, in RGB from 0 to 255, are one."""

FLAT = 14 / 127.5
"""Largest difference within a flat patch."""

THIN = 2.2
"""Dark regions of at most this half width, in pixels of a picture, are contours."""


CONTOUR, OUTLINE = "contour", "outline"
"""Names of the dark lines, and of the surroundings within the object's bounding rectangle."""

APART = 10
"""Regions at least this many cells apart are left out together, which saves round trips."""


@dataclass(frozen=True)
class Template:
    """The regions of a subject.

    Attributes:
        cells: opacity of each cell over the square from -`REACH` to `REACH`, (cells, GRID, GRID). A cell has one
            colour in every variant.
        colours: RGB in -1 to 1 and opacity of each cell in each variant, (variants, cells, 4). The first variant is the
            subject; each other one lacks regions, which are filled by their surroundings.
        regions: which cells belong to each region, bool (regions, cells).
        lacking: the variant that lacks each region.
        names: for each region, `CONTOUR`, `OUTLINE` or its colour as `#rrggbb`.
        areas: of the regions, in pixels of a picture.
        extent: area and centre of the whole, as in `find_poses`.
    """

    cells: torch.Tensor
    colours: torch.Tensor
    regions: torch.Tensor
    lacking: tuple[int, ...]
    names: tuple[str, ...]
    areas: tuple[float, ...]
    extent: tuple[float, float, float]

    def texture(self, variant: int = 0) -> torch.Tensor:
        """Return a variant as colours times opacity, and opacity, (4, GRID, GRID)."""
        return textured(self.cells, self.colours[variant])


def textured(cells: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Return cells (..., cells, height, width) in their colours (cells, 4) as colours times opacity, and opacity."""
    weights = torch.cat([colours[:, :3] * colours[:, 3:], colours[:, 3:]], 1)
    return torch.einsum("...chw,cd->...dhw", cells, weights)


def learn_template(pictures: torch.Tensor) -> Template | None:
    """Make the template of the object that all pictures show; None if they show no such object.

    Args:
        pictures: float (n, 3, 64, 64) in -1 to 1.
    """
    backgrounds = find_backgrounds(pictures)
    objects = torch.stack([_object(one, behind) for one, behind in zip(pictures, backgrounds, strict=True)])
    poses = _first_poses(objects)
    if poses is None:
        return None
    layers = torch.cat([(pictures - backgrounds * (1 - objects[:, None])), objects[:, None]], 1)
    for rounds in (12, 8, 8):
        cut = cut_out(layers, poses, GRID)
        mean = cut.median(0).values if rounds < 12 else cut[0]
        mean = _smooth(mean)
        moved, errors = align(mean, pictures, backgrounds, poses, rounds)
        for tilt in (-0.2, -0.1, 0.1, 0.2) if rounds == 12 else ():
            other, theirs = align(mean, pictures, backgrounds, poses + torch.tensor([0.0, 0.0, 0.0, tilt]), rounds)
            better = theirs < errors
            moved, errors = torch.where(better[:, None], other, moved), torch.where(better, theirs, errors)
        poses = moved
    if float(errors.median()) > 0.03:
        return None
    cut = cut_out(layers, poses, GRID)
    covered = cut[:, 3].mean(0) > 0.5
    colours = (cut[:, :3] / cut[:, 3:].clamp(min=0.2)).clamp(-1, 1).median(0).values
    cells_per_pixel = (GRID / (2 * REACH * float(poses[:, 0].exp().mean()) * SIDE)) ** 2
    return _divide(colours.permute(1, 2, 0).numpy(), covered.numpy(), _palette(pictures, objects), cells_per_pixel)


def _object(picture: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
    """Return the opacity of the object, (64, 64): 1 inside, a share at its contour."""
    distance = (picture - behind).square().sum(0).sqrt()
    outside = ndimage.binary_propagation(_border(), mask=(distance < 0.16).numpy())
    edge = torch.from_numpy(ndimage.binary_dilation(outside, np.ones((3, 3)))) & (distance >= 0.16)
    dark = torch.tensor(DARK, dtype=torch.float32)[:, None, None] / 127.5 - 1
    share = (distance / (dark - behind).square().sum(0).sqrt()).clamp(0, 1)
    inside = (distance > 0.3) & ~torch.from_numpy(outside)
    return torch.where(edge, share, inside.float())


def _border() -> np.ndarray:
    border = np.ones((SIDE, SIDE), bool)
    border[1:-1, 1:-1] = False
    return border


def _first_poses(objects: torch.Tensor) -> torch.Tensor | None:
    """Return a pose for each object by its area and centre; None if one is too small, too large or at the border."""
    at = (torch.arange(SIDE) + 0.5) / SIDE
    mass = objects.sum((1, 2))
    if not bool(((mass > 120) & (mass < 0.75 * SIDE**2)).all()):
        return None
    x, y = (objects.sum(1) * at).sum(1) / mass, (objects.sum(2) * at).sum(1) / mass
    rows, columns = (objects[0].amax(axis).nonzero().squeeze(1) for axis in (1, 0))
    half = float(max(rows.max() - rows.min(), columns.max() - columns.min()) + 1) / SIDE / 2
    size = half * (mass / mass[0]).sqrt()
    return torch.stack([size.log(), x, y, torch.zeros_like(x)], 1)


def _smooth(layers: torch.Tensor) -> torch.Tensor:
    """Average over about a pixel of a picture."""
    return torch.nn.functional.avg_pool2d(layers, 3, 1, 1)


def _palette(pictures: torch.Tensor, objects: torch.Tensor) -> np.ndarray:
    """Return the colours of the objects' flat pixels, (colours, 3) in -1 to 1; the first is that of contours."""
    flat = []
    for picture, inside in zip(pictures, objects, strict=True):
        patches = picture.unfold(1, 2, 1).unfold(2, 2, 1).flatten(3)
        even = (patches.amax(-1) - patches.amin(-1)).amax(0) < FLAT
        flat.append(patches.mean(-1)[:, even & (inside[:-1, :-1] == 1)].T)
    pixels, near = torch.cat(flat).numpy(), MERGE / 127.5
    found = [np.array(DARK, np.float32) / 127.5 - 1]
    pixels = pixels[np.linalg.norm(pixels - found[0], axis=1) > near]
    while len(pixels) >= 3:
        # The colour with the most others near it, of a sample.
        sample = pixels[:: max(1, len(pixels) // 200)]
        close = np.linalg.norm(sample[:, None] - pixels[None], axis=-1) < near / 2
        found.append(np.median(pixels[close[close.sum(1).argmax()]], axis=0))
        pixels = pixels[np.linalg.norm(pixels - found[-1], axis=1) > near]
    return np.stack(found)


def _divide(colours: np.ndarray, covered: np.ndarray, palette: np.ndarray, pixel: float) -> Template:
    """Cut the object into regions of one colour; `pixel` is the number of cells in a pixel of a picture."""
    nearest = np.linalg.norm(colours[:, :, None] - palette, axis=-1).argmin(-1)
    votes = np.stack([ndimage.uniform_filter((nearest == tone).astype(float), 5) for tone in range(len(palette))])
    label = _without_specks(np.where(covered, votes.argmax(0), -1), LEAST * pixel)
    numbers = np.full(label.shape, -1)
    names: list[str] = []
    areas: list[float] = []
    for tone, colour in enumerate(palette):
        red, green, blue = (round((channel + 1) * 127.5) for channel in colour.tolist())
        for part, contour in _pieces(label == tone, tone == 0, pixel):
            if part.sum() >= LEAST * pixel:
                numbers[part] = len(names)
                names.append(CONTOUR if contour else f"#{red:02x}{green:02x}{blue:02x}")
                areas.append(float(part.sum()) / pixel)
    return _template(label, numbers, palette, names, areas, pixel)


def _without_specks(label: np.ndarray, least: float) -> np.ndarray:
    """Give small pieces the label of their surroundings."""
    keep = label < 0
    for colour in range(label.max() + 1):
        pieces, count = ndimage.label(label == colour)
        sizes = ndimage.sum_labels(np.ones_like(label), pieces, range(count + 1))
        keep |= (pieces > 0) & (sizes[pieces] >= least)
    return np.where(keep, label, _nearest(label, keep & (label >= 0)))


def _pieces(area: np.ndarray, dark: bool, pixel: float) -> list[tuple[np.ndarray, bool]]:
    """Return the connected pieces of a colour; those of the dark one are separated from the contours."""
    found: list[tuple[np.ndarray, bool]] = []
    if dark:
        radius = THIN * pixel**0.5
        core = ndimage.distance_transform_edt(area) > radius
        thick = area & (ndimage.distance_transform_edt(~core) <= radius + 1) if core.any() else np.zeros_like(area)
        if (area & ~thick).any():
            found.append((area & ~thick, True))
        area = thick
    pieces, count = ndimage.label(area)
    return found + [(pieces == number, False) for number in range(1, count + 1)]


def _template(
    label: np.ndarray, numbers: np.ndarray, palette: np.ndarray, names: list[str], areas: list[float], pixel: float
) -> Template:
    """Return the template of an object whose cells have a colour (`label`) and a region (`numbers`), or -1."""
    inside, contour = label >= 0, names.index(CONTOUR) if CONTOUR in names else -1
    groups = _apart(numbers, len(names), contour)
    fills = [_filled(label, numbers, group, contour) for group in groups]
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    rectangle = np.zeros_like(inside)
    rectangle[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    if (rectangle & ~inside).any():
        numbers = np.where(rectangle & ~inside, len(names), numbers)
        fills.append(np.where(rectangle, _nearest(label, inside & (numbers != contour)), label))
        groups, names = [*groups, [len(names)]], [*names, OUTLINE]
        areas = [*areas, float((rectangle & ~inside).sum()) / pixel]
    lists = np.stack([label, numbers, *fills]).reshape(2 + len(fills), -1)
    kinds, which = np.unique(lists, axis=1, return_inverse=True)
    kept = np.flatnonzero((np.delete(kinds, 1, axis=0) >= 0).any(0))
    cells = which.reshape(1, *label.shape) == kept[:, None, None]
    tones = np.concatenate([np.c_[palette, np.ones(len(palette))], np.zeros((1, 4))]).astype(np.float32)
    at = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH
    mass = float(inside.sum())
    return Template(
        cells=_smooth(torch.from_numpy(cells.astype(np.float32))),
        colours=torch.from_numpy(tones[np.delete(kinds, 1, axis=0)[:, kept]]),
        regions=torch.from_numpy(np.stack([kinds[1, kept] == number for number in range(len(names))])),
        lacking=tuple(
            next(1 + at for at, group in enumerate(groups) if number in group) for number in range(len(names))
        ),
        names=tuple(names),
        areas=tuple(areas),
        extent=(
            mass * (2 * REACH / GRID) ** 2,
            float((inside.sum(0) * at).sum()) / mass,
            float((inside.sum(1) * at).sum()) / mass,
        ),
    )


def _apart(numbers: np.ndarray, count: int, contour: int) -> list[list[int]]:
    """Return groups of regions that are far enough apart to be left out together."""
    near = [ndimage.binary_dilation(numbers == number, iterations=APART) for number in range(count)]
    groups: list[list[int]] = []
    for number in range(count):
        for group in groups:
            if contour not in (number, *group) and not any((near[number] & (numbers == one)).any() for one in group):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def _filled(label: np.ndarray, numbers: np.ndarray, without: list[int], contour: int) -> np.ndarray:
    """Return the labels with some regions filled by the nearest other colour, -1 (the background) if there is none."""
    filled = label
    for number in without:
        gone = numbers == number
        others = (label >= 0) & (label != label[gone][0]) & (numbers != contour)
        filled = np.where(gone, _nearest(label, others) if others.any() else -1, filled)
    return filled


def _nearest(label: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the label that is nearest to each cell."""
    nearest = ndimage.distance_transform_edt(~among, return_indices=True, return_distances=False)
    return label[tuple(nearest)]
