"""Show what verbs and trainers report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastdb.console.sentences import SENTENCES, sentence
from fastdb.console.terminal import bar, close_bar, open_bar, say
from fastdb.console.training_status import STAGE_TITLES, TrainingStatus, about
from fastdb.reporting import Note, Progress, Report, counted, format_bytes

_SELDOM = 60.0
"""Least seconds between two lines about checkpoints of a stage."""

_FACTS = ("memory predicted", "moments converted", "stage settled")
"""Notes of a trainer that warn of nothing."""


class ConsoleReport(Report):
    """Prints what a verb reports."""

    def __init__(self) -> None:
        self.view = TrainingView()

    def note(self, note: Note) -> None:
        """Print a note's sentence."""
        say(sentence(note))

    def event(self, event: dict[str, Any]) -> None:
        """Show an event of a trainer."""
        self.view.show(event)

    def earlier(self, events: Iterable[dict[str, Any]]) -> None:
        """Continue the smoothed loss of earlier runs."""
        self.view = TrainingView(events)

    @contextmanager
    def progress(self, task: str, unit: str = "it") -> Iterator[Progress]:
        """Show a progress bar for one task."""
        with bar(task, unit) as update:
            yield update


class TrainingView:
    """Shows a trainer's events, with a bar for each task and stage."""

    def __init__(self, earlier: Iterable[dict[str, Any]] = ()) -> None:
        """Start with the loss of earlier runs."""
        self._status = TrainingStatus(earlier)
        self._bar: Any = None
        self._task = ""
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}
        self._told = {name for name, stage in self._status.stages.items() if stage.fixed_noise()}

    def show(self, event: dict[str, Any]) -> None:
        """Show an event; events of an unknown kind are ignored."""
        kinds: dict[str, Callable[[dict[str, Any]], None]] = {
            "plan": self._plan,
            "progress": self._progress,
            "stage": self._stage,
            "step": self._step,
            "saved": self._saved,
            "published": self._published,
            "sample": self._sample,
            "token": self._token,
            "note": self._note,
            "warning": self._warning,
            "end": self._end,
        }
        self._status.event(event)
        handler = kinds.get(event["event"])
        if handler is not None:
            handler(event)

    def close(self) -> None:
        """Close the current bar."""
        if self._bar is not None:
            close_bar(self._bar)
        self._bar, self._task = None, ""

    def _open(self, task: str, total: int, done: int = 0, unit: str = "it", **options: Any) -> Any:
        if self._task != task:
            self.close()
            self._bar = open_bar(desc=task, total=total, initial=done, unit=unit, unit_scale=unit == "B", **options)
            self._task = task
        return self._bar

    def _seldom(self, kind: str, line: str) -> None:
        """Print a line of a kind at most once a minute; the others are counted."""
        now = time.monotonic()
        if now - self._said.get(kind, float("-inf")) >= _SELDOM:
            self._said[kind] = now
            say(line)
        else:
            self._unsaid[kind] = self._unsaid.get(kind, 0) + 1

    def _say_fixed_noise(self) -> None:
        """Print the losses on fixed noise of the stages that have ended, once each."""
        for stage in self._status.stages.values():
            ended = stage is not self._status.current or self._status.outcome
            if ended and stage.name not in self._told and (losses := stage.fixed_noise()):
                self._told.add(stage.name)
                say(f"Loss on fixed noise, {stage.title}: {losses}")

    def _say_rest(self) -> None:
        for kind, count in self._unsaid.items():
            say(f"{kind}: {counted(count, 'further checkpoint')}")
        self._unsaid, self._said = {}, {}

    def _plan(self, event: dict[str, Any]) -> None:
        if event.get("begins") == "finished":
            return  # The note at the end says it in a sentence.
        # Versions before typed plans wrote sentences only.
        for line in _plan_lines(event) if "optimizer_reason" in event else event["lines"]:
            say(line)

    def _progress(self, event: dict[str, Any]) -> None:
        bar = self._open(event["task"], event["total"], unit=event.get("unit", "it"))
        bar.total = event["total"]
        bar.update(event["done"] - bar.n)

    def _stage(self, event: dict[str, Any]) -> None:
        self._say_rest()
        self._say_fixed_noise()
        self._open_stage(event, event["step"])

    def _open_stage(self, event: dict[str, Any], done: int) -> Any:
        # Rate and time left are the trainer's: of a trainer that is followed, this process sees many steps at once.
        return self._open(event["stage"], event["steps"], done, bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}")

    def _step(self, event: dict[str, Any]) -> None:
        bar = self._open_stage(event, event["step"] - 1)
        numbers = [*self._status.numbers(), f"lr {event['learning_rate']:.2e}"]
        if (left := self._status.seconds_left) is not None:
            numbers.append(f"{about(left)} left")
        bar.set_postfix_str(", ".join(numbers), refresh=False)
        bar.update(event["step"] - bar.n)

    def _saved(self, event: dict[str, Any]) -> None:
        waited = f", training waited {event['blocked']:.1f} s" if event.get("blocked", 0) >= 0.1 else ""
        line = f"Saved {Path(event['path']).name} on this machine in {event['seconds']:.1f} s{waited}"
        self._seldom("Saved on this machine", line)

    def _published(self, event: dict[str, Any]) -> None:
        size = format_bytes(event["bytes"])
        line = f"Checkpoint {Path(event['path']).name} is in the session's folder ({size})"
        self._seldom("Published to the session's folder", line)

    def _sample(self, event: dict[str, Any]) -> None:
        if event["step"]:  # Those of the untrained base are on one sheet.
            say(f"Sample: {event['path']}")

    def _token(self, event: dict[str, Any]) -> None:
        pairs = zip(event["prompts"], event["shares"], strict=True)
        shown = ", ".join(f"{prompt!r}: {share}" if share else repr(prompt) for prompt, share in pairs)
        say(f"The untrained base drew {shown}. Pictures: {event['sheet']}")

    def _note(self, event: dict[str, Any]) -> None:
        note = Note(event["kind"], event.get("subject", ""), event.get("reason", ""))
        # A newer version may report kinds without a sentence here.
        text = sentence(note) if note.kind in SENTENCES else f"{note.kind}: {note.subject} {note.reason}".strip()
        say(text if note.kind in _FACTS else f"warning: {text}")

    def _warning(self, event: dict[str, Any]) -> None:
        say(f"warning: {event['message']}")

    def _end(self, event: dict[str, Any]) -> None:
        self.close()
        self._say_rest()
        self._say_fixed_noise()


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    """Return the lines of a plan; see `fastdb.training.prepare.Plan`."""
    lines = [_stage_line(name, plan) for name in plan["stages"]]
    if plan["ema_decay"]:
        lines.append(f"Result: running average of the UNet's weights (EMA), decay {plan['ema_decay']:g}")
    photos = f"{counted(plan['photos'], 'photo')} at {plan['resolution']} px"
    if plan.get("held_out"):
        photos += f", {plan['held_out']} held out"
    if plan["class_images"]:
        prompts = f" from {plan['class_prompts']} prompts" if plan["class_prompts"] > 1 else ""
        photos += f", {counted(plan['class_images'], 'class image')} for prior preservation{prompts}"
    lines.append(photos)
    if plan["captions_dropped"]:
        lines.append(f"Captions dropped {plan['captions_dropped']:.0%} of the time")
    if plan.get("prompts_dropped"):
        lines.append(f"Prompts dropped {plan['prompts_dropped']:.0%} of the time")
    if plan["min_snr_gamma"]:
        lines.append(f"Loss: Min-SNR weights, gamma {plan['min_snr_gamma']:g}")
    lines.append(f"Device: {plan['device']} in {plan['precision']} ({plan['precision_reason']})")
    lines.append(f"Optimizer: {plan['optimizer']} ({plan['optimizer_reason']})")
    kept = f"; those at multiples of {plan['keep_every']} are kept" if plan["keep_every"] else ""
    often = f"every {plan['save_every_steps']} steps or {plan['save_every_minutes']:g} minutes"
    lines.append(f"Checkpoints: {often}, and when stopped{kept}")
    return lines


def _stage_line(name: str, plan: dict[str, Any]) -> str:
    title, stage = STAGE_TITLES.get(name, name), plan["stages"][name]
    if name == "text_encoder" and plan["joint_steps"]:
        rate = plan["joint_learning_rate"]
        return f"{title}: trained with the UNet until step {plan['joint_steps']}, learning rate {rate:g} falling to 0"
    if not stage["steps"]:
        return f"{title}: not trained, 0 steps"
    if stage["done"] >= stage["steps"]:
        return f"{title}: done, {counted(stage['steps'], 'step')}"
    parts = [f"{counted(stage['own_steps'], 'step')}, learning rate {stage['learning_rate']:g} falling to 0"]
    parts += [f"then {extension}" for extension in stage["extensions"]]
    parts += [f"learning rate {change}" for change in stage.get("rate_changes", ())]
    parts += [f"resuming after step {stage['done']}"] if stage["done"] else []
    return f"{title}: {', '.join(parts)}"
