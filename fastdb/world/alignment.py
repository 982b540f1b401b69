"""Poses of an object in pictures."""

from __future__ import annotations

import torch
from torch.nn import functional

REACH = 1.3
"""Half the side of a template, in units of the object's half size."""

_STEPS = torch.tensor([0.01, 0.004, 0.004, 0.01])
"""Differences for the derivatives by log size, x, y and tilt."""

TILTS = (-0.2, 0.0, 0.2)
"""Tilts from which a pose is searched, relative to the template's."""


def place(template: torch.Tensor, poses: torch.Tensor, side: int) -> torch.Tensor:
    """Return a template in each pose, (n, channels, side, side), zero outside of it.

    Args:
        template: (channels, height, width), the square from -`REACH` to `REACH`, or one for each pose.
        poses: (n, 4), log of half the size, x and y as fractions of the picture's side, tilt in radians.
    """
    at = (torch.arange(side) + 0.5) / side
    size, tilt = poses[:, 0].exp(), poses[:, 3]
    x = (at[None, None, :] - poses[:, 1, None, None]) / size[:, None, None]
    y = (at[None, :, None] - poses[:, 2, None, None]) / size[:, None, None]
    cos, sin = tilt.cos()[:, None, None], tilt.sin()[:, None, None]
    grid = torch.stack([cos * x + sin * y, cos * y - sin * x], -1) / REACH
    textures = template.expand(len(poses), *template.shape[-3:])
    return functional.grid_sample(textures, grid, align_corners=False)


def cut_out(pictures: torch.Tensor, poses: torch.Tensor, side: int) -> torch.Tensor:
    """Return the square from -`REACH` to `REACH` around each object, (n, channels, side, side): `place`'s inverse."""
    at = ((torch.arange(side) + 0.5) / side * 2 - 1) * REACH
    size, tilt = poses[:, 0].exp()[:, None, None], poses[:, 3]
    u, v = at[None, None, :], at[None, :, None]
    cos, sin = tilt.cos()[:, None, None], tilt.sin()[:, None, None]
    x = poses[:, 1, None, None] + size * (cos * u - sin * v)
    y = poses[:, 2, None, None] + size * (sin * u + cos * v)
    return functional.grid_sample(pictures, torch.stack([x, y], -1) * 2 - 1, align_corners=False, padding_mode="border")


def align(
    template: torch.Tensor, pictures: torch.Tensor, backgrounds: torch.Tensor, poses: torch.Tensor, rounds: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refine poses by Levenberg-Marquardt steps on the pixels; return them with the mean squared errors, (n,).

    Args:
        template: (4, height, width), colours times opacity, and opacity.
        pictures, backgrounds: (n, 3, side, side).
        poses: (n, 4), the starts.
    """
    side = pictures.shape[-1]

    def residuals(at: torch.Tensor, which: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        placed = place(template, at, side)
        return (placed[:, :3] + (1 - placed[:, 3:]) * backgrounds[which] - pictures[which]).flatten(1)

    count = len(poses)
    damping = torch.full((count, 1), 0.05)
    now = residuals(poses)
    error = now.square().mean(1)
    for _ in range(rounds):
        moved = [residuals(poses + _STEPS * (torch.arange(4) == axis)) for axis in range(4)]
        slopes = torch.stack([(one - now) / step for one, step in zip(moved, _STEPS, strict=True)], -1)
        normal = slopes.transpose(1, 2) @ slopes
        diagonal = torch.diagonal(normal, dim1=1, dim2=2)
        normal = normal + torch.diag_embed(damping * diagonal + 1e-6)
        change = torch.linalg.solve(normal, (slopes.transpose(1, 2) @ now[..., None])).squeeze(-1)
        tried = poses - change.clamp(-0.15, 0.15)
        tried[:, 0].clamp_(-2.2, -0.4)
        then = residuals(tried)
        found = then.square().mean(1)
        better = found < error
        poses = torch.where(better[:, None], tried, poses)
        now = torch.where(better[:, None], then, now)
        error = torch.where(better, found, error)
        damping = torch.where(better[:, None], damping / 4, damping * 6)
    return poses, error


def find_poses(
    template: torch.Tensor, extent: tuple[float, float, float], pictures: torch.Tensor, backgrounds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best pose of a template in each picture and its mean squared error.

    Args:
        template: as in `align`.
        extent: area, x and y of the template's centre of mass, in units of the object's half size.
    """
    starts = _starts(pictures, backgrounds, extent)
    small, behind = (functional.avg_pool2d(images, 2) for images in (pictures, backgrounds))
    tried = [align(template, small, behind, starts + torch.tensor([0.0, 0.0, 0.0, tilt]), rounds=6) for tilt in TILTS]
    errors = torch.stack([error for _, error in tried])
    poses = torch.stack([pose for pose, _ in tried])[errors.argmin(0), torch.arange(len(pictures))]
    return align(template, pictures, backgrounds, poses, rounds=5)


def _starts(pictures: torch.Tensor, backgrounds: torch.Tensor, extent: tuple[float, float, float]) -> torch.Tensor:
    """Return poses that match area and centre of what differs from the background."""
    side = pictures.shape[-1]
    seen = opacity(pictures, backgrounds)
    at = (torch.arange(side) + 0.5) / side
    mass = seen.sum((1, 2)).clamp(min=1.0)
    area, x, y = extent
    size = (mass / side**2 / area).sqrt().clamp(0.2, 0.6)
    centre_x = (seen.sum(1) * at).sum(1) / mass - size * x
    centre_y = (seen.sum(2) * at).sum(1) / mass - size * y
    return torch.stack([size.log(), centre_x, centre_y, torch.zeros_like(size)], 1)


def opacity(pictures: torch.Tensor, backgrounds: torch.Tensor) -> torch.Tensor:
    """Return how much each pixel differs from the background, (n, height, width) in 0 to 1."""
    distance = (pictures - backgrounds).square().sum(1).sqrt()
    return ((distance - 0.16) / 0.32).clamp(0, 1)
