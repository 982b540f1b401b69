"""Likeness of pictures to a subject, read from its instance images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch.nn import functional

from fastdb.world.alignment import find_poses, opacity, place
from fastdb.world.backgrounds import find_backgrounds
from fastdb.world.draw import SIDE
from fastdb.world.readings import to_tensor
from fastdb.world.templates import Template, learn_template, textured

RoundTrip = Callable[[torch.Tensor], torch.Tensor]
"""Encodes and decodes pictures, float (n, 3, 64, 64) in -1 to 1."""

HOLDS = 0.45
"""Smallest agreement of each region if the subject is present."""

SHAPE = 0.85
"""Smallest intersection over union of the outlines if the subject is present."""

WRONG = 0.25
"""Largest share of pixels on and around the object that differ visibly if the subject is present."""

VISIBLE = 0.5
"""Distance of colours, in RGB from -1 to 1, that differ visibly."""

NEAR = 0.5
"""Distance of a region's colour from the template's, in RGB from -1 to 1, that is too far whatever surrounds it."""

ASIDE = 1.45
"""Weight of differences that do not lead from the template's colour to its surroundings."""

FAINT = 0.1
"""A region with a smaller distance from its surroundings is hardly shown by the autoencoder and not compared."""

LEAST_KEPT = 0.4
"""Share of its distance that the autoencoder must keep of a region; an eye of 13 px has less and is not compared."""

HOPELESS = -0.2
"""Agreement of a region before any round trip below which none is made."""

_BATCH = 64


@dataclass(frozen=True)
class Likeness:
    """Agreement of a picture with a subject.

    Attributes:
        layout: smallest agreement of a region, from 1, the template, to 0, as far from it as its surroundings are.
        shape: intersection over union of the outlines.
        worst: name of the region with the smallest agreement.
        present: whether every region and the outline hold.
    """

    layout: float
    shape: float
    worst: str
    present: bool


@dataclass(frozen=True)
class DrawnSubject:
    """A subject that was read from instance images.

    Attributes:
        template: its regions.
        kept: share of each region's distance from its surroundings that the autoencoder keeps, (regions,).
        round_trip: the autoencoder.
    """

    template: Template
    kept: torch.Tensor
    round_trip: RoundTrip

    def find(self, pictures: Sequence[Image.Image]) -> list[Likeness]:
        """Measure how well each picture shows the subject.

        A region of a picture is placed between the round trip of the template, in the pose and on the background of the
        picture, and that of the template without the region: so what the autoencoder loses does not count. The distance
        of the two is computed without round trips and multiplied by `kept`, which depends little on the picture.
        """
        found: list[Likeness] = []
        for start in range(0, len(pictures), _BATCH):
            found += self._measure(to_tensor(pictures[start : start + _BATCH]))
        return found

    @torch.no_grad()
    def _measure(self, pictures: torch.Tensor) -> list[Likeness]:
        template, fitted = self.template, fit(self.template, pictures)
        drawn = fitted.variants[:, 0]
        seen = opacity(pictures, fitted.behind)
        gap = torch.where(self.kept >= LEAST_KEPT, fitted.gaps(template), 0.0)
        agreement = fitted.agreement(template, pictures - drawn, gap)
        shape = _overlap(seen, fitted.opacity)
        near = (agreement.amin(1) > HOPELESS) & (shape > SHAPE - 0.25)
        if near.any():
            drawn[near] = self.round_trip(drawn[near])
            agreement[near] = fitted.agreement(template, pictures - drawn, gap * self.kept)[near]
            shape[near] = _overlap(seen, opacity(drawn, fitted.behind))[near]
        least, worst = agreement.min(1)
        right = _share_wrong(pictures, drawn, fitted.opacity) <= WRONG
        present = near & right & (least >= HOLDS) & (shape >= SHAPE)
        columns = (least.clamp(0, 1).tolist(), shape.tolist(), worst.tolist(), present.tolist())
        return [
            Likeness(layout, outline, template.names[region], shown)
            for layout, outline, region, shown in zip(*columns, strict=True)
        ]


def read_subject(instance_images: Sequence[Image.Image], round_trip: RoundTrip) -> DrawnSubject | None:
    """Return the subject that more than half of the instance images show; None if it is none of the drawn world."""
    if not instance_images:
        return None
    pictures = to_tensor(instance_images)
    with torch.no_grad():
        template = learn_template(pictures)
        if template is None:
            return None
        fitted = fit(template, pictures)
        raw = fitted.gaps(template)
        back = round_trip(fitted.variants.flatten(0, 1)).view_as(fitted.variants)
        fitted.variants.copy_(back)
        kept = (fitted.gaps(template) / raw.clamp(min=1e-3)).median(0).values
        subject = DrawnSubject(template, kept, round_trip)
        present = [likeness.present for likeness in subject._measure(round_trip(pictures))]
    return subject if sum(present) > len(present) / 2 else None


@dataclass(frozen=True)
class Fitted:
    """A template in the poses and on the backgrounds of pictures.

    Attributes:
        behind: the backgrounds, (n, 3, 64, 64).
        weights: coverage of each pixel by each region, squared, with sum 1, (n, regions, 64, 64).
        variants: the pictures of the template and its variants, (n, variants, 3, 64, 64).
        opacity: of the whole object, (n, 64, 64).
    """

    behind: torch.Tensor
    weights: torch.Tensor
    variants: torch.Tensor
    opacity: torch.Tensor

    def gaps(self, template: Template) -> torch.Tensor:
        """Return the distance of each region from its surroundings, root mean square, (n, regions)."""
        contrast = (self.variants[:, :1] - self.variants[:, list(template.lacking)]).square().sum(2)
        return (contrast * self.weights).sum((2, 3)).sqrt()

    def agreement(self, template: Template, difference: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
        """Return the agreement of each region by the mean difference from the template, (n, regions).

        Differences of hue count more than those towards the region's surroundings, which a region's edge blends with.
        """
        mean = torch.einsum("nrhw,ndhw->nrd", self.weights, difference)
        contrast = self.variants[:, :1] - self.variants[:, list(template.lacking)]
        towards = functional.normalize(torch.einsum("nrhw,nrdhw->nrd", self.weights, contrast), dim=2)
        along = (mean * towards).sum(2)
        aside = (mean - along[..., None] * towards).norm(dim=2)
        far = (along.square() + (ASIDE * aside).square()).sqrt()
        return torch.where(gap < FAINT, 1.0, 1 - far / gap.clamp(FAINT, NEAR / (1 - HOLDS)))


def fit(template: Template, pictures: torch.Tensor) -> Fitted:
    """Fit a template to pictures."""
    behind = find_backgrounds(pictures)
    poses, _ = find_poses(template.texture(), template.extent, pictures, behind)
    cells = place(template.cells, poses, SIDE)
    layers = torch.stack([textured(cells, colours) for colours in template.colours], 1)
    variants = (layers[:, :, :3] + (1 - layers[:, :, 3:]) * behind[:, None]).clamp(-1, 1)
    weights = torch.einsum("nchw,rc->nrhw", cells, template.regions.float()).square()
    return Fitted(behind, weights / weights.sum((2, 3), keepdim=True).clamp(min=1e-3), variants, layers[:, 0, 3])


def _overlap(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the intersection over union of two opacities, (n,)."""
    return torch.minimum(first, second).sum((1, 2)) / torch.maximum(first, second).sum((1, 2)).clamp(min=1.0)


def _share_wrong(pictures: torch.Tensor, expected: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the share of visibly different pixels on and around the object."""
    around = functional.max_pool2d(wanted[:, None], 5, 1, 2)[:, 0] > 0.5
    differs = (pictures - expected).square().sum(1).sqrt() > VISIBLE
    return (differs & around).sum((1, 2)) / around.sum((1, 2)).clamp(min=1)
