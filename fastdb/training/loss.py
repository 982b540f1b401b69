"""The training objective, for models that predict the noise or the velocity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler


@dataclass(frozen=True)
class Noised:
    """A batch after the forward process.

    Attributes:
        latents: noised latents, float32 (batch, 4, height / 8, width / 8).
        timesteps: int64 (batch,).
        target: the correct prediction, of the shape of `latents`.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor


def add_noise(scheduler: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> Noised:
    """Add noise to latents up to their timesteps (Ho et al. 2020, equation 4).

    The target is the noise for epsilon models, sqrt(a) noise - sqrt(1 - a) latents for v models
    (Salimans and Ho 2022, section 4).
    """
    noised = scheduler.add_noise(latents, noise, timesteps)
    if scheduler.config["prediction_type"] == "v_prediction":
        return Noised(noised, timesteps, scheduler.get_velocity(latents, noise, timesteps))
    return Noised(noised, timesteps, noise)


def timestep_weights(scheduler: DDPMScheduler, timesteps: torch.Tensor, gamma: float) -> torch.Tensor | None:
    """Return each sample's weight by Min-SNR-gamma (Hang et al. 2023, section 3), or None if gamma is 0.

    With the signal-to-noise ratio s = a / (1 - a) of its timestep the weight is min(s, gamma) / s for epsilon models
    and min(s, gamma) / (s + 1) for v models, so that the predicted image's error has the weight min(s, gamma).

    Args:
        timesteps: int64 (batch,).

    Returns:
        float32 (batch,) on the device of `timesteps`.
    """
    if not gamma:
        return None
    kept = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    ratio = kept / (1 - kept)
    if scheduler.config["prediction_type"] == "v_prediction":
        return ratio.clamp(max=gamma) / (ratio + 1)
    # Equals min(s, gamma) / s, and is 1 where there is no signal at all.
    return (gamma / ratio).clamp(max=1)


def row_loss(prediction: torch.Tensor, target: torch.Tensor, rows: int, weights: torch.Tensor | None) -> torch.Tensor:
    """Return a row's part of the mean squared error over `rows` rows of its kind, a scalar in float32.

    Args:
        prediction, target: (1, channels, height, width).
        weights: of the row's error, (1,); None for 1.
    """
    error = (prediction.float() - target.float()).square().mean()
    return (error if weights is None else error * weights[0]) / rows


def denoising_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    instances: int,
    prior_weight: float,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the mean squared error of the instance images plus the weighted error of the class images.

    Args:
        prediction, target: (batch, channels, height, width); the first `instances` rows are instance images,
            the rest class images (Ruiz et al. 2023, equation 2).
        prior_weight: weight of the class images' error.
        weights: of each row's error, (batch,); None for equal weights.

    Returns:
        The loss to minimise, the instance images' part and the class images' part, three scalars in float32.
    """
    error = (prediction.float() - target.float()).square()
    if weights is not None:
        error = error * weights.reshape(-1, 1, 1, 1)
    instance = error[:instances].mean()
    if instances == error.shape[0]:
        return instance, instance, torch.zeros_like(instance)
    prior = error[instances:].mean()
    return instance + prior_weight * prior, instance, prior
