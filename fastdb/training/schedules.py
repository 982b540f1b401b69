"""The learning rate as a function of the step, and of nothing else. Needs no torch."""

from __future__ import annotations

from fastdb.config import Extension, TextEncoderConfig, UNetConfig

WARM = 10
"""A rewarming extension rises in the first of so many parts."""
PEAK = 0.5
"""An extension's highest rate as a part of the UNet's, where none is given."""


def default_peak(config: UNetConfig) -> float:
    """The highest rate of an extension for which none is given: half of the UNet's, the mean of its falling rate."""
    return config.learning_rate * PEAK


def rate_at(settings: TextEncoderConfig | UNetConfig, step: int) -> float:
    """The rate of the update that follows `step` done ones in a part's whole training: its own steps, then those it was
    extended by, one after the other; 0 when all are over.

    What is appended changes nothing before it.
    """
    if step < settings.steps:
        return linear_rate(settings.learning_rate, step, settings.steps)
    step -= settings.steps
    for one in settings.extensions if isinstance(settings, UNetConfig) else ():
        if step < one.steps:
            return extension_rate(one, step)
        step -= one.steps
    return 0.0


def linear_rate(base: float, step: int, steps: int) -> float:
    """The rate of the update that follows `step` done ones: linear from `base` to 0 after `steps`."""
    return base * max(0.0, 1.0 - step / steps)


def extension_rate(one: Extension, step: int) -> float:
    """The rate of the update that follows `step` done ones of an extension of n steps with the peak p:

    - hold: p.
    - decay: p (1 - step / n), as the training before it, from p to 0 after n.
    - rewarm: up to p within the first w = max(1, n // 10) steps, p (step + 1) / w, then linear to 0 after n,
      p (n - step) / (n - w + 1). Both are p in step w - 1. It begins near 0, where the training
      before it ended, so that nothing jumps.
    """
    steps, peak = one.steps, one.learning_rate
    if one.schedule == "hold":
        return peak
    if one.schedule == "decay":
        return linear_rate(peak, step, steps)
    warm = max(1, steps // WARM)
    return peak * min((step + 1) / warm, (steps - step) / (steps - warm + 1))
