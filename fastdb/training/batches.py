"""The batch of a step: which images, which prompts, which noise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fastdb.training.caches import LatentCache
from fastdb.training.randomness import Address, Draw, draw


@dataclass(frozen=True)
class Group:
    """Images of one kind.

    Attributes:
        name: "instance" or "class".
        prompts: of each image.
        size: how many a microbatch takes.
        bare: of each image the prompt without its caption, which takes the other's place in a share of `dropout` of
            its turns.
    """

    name: str
    latents: LatentCache
    prompts: tuple[str, ...]
    size: int
    bare: tuple[str, ...] = ()
    dropout: float = 0.0

    @property
    def every_prompt(self) -> tuple[str, ...]:
        """Every prompt that can occur."""
        return (*self.prompts, *self.bare)

    def prompt(self, drawn: Draw) -> str:
        """The prompt of a drawn sample."""
        return (self.bare if drawn.lot < self.dropout else self.prompts)[drawn.image]


@dataclass(frozen=True)
class Batch:
    """A microbatch on the CPU: `instances` instance images, then the class images where there are any.

    Attributes:
        latents, noise: float32 (batch, 4, height / 8, width / 8), latents scaled.
        timesteps: int64 (batch,).
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    prompts: tuple[str, ...]
    instances: int


def digest(batches: Iterable[Batch]) -> str:
    """A short hash of all that is in some microbatches, in hex: where two are equal, training saw the same."""
    whole = hashlib.blake2b(digest_size=8)
    for batch in batches:
        whole.update(repr(batch.prompts).encode())
        for numbers in (batch.latents, batch.noise, batch.timesteps):
            whole.update(numbers.numpy().tobytes())
    return whole.hexdigest()


@dataclass(frozen=True)
class Batches:
    """Makes any microbatch from its address alone.

    With several processes each makes its own rows; a row's numbers do not depend on how many there are.
    """

    groups: tuple[Group, ...]
    seed: int
    stage: str
    microbatches: int
    timesteps: int
    process: int = 0
    processes: int = 1

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt that can occur."""
        return tuple(prompt for group in self.groups for prompt in group.every_prompt)

    def at(self, step: int, microbatch: int) -> Batch:
        """The microbatch of a step, counted from 0."""
        address = Address(self.seed, self.stage, step, microbatch)
        rows = []
        for group in self.groups:
            count, shape = len(group.latents), group.latents.shape
            for row in range(group.size):
                sample = self.process * group.size + row
                position = (step * self.microbatches + microbatch) * self.processes * group.size + sample
                drawn = draw(address, group.name, sample, position, count, shape, self.timesteps)
                rows.append((group.latents.sample(drawn.image, drawn.posterior), drawn, group.prompt(drawn)))
        return Batch(
            latents=torch.stack([latents for latents, _, _ in rows]),
            noise=torch.stack([drawn.noise for _, drawn, _ in rows]),
            timesteps=torch.tensor([drawn.timestep for _, drawn, _ in rows]),
            prompts=tuple(prompt for _, _, prompt in rows),
            instances=self.groups[0].size,
        )
