"""Result of an evaluation, its tables and its JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdb.evaluation.choose import Pick
from fastdb.evaluation.prompts import Protocol
from fastdb.measures.values import Figure, Measured
from fastdb.reporting import Note

if TYPE_CHECKING:
    from fastdb.evaluation.candidates import Candidate, PictureCache

FORMAT = 2


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        settings: the settings that pictures were drawn with.
        measure: name of the measure.
        figures: those that at least 1 candidate has.
        candidates: the untrained base first.
        measured: the values of each candidate.
        notes: the choice, warnings and remarks, in the order to show them.
        files: the files written.
    """

    session: str
    settings: Mapping[str, Any]
    measure: str
    figures: Sequence[Figure]
    protocol: Protocol
    candidates: Sequence[Candidate]
    measured: Sequence[Measured]
    picked: Pick
    notes: tuple[Note, ...] = ()
    files: tuple[Path, ...] = ()

    def as_json(self, cache: PictureCache) -> dict[str, Any]:
        """Return the content of `evaluation.json`, with pictures by their path relative to its folder."""
        start = self.measured[0].values
        picked = self.picked
        return {
            "format": FORMAT,
            "session": self.session,
            "settings": dict(self.settings),
            "measure": self.measure,
            "protocol": _protocol_json(self.protocol),
            "figures": {
                figure.name: {
                    "about": figure.about,
                    "better": figure.better,
                    "goal": figure.goal,
                    "limit": figure.bound(start),
                }
                for figure in self.figures
            },
            "picked": {
                "checkpoint": picked.label,
                "step": self.candidates[picked.row].step,
                "undecided": [self.candidates[row].step for row in picked.undecided],
                "reason": picked.reason,
                "overfit": "; ".join(note.reason for note in picked.notes if note.kind in ("overfit", "overfit later")),
                "remarks": [
                    f"{note.kind}: {note.reason}" for note in picked.notes if not note.kind.startswith("overfit")
                ],
            },
            "checkpoints": [
                _candidate_json(cache, candidate, measured)
                for candidate, measured in zip(self.candidates, self.measured, strict=True)
            ],
        }


def compare_export(evaluation: Evaluation, earlier: Path) -> Note:
    """Compare an exported file with its checkpoint, if both were evaluated with the same prompts and settings.

    Args:
        evaluation: of the file, the last candidate.
        earlier: `evaluation.json` of the checkpoints.
    """
    file, values = evaluation.candidates[-1], evaluation.measured[-1].values
    try:
        saved = json.loads(earlier.read_text(encoding="utf-8"))
        same = saved["settings"] == dict(evaluation.settings) and saved["measure"] == evaluation.measure
        same = same and _shots(saved["protocol"]) == _shots(_protocol_json(evaluation.protocol))
        checkpoint = next((row for row in saved["checkpoints"] if row["step"] == file.step), None)
        if not same or checkpoint is None:
            return Note("export not comparable", file.label)
        apart = {name: abs(value.mean - checkpoint["figures"][name]["mean"]) for name, value in values.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Note("export not compared", file.label, type(error).__name__)
    name = max(apart, key=lambda figure: apart[figure])
    return Note("export compared", file.label, f"{apart[name]:.3f} ({name}) from {checkpoint['checkpoint']}")


def _protocol_json(protocol: Protocol) -> dict[str, Any]:
    return {
        "seeds": protocol.seeds,
        "first_seed": protocol.first_seed,
        "groups": [
            {
                "name": group.name,
                "about": group.about,
                "seeds": protocol.seeds * group.times,
                "prompts": list(group.prompts),
            }
            for group in protocol.groups
        ],
    }


def _shots(protocol: Mapping[str, Any]) -> list[object]:
    """Return what determines the pictures of a saved protocol, without its descriptions."""
    groups = [(group["name"], group["seeds"], group["prompts"]) for group in protocol["groups"]]
    return [protocol.get("first_seed"), *groups]  # Format 1 has other seeds and no first one.


def _candidate_json(cache: PictureCache, candidate: Candidate, measured: Measured) -> dict[str, Any]:
    pictures = [
        {
            "group": shot.group,
            "prompt": shot.prompt,
            "seed": shot.seed,
            "file": cache.path(candidate, shot).relative_to(cache.folder.parent).as_posix(),
            **{
                name: round(reading, 6) if isinstance(reading, float) else reading for name, reading in readings.items()
            },
        }
        for shot, readings in zip(measured.shots, measured.pictures, strict=True)
    ]
    return {
        "checkpoint": candidate.label,
        "step": candidate.step,
        "weights": candidate.key.split(),
        "figures": {
            name: {
                "mean": round(value.mean, 6),
                "low": None if value.low is None else round(value.low, 6),
                "high": None if value.high is None else round(value.high, 6),
                "count": value.count,
            }
            for name, value in measured.values.items()
        },
        "pictures": pictures,
    }
