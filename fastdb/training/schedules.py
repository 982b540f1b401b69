"""Learning rate schedules, pure functions of the step."""

from __future__ import annotations

from fastdb.config import Extension, TextEncoderConfig, UNetConfig

_WARM = 10
"""A rewarming extension rises during the first of this many parts."""


def default_peak(config: UNetConfig) -> float:
    """Return the default peak rate of an extension, half of the UNet's, which is the mean of its falling rate."""
    return config.learning_rate / 2


def rate_at(settings: TextEncoderConfig | UNetConfig, step: int) -> float:
    """Return the rate of a part's update after `step` done steps; 0 after its last.

    Its own steps come first, then its extensions in their order, so appending an extension changes no earlier rate.
    An extension of n steps with the peak p has the rates, after k of its steps:

    - hold: p.
    - decay: p (1 - k / n), as the training before it, from p to 0 after n.
    - rewarm: up to p within the first w = max(1, n // 10) steps, p (k + 1) / w, then linear to 0 after n,
      p (n - k) / (n - w + 1). Both are p in step w - 1. It begins near 0, where the training
      before it ended, so that the rate does not jump.
    """
    if step < settings.steps:
        return _linear_rate(settings.learning_rate, step, settings.steps)
    step -= settings.steps
    for extension in settings.extensions if isinstance(settings, UNetConfig) else ():
        if step < extension.steps:
            return _extension_rate(extension, step)
        step -= extension.steps
    return 0.0


def _linear_rate(base: float, step: int, steps: int) -> float:
    return base * max(0.0, 1.0 - step / steps)


def _extension_rate(extension: Extension, step: int) -> float:
    steps, peak = extension.steps, extension.learning_rate
    if extension.schedule == "hold":
        return peak
    if extension.schedule == "decay":
        return _linear_rate(peak, step, steps)
    warm = max(1, steps // _WARM)
    return peak * min((step + 1) / warm, (steps - step) / (steps - warm + 1))
