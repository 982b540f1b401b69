"""Settings of pictures to generate, checked without torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastdb.errors import ConfigError
from fastdb.inference.samplers import DEFAULT, check_sampler

SEEDS = 2**63 - 1
"""Number of seeds, which begin at 0."""


def group_size(resolution: int) -> int:
    """Return the number of pictures of a resolution to draw per pass, 4 of 512 px and at most 8."""
    return max(1, min(8, 4 * 512**2 // resolution**2))


@dataclass(frozen=True)
class Request:
    """Settings of pictures to draw; picture i of `count` has seed + i.

    Width and height are in pixels and multiples of 8.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    count: int = 1
    steps: int = 20
    guidance: float = 7.5
    sampler: str = DEFAULT
    width: int = 512
    height: int = 512

    def __post_init__(self) -> None:
        """Check all values, and normalize the sampler's name.

        Raises:
            ConfigError: a value is out of bounds.
        """
        for name, value in (("width", self.width), ("height", self.height)):
            if value % 8 or not 64 <= value <= 4096:
                near = min(max(64, value // 8 * 8), 4096)
                raise ConfigError(
                    "is not a multiple of 8 between 64 and 4096", subject=f"{name} {value}", fix=f"Try {near}."
                )
        for name, value, usual in (("steps", self.steps, 20), ("count", self.count, 1)):
            if not 1 <= value <= 1000:
                raise ConfigError("is not between 1 and 1000", subject=f"{name} {value}", fix=f"Try {usual}.")
        if not 0 <= self.guidance <= 50:
            raise ConfigError("is not between 0 and 50", subject=f"guidance {self.guidance}", fix="Try 7.5.")
        if not 0 <= self.seed <= SEEDS - self.count:
            raise ConfigError("is not between 0 and 2^63", subject=f"seed {self.seed}", fix="Try 0.")
        object.__setattr__(self, "sampler", check_sampler(self.sampler))
