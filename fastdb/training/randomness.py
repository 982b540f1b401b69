"""Step k is a pure function: every random number is addressed, none is drawn from a stream that must be carried on.

An address is (session seed, stage, step, microbatch, sample, purpose). Its generator is seeded by the
BLAKE2b hash of the address and draws on the CPU, so that neither the device, nor an interruption, nor
the number of processes changes a number. A checkpoint therefore needs no random state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


def generator(*address: int | str) -> torch.Generator:
    """A CPU generator that is a function of its address alone."""
    digest = hashlib.blake2b("/".join(map(str, address)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def image_order(seed: int, stage: str, group: str, epoch: int, count: int) -> list[int]:
    """The order in which `count` images of a group ("instance" or "class") are seen in one epoch."""
    order: list[int] = torch.randperm(count, generator=generator(seed, stage, group, "order", epoch)).tolist()
    return order


def image_at(seed: int, stage: str, group: str, position: int, count: int) -> int:
    """The image at a position counted over the whole stage: every epoch shows each image once."""
    return image_order(seed, stage, group, position // count, count)[position % count]


@dataclass(frozen=True)
class Draw:
    """The random part of one sample of one step.

    `noise` and `posterior` have the latents' shape (channels, height, width) in float32; `lot` lies in 0..1 and
    decides whether the caption is left out.
    """

    image: int
    timestep: int
    noise: torch.Tensor
    posterior: torch.Tensor
    lot: float


@dataclass(frozen=True)
class Address:
    """Where in training a microbatch stands."""

    seed: int
    stage: str
    step: int
    microbatch: int


def draw(
    address: Address, group: str, sample: int, position: int, count: int, shape: tuple[int, ...], timesteps: int
) -> Draw:
    """Draw one sample: `sample` is its index in the microbatch over all processes, `position` its place in the stage.

    Timesteps are uniform on 0..timesteps-1, noise is standard normal (Ho et al. 2020, algorithm 1).
    """
    numbers = generator(address.seed, address.stage, address.step, address.microbatch, group, sample)
    return Draw(
        image=image_at(address.seed, address.stage, group, position, count),
        timestep=int(torch.randint(0, timesteps, (), generator=numbers)),
        noise=torch.randn(shape, generator=numbers),
        posterior=torch.randn(shape, generator=numbers),
        lot=float(torch.rand((), generator=numbers)),
    )
