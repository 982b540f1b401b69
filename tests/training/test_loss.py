"""The loss, compared with its formulas."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from diffusers import DDPMScheduler

from fastdb.training.loss import add_noise, denoising_loss, timestep_weights

SD1 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noising_and_its_target_follow_the_papers(kind: str) -> None:
    numbers = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=numbers)
    steps = torch.tensor([0, 500, 999])
    noised = add_noise(DDPMScheduler(**SD1, prediction_type=kind), latents, noise, steps)

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)[steps].reshape(3, 1, 1, 1)
    signal, spread = kept.sqrt(), (1 - kept).sqrt()
    target = noise if kind == "epsilon" else signal * noise - spread * latents
    assert torch.allclose(noised.latents.double(), signal * latents + spread * noise, atol=1e-5)
    assert torch.allclose(noised.target.double(), target.double(), atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weighs_the_predicted_images_error_by_the_clamped_ratio(kind: str) -> None:
    """From the definition: by whatever the model predicts the picture, its squared error weighs min(SNR, gamma)."""
    numbers, gamma = torch.Generator().manual_seed(0), 5.0
    latents, noise, miss = torch.randn(3, 5, 4, 8, 8, generator=numbers)
    timesteps = torch.tensor([0, 50, 180, 500, 999])
    scheduler = DDPMScheduler(**SD1, prediction_type=kind)
    noised = add_noise(scheduler, latents, noise, timesteps)
    prediction = noised.target + 0.1 * miss
    weights = timestep_weights(scheduler, timesteps, gamma)
    loss = denoising_loss(prediction, noised.target, 5, 1.0, weights)[0]

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)[timesteps].reshape(5, 1, 1, 1)
    signal, spread = kept.sqrt(), (1 - kept).sqrt()
    told = prediction.double()
    picture = (
        (noised.latents - spread * told) / signal if kind == "epsilon" else signal * noised.latents - spread * told
    )
    ratio = (kept / (1 - kept)).flatten()
    assert ratio[1] > gamma > ratio[2], "the sample has timesteps on both sides of gamma"
    by_hand = (torch.minimum(ratio, torch.tensor(gamma)).reshape(5, 1, 1, 1) * (picture - latents).square()).mean()
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-3)


def test_min_snr_is_finite_where_there_is_no_signal_and_nothing_where_it_is_off() -> None:
    scheduler = DDPMScheduler(**SD1, rescale_betas_zero_snr=True)
    assert float(scheduler.alphas_cumprod[999]) < 1e-6
    scheduler.alphas_cumprod[999] = 0
    weights = timestep_weights(scheduler, torch.tensor([999]), 5.0)
    assert weights is not None
    assert weights.tolist() == [1.0]
    assert timestep_weights(scheduler, torch.tensor([0]), 0.0) is None


def test_each_row_is_weighed_by_its_own_weight() -> None:
    prediction, target = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    loss = denoising_loss(prediction, target, 2, 0.5, torch.tensor([1.0, 3.0, 8.0]))
    assert [float(part) for part in loss] == [2.0 + 0.5 * 8.0, 2.0, 8.0]


def test_the_class_images_error_is_weighted_and_apart() -> None:
    prediction, target = torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 2, 2)
    target[:2], target[2:] = 2.0, 3.0
    loss, instance, prior = denoising_loss(prediction, target, instances=2, prior_weight=0.5)
    assert (float(instance), float(prior), float(loss)) == (4.0, 9.0, 8.5)
    alone = denoising_loss(prediction[:2], target[:2], instances=2, prior_weight=0.5)
    assert [float(part) for part in alone] == [4.0, 4.0, 0.0]
