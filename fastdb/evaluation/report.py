"""What an evaluation found, as a table to read and as `evaluation.json` to work with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb import console
from fastdb.evaluation.candidates import Candidate
from fastdb.evaluation.choose import Pick, Row, bound_of
from fastdb.evaluation.curves import Curve
from fastdb.evaluation.measures import Figure, Measured, Value
from fastdb.evaluation.picture_cache import Gallery
from fastdb.evaluation.prompts import Protocol

FORMAT = 1


@dataclass(frozen=True)
class Report:
    """An evaluation: `measured` holds what each candidate's pictures show, the untrained base's first."""

    session: str
    settings: Mapping[str, Any]
    measure: str
    figures: tuple[Figure, ...]
    protocol: Protocol
    candidates: Sequence[Candidate]
    measured: Sequence[Measured]
    picked: Pick

    @property
    def rows(self) -> list[Row]:
        """The figures by candidate."""
        return rows_of(self.candidates, self.measured)

    @property
    def given(self) -> list[Figure]:
        """The figures that some candidate has."""
        return [one for one in self.figures if any(one.name in found.values for found in self.measured)]

    def say(self) -> None:
        """Print what the figures mean, the figures, and the choice."""
        console.table(
            ("figure", "better", "good", "what it is"),
            [(one.name, _better(one), self._limit(one), one.about) for one in self.given],
        )
        console.say()
        console.table(
            ("checkpoint", *(one.name for one in self.given)),
            [(row.label, *(_cell(row.values.get(one.name)) for one in self.given)) for row in self.rows],
        )
        console.say()
        console.say(f"use {self.picked.label}: {self.picked.reason}")
        if self.picked.overfit:
            console.say(f"warning: overfit: {self.picked.overfit}")
        for remark in self.picked.remarks:
            console.say(f"note: {remark}")

    def curves(self) -> list[Curve]:
        """A curve for each figure that two steps have."""
        start, made = self.measured[0].values, []
        for figure in self.given:
            points = [
                (candidate.step, found.values[figure.name])
                for candidate, found in zip(self.candidates, self.measured, strict=True)
                if candidate.step is not None and figure.name in found.values
            ]
            if len({step for step, _ in points}) > 1:
                better = f"{_better(figure)} is better"
                made.append(Curve(figure.name, f"{figure.about}; {better}", points, bound_of(figure, start)))
        return made

    def as_json(self, gallery: Gallery) -> dict[str, Any]:
        """Everything, for `evaluation.json`; pictures are named by their path below the evaluation's folder."""
        return {
            "format": FORMAT,
            "session": self.session,
            "settings": dict(self.settings),
            "measure": self.measure,
            "protocol": protocol_told(self.protocol),
            "figures": {
                one.name: {
                    "about": one.about,
                    "better": _better(one),
                    "goal": one.goal,
                    "limit": bound_of(one, self.measured[0].values),
                }
                for one in self.given
            },
            "picked": {
                "checkpoint": self.picked.label,
                "step": self.candidates[self.picked.row].step,
                "reason": self.picked.reason,
                "overfit": self.picked.overfit,
                "remarks": list(self.picked.remarks),
            },
            "checkpoints": [
                self._told(gallery, candidate, found)
                for candidate, found in zip(self.candidates, self.measured, strict=True)
            ],
        }

    def _told(self, gallery: Gallery, candidate: Candidate, found: Measured) -> dict[str, Any]:
        pictures = [
            {
                "group": shot.group,
                "prompt": shot.prompt,
                "seed": shot.seed,
                "file": gallery.path(candidate, shot).relative_to(gallery.folder.parent).as_posix(),
                **{name: _short(reading) for name, reading in line.items()},
            }
            for shot, line in zip(self.protocol.shots(), found.pictures, strict=True)
        ]
        return {
            "checkpoint": candidate.label,
            "step": candidate.step,
            "weights": candidate.key.split(),
            "figures": {
                name: {"mean": round(value.mean, 6), "error": round(value.error, 6), "count": value.count}
                for name, value in found.values.items()
            },
            "pictures": pictures,
        }

    def _limit(self, figure: Figure) -> str:
        bound = bound_of(figure, self.measured[0].values)
        if bound is None:
            return "most" if figure.goal else "-"
        return f"{'≥' if figure.higher_is_better else '≤'} {bound:.3f}"


def rows_of(candidates: Sequence[Candidate], measured: Sequence[Measured]) -> list[Row]:
    """The table that the choice is made from."""
    return [Row(one.label, found.values) for one, found in zip(candidates, measured, strict=True)]


def protocol_told(protocol: Protocol) -> dict[str, Any]:
    """A protocol as plain data."""
    return {
        "seeds": protocol.seeds,
        "groups": [
            {"name": one.name, "about": one.about, "seeds": protocol.seeds * one.times, "prompts": list(one.prompts)}
            for one in protocol.groups
        ],
    }


def say_difference(report: Report, earlier: Path) -> None:
    """Hold an exported file's figures against those of its checkpoint, where both were evaluated alike.

    `earlier` is the `evaluation.json` of the checkpoints.
    """
    candidate, now = report.candidates[-1], report.measured[-1].values
    try:
        told = json.loads(earlier.read_text(encoding="utf-8"))
        same = told["settings"] == dict(report.settings) and told["protocol"] == protocol_told(report.protocol)
        same = same and told["measure"] == report.measure
        before = next((one for one in told["checkpoints"] if one["step"] == candidate.step), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        console.say(f"not compared with the checkpoints: no evaluation of them can be read ({type(error).__name__})")
        return
    if not same or before is None:
        console.say("not compared with its checkpoint: that was not evaluated with the same prompts and settings")
        return
    apart = {name: abs(value.mean - before["figures"][name]["mean"]) for name, value in now.items()}
    name = max(apart, key=lambda one: apart[one])
    console.say(
        f"{candidate.label} and {before['checkpoint']} were evaluated alike: "
        f"their figures differ by {apart[name]:.3f} at most ({name})"
    )


def _better(figure: Figure) -> str:
    return "higher" if figure.higher_is_better else "lower"


def _cell(value: Value | None) -> str:
    return "-" if value is None else f"{value.mean:.3f} ±{value.error:.3f}"


def _short(reading: Any) -> Any:
    return round(reading, 6) if isinstance(reading, float) else reading
