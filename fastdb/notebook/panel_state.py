"""Content of the training panel, as plain text and numbers."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdb.console import sentence
from fastdb.console.sentences import SENTENCES
from fastdb.console.training_status import STAGE_TITLES, TrainingStatus, about
from fastdb.reporting import Note, format_bytes

_MOST_NOTES = 60
_MOST_SAMPLES = 6
_OUTCOMES = {
    "finished": "Training finished",
    "stopped": "Training stopped",
    "failed": "Training failed",
    "crashed": "Training failed",
    "left": "This cell has ended; the trainer saves a checkpoint and stops",
    "published": "All checkpoints are published",
}


@dataclass
class PanelState:
    """What a panel shows. Everything is text or a number: none of it is markup."""

    name: str
    where: str
    """What the session's folder is called: `Google Drive` or `Session folder`."""
    status: TrainingStatus = field(default_factory=TrainingStatus)
    prompts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: list[tuple[str, int, Path]] = field(default_factory=list)
    """Stage, step and file of the last samples."""
    published: Path | None = None
    waiting: bool | None = None
    """Whether Google Drive has yet to upload the published checkpoint; None if nothing tells."""
    error: str = ""
    _saved: str = ""
    _stored: str = ""
    _files: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command that follows the training in a terminal."""
        return f"fastdb show {shlex.quote(self.name)} --follow"

    def event(self, event: dict[str, Any]) -> None:
        """Receive an event of a trainer."""
        self.status.event(event)
        kind = event["event"]
        if kind == "plan" and not any(stage["done"] for stage in event.get("stages", {}).values()):
            # A training that was started over; its earlier checkpoints were moved aside.
            self.published, self.waiting, self._stored = None, None, ""
        elif kind == "saved":
            self._saved = f"checkpoint {Path(event['path']).name}, {_clock(event)}"
        elif kind == "published":
            self.published, self.waiting = Path(event["path"]), None
            self._stored = f"checkpoint {self.published.name} ({format_bytes(event['bytes'])}), {_clock(event)}"
        elif kind == "sample":
            self.samples = [*self.samples, (event["stage"], event["step"], Path(event["path"]))][-_MOST_SAMPLES:]
        elif kind == "note":
            note = Note(event["kind"], event.get("subject", ""), event.get("reason", ""))
            # A newer version may report kinds without a sentence here.
            self.add(sentence(note) if note.kind in SENTENCES else f"{note.kind}: {note.subject} {note.reason}")
        elif kind == "warning":
            self.add(event["message"])
        elif kind == "end" and event["outcome"] in ("failed", "crashed"):
            self.error = str(event.get("message", ""))

    def resume(self, newest: Path) -> None:
        """Start with the newest checkpoint that the session's folder contains."""
        self.published, self._stored = newest, f"checkpoint {newest.name}"

    def add(self, text: str) -> None:
        """Add a line below the others."""
        self.notes = [*self.notes, " ".join(text.split())][-_MOST_NOTES:]

    def show_file(self, path: Path, size: int, step: int | None) -> None:
        """Show an exported file."""
        at = "" if step is None else f", step {step}"
        self._files[path.name] = f"{path.name}, {format_bytes(size)}{at}"

    def headline(self) -> str:
        """Return the current activity."""
        if self.status.outcome:
            return _OUTCOMES.get(self.status.outcome, self.status.outcome)
        if self.status.task:
            return f"Preparing: {self.status.line()}"
        if self.status.current is None:
            return "Starting the trainer"
        left = self.status.seconds_left
        return f"Training: {self.status.current.title}" + (f", {about(left)} left" if left is not None else "")

    def as_json(self, *, beat: int, samples: int, ended: bool) -> dict[str, Any]:
        """Return the content for the page.

        Args:
            beat: changes with every call while the kernel lives.
            samples: version of the picture of samples; 0 if there is none.
            ended: nothing will change any more.
        """
        return {
            "format": 1,
            "name": self.name,
            "command": self.command,
            "beat": beat,
            "time": round(time.time(), 1),
            "ended": ended,
            "tone": self.tone(),
            "headline": self.headline(),
            "bars": self.bars(),
            "numbers": [] if self.status.task else self.status.numbers(),
            "curves": self.curves(),
            "lines": self.lines(),
            "prompts": self.prompts,
            "samples": samples,
            "caption": self.caption(),
            "notes": self.notes,
            "error": self.error,
        }

    def tone(self) -> str:
        """Return `running`, `done` or `failed`."""
        if self.status.outcome in ("failed", "crashed"):
            return "failed"
        return "done" if self.status.outcome else "running"

    def bars(self) -> list[dict[str, Any]]:
        """Return label and fraction of each bar: the preparation's, or one per stage."""
        status = self.status
        if status.task:
            return [{"label": status.line(), "fraction": _share(status.task_done, status.task_total)}]
        stages = [stage for stage in status.stages.values() if stage.steps]
        return [
            {"label": f"{stage.title} {stage.step}/{stage.steps}", "fraction": _share(stage.step, stage.steps)}
            for stage in stages
        ]

    def curves(self) -> dict[str, Any]:
        """Return the smoothed losses, scaled to 0..1 from left to right and from bottom to top, and their range."""
        stages = [stage for stage in self.status.stages.values() if stage.steps]
        losses = [loss for stage in stages for _, loss in stage.curve]
        if len(losses) < 2:
            return {}
        low, high = min(losses), max(losses)
        room = (high - low) or abs(high) or 1.0
        total, before, lines = sum(stage.steps for stage in stages), 0, []
        for stage in stages:
            points = [[round((before + step) / total, 4), round((loss - low) / room, 4)] for step, loss in stage.curve]
            lines.append({"label": stage.title, "points": points})
            before += stage.steps
        return {"low": f"{low:.4f}", "high": f"{high:.4f}", "steps": f"{total} steps", "lines": lines}

    def lines(self) -> list[list[str]]:
        """Return label and text of what was saved, published and exported."""
        stored = self._stored
        if stored and self.waiting is not None:
            stored += ", not uploaded yet" if self.waiting else ", uploaded"
        rows = [["This machine", self._saved], [self.where, stored or "no checkpoint yet"]]
        losses = [f"{stage.title}: {text}" for stage in self.status.stages.values() if (text := stage.fixed_noise())]
        rows += [["Loss on fixed noise", "; ".join(losses)]]
        rows += [["File", text] for text in self._files.values()]
        return [row for row in rows if row[1]]

    def caption(self) -> str:
        """Return what the picture of samples shows."""
        steps: dict[str, list[int]] = {}
        for stage, step, _ in self.samples:
            steps.setdefault(STAGE_TITLES.get(stage, stage), []).append(step)
        parts = [f"{stage} step {', '.join(map(str, dict.fromkeys(of)))}" for stage, of in steps.items()]
        return f"Samples: {'; '.join(parts)}" if parts else ""

    def text(self) -> str:
        """Return everything as text, for places that show no pictures."""
        rows = [f"{self.name}: {self.headline()}", *(f"{label}: {text}" for label, text in self.lines())]
        return "\n".join([*rows, *([self.error] if self.error else []), *self.notes])


def _share(done: int, total: int) -> float | None:
    return round(min(done / total, 1), 4) if total else None


def _clock(event: dict[str, Any]) -> str:
    return time.strftime("%H:%M", time.localtime(event.get("time", time.time())))
