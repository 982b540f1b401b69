"""Batches of training steps, drawn by addressed random numbers.

Step k is a pure function. Every random number has an address, (session seed, stage, step, microbatch, group, sample),
and comes from a generator on the CPU that is seeded by the BLAKE2b hash of its address. So neither the device, nor an
interruption, nor the number of processes changes a number, and a checkpoint needs no random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from fastdb.training.caches import LatentCache

INSTANCE, HELD_OUT = "instance", "held out"
"""Names of the instance images that are trained on, and of those that are not."""


@dataclass(frozen=True)
class _Draw:
    """The random part of a row; the lots in 0..1 decide whether its caption or its whole prompt is dropped."""

    image: int
    timestep: int
    noise: torch.Tensor
    posterior: torch.Tensor
    caption_lot: float
    prompt_lot: float


@dataclass(frozen=True)
class Group:
    """Images of one kind.

    Attributes:
        name: `INSTANCE`, "class" or `HELD_OUT`.
        prompts: of each image.
        size: how many a microbatch contains; 0 for those that are only measured.
        bare: each image's prompt without its caption, which replaces it in a share `caption_dropout` of the turns.
        dropout: share of the turns with the empty prompt.
    """

    name: str
    latents: LatentCache
    prompts: tuple[str, ...]
    size: int
    bare: tuple[str, ...] = ()
    caption_dropout: float = 0.0
    dropout: float = 0.0

    def prompt(self, drawn: _Draw) -> str:
        """Return the prompt of a row."""
        if drawn.prompt_lot < self.dropout:
            return ""
        return (self.bare if drawn.caption_lot < self.caption_dropout else self.prompts)[drawn.image]


@dataclass(frozen=True)
class Batch:
    """A microbatch on the CPU, instance images first, then class images.

    Attributes:
        latents, noise: float32 (batch, 4, height / 8, width / 8), latents scaled.
        timesteps: int64 (batch,).
        instances: number of instance images.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    prompts: tuple[str, ...]
    instances: int

    def rows(self) -> Iterator[Batch]:
        """Yield each row as a batch of its own; the first `instances` are instance images."""
        for row, prompt in enumerate(self.prompts):
            place, instance = slice(row, row + 1), int(row < self.instances)
            yield Batch(self.latents[place], self.noise[place], self.timesteps[place], (prompt,), instance)


@dataclass(frozen=True)
class Batches:
    """Every microbatch of a stage by its address.

    Each of several processes makes its own rows; a row's numbers do not depend on the number of processes.
    """

    groups: tuple[Group, ...]
    seed: int
    stage: str
    microbatches: int
    timesteps: int
    process: int = 0
    processes: int = 1

    def at(self, step: int, microbatch: int) -> Batch:
        """Return a microbatch of a step, both counted from 0."""
        rows = []
        for group in self.groups:
            for row in range(group.size):
                drawn = self._draw(group, step, microbatch, self.process * group.size + row)
                rows.append((group.latents.sample(drawn.image, drawn.posterior), drawn, group.prompt(drawn)))
        return Batch(
            latents=torch.stack([latents for latents, _, _ in rows]),
            noise=torch.stack([drawn.noise for _, drawn, _ in rows]),
            timesteps=torch.tensor([drawn.timestep for _, drawn, _ in rows]),
            prompts=tuple(prompt for _, _, prompt in rows),
            instances=self.groups[0].size,
        )

    def _draw(self, group: Group, step: int, microbatch: int, sample: int) -> _Draw:
        """Draw a row; `sample` is its index in the microbatch over all processes.

        Timesteps are uniform on 0..timesteps-1, noise is standard normal (Ho et al. 2020, algorithm 1). Images follow a
        random order that is new in every epoch, so that each epoch shows every image once.
        """
        count, shape = len(group.latents), group.latents.mean.shape[1:]
        position = (step * self.microbatches + microbatch) * self.processes * group.size + sample
        epoch = generator(self.seed, self.stage, group.name, "order", position // count)
        numbers = generator(self.seed, self.stage, step, microbatch, group.name, sample)
        # The order of these draws decides every later result: do not change it.
        return _Draw(
            image=int(torch.randperm(count, generator=epoch)[position % count]),
            timestep=int(torch.randint(0, self.timesteps, (), generator=numbers)),
            noise=torch.randn(shape, generator=numbers),
            posterior=torch.randn(shape, generator=numbers),
            caption_lot=float(torch.rand((), generator=numbers)),
            prompt_lot=float(torch.rand((), generator=numbers)),
        )


def every_prompt(groups: Iterable[Group]) -> list[str]:
    """Return every prompt that can occur in a batch."""
    groups = tuple(groups)
    own = [prompt for group in groups for prompt in (*group.prompts, *group.bare)]
    return [*own, *([""] if any(group.dropout for group in groups) else [])]


def generator(*address: int | str) -> torch.Generator:
    """Return a CPU generator that is a function of its address alone."""
    digest = hashlib.blake2b("/".join(map(str, address)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
