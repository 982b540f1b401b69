"""Differences between a session and the values requested, before and after training has begun."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastdb.checkpoints.checkpoint import complete
from fastdb.config import Config, flat, format_change
from fastdb.errors import ConfigError
from fastdb.models.mini_settings import recommended
from fastdb.reporting import Note, Report, argument
from fastdb.sessions.lease_status import in_use
from fastdb.sessions.session import Session
from fastdb.training import process
from fastdb.training.preflight import FREE, MACHINE
from fastdb.training.schedules import rate_at, rate_text

CHANGEABLE = (*FREE, *MACHINE)
"""Beginnings of the names of settings that may change after training has begun: results differ by rounding at most."""


@dataclass(frozen=True)
class Difference:
    """A value of a session that differs from the one asked for."""

    name: str
    """A dotted setting, `base model`, `token` or `class word`."""
    current: str
    asked: str

    def __str__(self) -> str:
        return f"{self.name} {self.current or '(empty)'} -> {self.asked}"

    @property
    def changeable(self) -> bool:
        """Whether it may change after training has begun."""
        return self.name.startswith(CHANGEABLE)


def agreed_settings(session: Session, settings: Mapping[str, Any], running: bool, keep: bool, report: Report) -> Config:
    """Return the settings to train with, of those asked for and those of a session that may have begun.

    Args:
        settings: dotted names and values.
        running: a trainer runs here, so none can change.
        keep: report settings that cannot change any more, instead of raising an error.

    Raises:
        ConfigError: a setting cannot change.
    """
    asked = with_method(session, session.config.changed(settings)).changed(settings)
    differing = setting_differences(session.config, asked)
    kept = [difference for difference in differing if running or not difference.changeable]
    if not kept or not has_begun(session):
        return asked
    if not keep:
        what, fix = "training is running", f"Stop it first: fastdb stop {argument(session.name)}"
        if not running:
            what = "training has begun"
            fix = (
                f"Resume without --set. For more steps: fastdb extend {argument(session.name)} --steps N; for another "
                "learning rate from step N on: --from-step N; to change the UNet stage from its start: --from-step 0; "
                "to start over with other settings: --restart; or create a session: fastdb new"
            )
        raise ConfigError(f"{what} with other settings: {listed(kept)}", where=session.name, fix=f"{fix}.")
    report_kept(kept, report)
    values = dict(flat(asked.model_dump()))
    return session.config.changed({d.name: values[d.name] for d in differing if d not in kept})


def has_begun(session: Session) -> bool:
    """Return whether training has begun: there is a checkpoint, or a trainer runs here or elsewhere."""
    checkpoints = complete(session.checkpoint_folders, lineage=session.record.lineages)
    return bool(checkpoints) or process.find(session) is not None or bool(in_use(session.path))


def setting_differences(current: Config, asked: Config) -> list[Difference]:
    """Return the settings that differ."""
    old, new = (dict(flat(config.model_dump())) for config in (current, asked))
    return [Difference(name, *format_change(old[name], new[name])) for name in old if old[name] != new[name]]


def changed_rates(current: Config, asked: Config, after: int) -> list[Difference]:
    """Return the learning rates that differ after `after` done steps of the UNet stage because of a change there."""
    differing = []
    for part in ("unet", "text_encoder"):
        old, new = getattr(current, part), getattr(asked, part)
        if old.rate_changes != new.rate_changes and after:
            differing.append(Difference(f"{part}.learning_rate", f"{rate_at(old, after):.3g}", rate_text(new, after)))
    return differing


def with_method(session: Session, asked: Config) -> Config:
    """Return settings with the defaults of their method, if it is not the session's."""
    base, word = session.record.base_model.folder, session.record.subject.class_word
    before, after = (Config().changed(recommended(base, word, each.method)) for each in (session.config, asked))
    return moved(asked, before, after)


def moved(config: Config, before: Config, after: Config) -> Config:
    """Return settings with defaults replaced by others; values that are no defaults stay."""
    values, old, new = (dict(flat(each.model_dump())) for each in (config, before, after))
    return config.changed({name: new[name] for name in values if values[name] == old[name] != new[name]})


def listed(differing: list[Difference]) -> str:
    """Return differences as a clause."""
    return "; ".join(str(difference) for difference in differing)


def report_kept(differing: list[Difference], report: Report) -> None:
    """Report the differences in which a session keeps its own values."""
    for difference in differing:
        report.note(Note("value kept", difference.name, f"{difference.current or '(empty)'}, not {difference.asked}"))


def report_changed(differing: list[Difference], report: Report) -> None:
    """Report the differences that were applied."""
    for difference in differing:
        report.note(Note("value changed", difference.name, f"{difference.current or '(empty)'} -> {difference.asked}"))
