"""Learning rate schedules, pure functions of the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastdb.checkpoints.progress import is_joint
from fastdb.config import Config, Extension, RateChange, TextEncoderConfig, UNetConfig, flat
from fastdb.config.stages import Segment
from fastdb.errors import ConfigError

_WARM = 10
"""A rewarming extension rises during the first of this many parts."""


def default_peak(config: UNetConfig) -> float:
    """Return the default peak rate of an extension, half of the UNet's, which is the mean of its falling rate."""
    return peak_at(config, max(0, config.segments[0].end - 1)) / 2


def peak_at(settings: TextEncoderConfig | UNetConfig, step: int) -> float:
    """Return the rate that the schedule after `step` done steps begins with: that of the own steps, or an extension's.

    A change of the rate holds from its step to the end of the own steps, or of the extension that it falls into.
    """
    return _peak(settings, segment_at(settings, step), step)


def _peak(settings: TextEncoderConfig | UNetConfig, segment: Segment, step: int) -> float:
    within = range(segment.start, min(step + 1, segment.end))
    changed = [change.learning_rate for change in settings.rate_changes if change.after in within]
    if changed and step < segment.end:
        return changed[-1]
    return settings.learning_rate if segment.extension is None else segment.extension.learning_rate


def segment_at(settings: TextEncoderConfig | UNetConfig, step: int) -> Segment:
    """Return the steps that the one after `step` done steps belongs to; past the end the last."""
    segments = settings.segments
    return next((segment for segment in segments if step < segment.end), segments[-1])


def with_rates_from(config: Config, settings: Mapping[str, Any], after: int) -> Config:
    """Return a configuration with settings changed, in which named learning rates change only after `after` done steps.

    Later changes of a named rate are dropped, because the new rate holds from that step on. With `after` 0, and in a
    stage of its own, the rate itself changes.

    Args:
        settings: dotted names and values, see `Config.changed`.

    Raises:
        ConfigError: a name is unknown, a value is invalid, or no step follows.
    """
    named = dict(flat(settings))
    parts = [part for part in ("unet", "text_encoder") if f"{part}.learning_rate" in named]
    asked, values = config.changed(settings), dict[str, Any]()
    for part in parts:
        own = getattr(config, part)
        if not after:
            values[f"{part}.rate_changes"] = ()
        elif part == "unet" or is_joint(config):
            if after >= own.all_steps:
                raise ConfigError(
                    f"the {part} trains no further step after step {after}",
                    where=f"{part}.learning_rate",
                    fix=f"Choose a step before {own.all_steps}, or add steps: fastdb extend NAME --steps N",
                )
            earlier = tuple(change for change in own.rate_changes if change.after < after)
            wanted = getattr(asked, part).learning_rate
            before = peak_at(own.model_copy(update={"rate_changes": earlier}), after)
            new = () if wanted == before else (RateChange(after=after, learning_rate=wanted),)
            values[f"{part}.learning_rate"] = own.learning_rate
            values[f"{part}.rate_changes"] = [change.model_dump() for change in (*earlier, *new)]
    return asked.changed(values)


def without_later_ends(config: Config, after: int) -> Config:
    """Return a configuration in which steps follow `after` that `stop.when` had left out.

    Steps after which an extension begins stay the end of those before it.
    """
    end = config.unet.all_steps
    kept = [step for step in config.unet.settled_after if step < after or step == after < end]
    return config.changed({"unet.settled_after": kept})


def rate_text(settings: TextEncoderConfig | UNetConfig, after: int) -> str:
    """Return the rate of the step that follows a change of the rate, and the highest of its schedule."""
    rate, peak = f"{rate_at(settings, after):.3g}", f"{peak_at(settings, after):g}"
    if rate == peak:
        return f"{rate} from step {after + 1} on"
    return f"{rate} in step {after + 1} (highest rate of the schedule: {peak})"


def rate_at(settings: TextEncoderConfig | UNetConfig, step: int) -> float:
    """Return the rate of a part's update after `step` done steps; 0 after its last.

    Its own steps come first, then its extensions in their order, so appending an extension changes no earlier rate.
    An extension of n steps with the peak p has the rates, after k of its steps:

    - hold: p.
    - decay: p (1 - k / n), as the training before it, from p to 0 after n.
    - rewarm: up to p within the first w = max(1, n // 10) steps, p (k + 1) / w, then linear to 0 after n,
      p (n - k) / (n - w + 1). Both are p in step w - 1. It begins near 0, where the training
      before it ended, so that the rate does not jump.

    A change of the rate (`rate_changes`) replaces the own rate or p from its step on.
    """
    segment = segment_at(settings, step)
    if step >= segment.end:
        return 0.0
    peak = _peak(settings, segment, step)
    if segment.extension is None:
        return _linear_rate(peak, step, segment.planned)
    return _extension_rate(segment.extension, peak, step - segment.start)


def _linear_rate(base: float, step: int, steps: int) -> float:
    return base * max(0.0, 1.0 - step / steps)


def _extension_rate(extension: Extension, peak: float, step: int) -> float:
    steps = extension.steps
    if extension.schedule == "hold":
        return peak
    if extension.schedule == "decay":
        return _linear_rate(peak, step, steps)
    warm = max(1, steps // _WARM)
    return peak * min((step + 1) / warm, (steps - step) / (steps - warm + 1))
