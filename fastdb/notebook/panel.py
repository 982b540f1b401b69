"""A live panel of a training, which survives a reload of the notebook's page."""

from __future__ import annotations

import atexit
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastdb import console
from fastdb.checkpoints.checkpoint import complete
from fastdb.console import ConsoleReport
from fastdb.console.training_status import TrainingStatus
from fastdb.errors import FastDBError, StorageError, first_line
from fastdb.notebook.panel_folder import FRAME, SAMPLES, STATE, PanelFolder
from fastdb.notebook.panel_frame import frame, strip
from fastdb.notebook.panel_page import FrontEnd, Output, data_address, front_end, page_html, served
from fastdb.notebook.panel_state import PanelState
from fastdb.notebook.wording import reworded
from fastdb.reporting import Note, Progress, Report, format_bytes
from fastdb.runtime.paths import DRIVES
from fastdb.sessions.events import earlier_events
from fastdb.sessions.session import Session
from fastdb.storage.drive_uploads import waits_for_upload
from fastdb.training.preflight import instances

_EVERY = 1.0
"""Seconds between two states."""
_PICTURE_EVERY, _UPLOAD_EVERY, _LINE_EVERY = 5.0, 15.0, 60.0
_LINGER = 900.0
"""Seconds that the files stay after the last news, for an export in a later cell, whose output a reload loses."""

_panels: dict[str, Panel] = {}


def latest(session: Session) -> Panel | None:
    """Return the last panel of a session in this kernel, for cells that run after the training."""
    return _panels.get(str(session.path))


class Panel(Report):
    """Shows what a training reports, as long as a `with` block lasts.

    In a Jupyter kernel it makes one output, whose script reads a folder beside the notebook or the kernel's messages;
    elsewhere it prints what a terminal shows.
    """

    def __init__(self, session: Session, *, place: Path | None = None, linger: float = _LINGER) -> None:
        """Prepare a panel; nothing is shown before the `with` block.

        Args:
            place: folder in which the panel's own folder is created, by default the working folder.
            linger: seconds that the panel's folder stays after the last news.
        """
        where = "Google Drive" if any(session.path.is_relative_to(drive) for drive in DRIVES) else "Session folder"
        self._session, self._place, self._linger = session, place, linger
        self._state = PanelState(session.name, where)
        self._kind: FrontEnd = front_end()
        self._console = ConsoleReport()
        identity = uuid.uuid4().hex[:10]
        self._output = Output(identity)
        self._folder: PanelFolder | None = PanelFolder(place or Path.cwd(), identity)
        self._lock, self._wake = threading.RLock(), threading.Event()
        self._beat = self._samples_version = 0
        self._strip = self._frame = b""
        self._drawn: tuple[Path, ...] = ()
        self._news = time.monotonic()
        self._due = dict.fromkeys(("picture", "upload", "line", "message"), 0.0)
        self._ended = self._closed = self._broken = False
        self._reachable: bool | None = None

    def __enter__(self) -> Self:
        if self._kind == "terminal":
            return self
        self._state.status = TrainingStatus(earlier_events(self._session.logs))
        self._state.prompts = _prompts(self._session)
        if (newest := _newest(self._session)) is not None:
            self._state.resume(newest)
        _panels[str(self._session.path)] = self
        if self._kind == "jupyter":
            self._make_folder()
        else:
            self._folder = None
        self._try(self._write)
        self._try(self._show_first)
        atexit.register(self.close)
        threading.Thread(target=self._run, name="fastdb-panel", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._kind == "terminal":
            return
        with self._lock:
            status = self._state.status
            if isinstance(error, Exception):
                self._state.error = str(error).splitlines()[0] if str(error) else type(error).__name__
                status.outcome = "failed"
            elif error is not None and not status.outcome:
                status.outcome = "left"
            status.task = ""
            self._ended = True
        self._show_last()

    def note(self, note: Note) -> None:
        """Show a note's sentence."""
        if self._kind == "terminal":
            return self._console.note(note)
        return self.result(reworded(console.sentence(note)))

    def event(self, event: dict[str, Any]) -> None:
        """Show an event of a trainer."""
        if self._kind == "terminal":
            return self._console.event(event)
        with self._lock:
            self._state.event(event)
            self._news = time.monotonic()
        return None

    @contextmanager
    def progress(self, task: str, unit: str = "it") -> Iterator[Progress]:
        """Show the progress of one task."""
        if self._kind == "terminal":
            with self._console.progress(task, unit) as update:
                yield update
            return

        def advance(done: int, total: int) -> None:
            with self._lock:
                status.begin_task(task, unit)
                status.task_done, status.task_total = done, total
                self._news = time.monotonic()

        status = self._state.status
        with self._lock:
            status.begin_task(task, unit)
        try:
            yield advance
        finally:
            with self._lock:
                status.task = ""

    def result(self, text: str) -> None:
        """Show a line, also after the training."""
        if self._kind == "terminal":
            return console.say(text)
        with self._lock:
            self._state.add(text)
            self._news = time.monotonic()
        if self._ended:
            self._show_last()
        return None

    def show_file(self, path: Path, size: int, step: int | None = None) -> None:
        """Show an exported file, its size in bytes and the step of its weights, also after the training."""
        if self._kind == "terminal":
            at = "" if step is None else f", step {step}"
            return console.say(f"File: {path} ({format_bytes(size)}{at})")
        with self._lock:
            self._state.show_file(path, size, step)
            self._news = time.monotonic()
        if self._ended:
            self._show_last()
        return None

    def close(self) -> None:
        """Stop refreshing and remove the panel's folder."""
        with self._lock:
            self._closed = self._ended = True
            self._wake.set()
            if self._folder is not None:
                with suppress(OSError):
                    self._folder.remove()
                self._folder = None
        atexit.unregister(self.close)

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(_EVERY)
            if self._ended and time.monotonic() - self._news > self._linger:
                return self.close()
            try:
                self._write()
            except Exception as error:  # noqa: BLE001 - tried again a second later
                if not self._broken:
                    self._broken = True
                    self._state.add(f"The panel cannot be refreshed: {first_line(error)}")
        return None

    def _write(self) -> None:
        """Write state and pictures where the page reads them."""
        with self._lock:
            if self._closed:
                return
            now = time.monotonic()
            self._beat += 1
            self._draw(now)
            state = self._content()
            if self._folder is not None:
                try:
                    self._folder.write(STATE, json.dumps(state, ensure_ascii=False).encode())
                except OSError as error:
                    # The disk is full, or somebody deleted the folder. The training is not concerned.
                    self._folder = None
                    self._state.add(f"The panel cannot be refreshed through its folder: {error}")
            self._send(now, state)

    def _content(self) -> dict[str, Any]:
        return self._state.as_json(beat=self._beat, samples=self._samples_version, ended=self._closed)

    def _draw(self, now: float) -> None:
        if self._state.published is not None and self._is_due("upload", now, _UPLOAD_EVERY):
            self._state.waiting = _waiting(self._state.published)
        paths = tuple(path for _, _, path in self._state.samples)
        changed = paths != self._drawn
        if changed:
            self._drawn, self._strip = paths, strip(paths)
            self._samples_version += bool(self._strip)
        if not self._is_due("picture", now, _PICTURE_EVERY) and not changed and not self._ended:
            return
        self._frame = frame(self._state, self._strip)
        if self._folder is None:
            return
        try:
            self._folder.write(FRAME, self._frame)
            if changed and self._strip:
                self._folder.write(SAMPLES, self._strip)
        except OSError:
            self._folder = None

    def _send(self, now: float, state: dict[str, Any]) -> None:
        """Send what front ends without the folder show."""
        if self._kind == "jupyter":
            if (self._folder is None or not self._reachable) and self._is_due("message", now, 2 * _EVERY):
                picture = data_address(self._strip, "image/jpeg") if self._strip else ""
                self._output.send({**state, "picture": picture})
        elif not self._ended and self._is_due("message", now, 2 * _EVERY):
            self._output.show(picture=self._frame, text=self._state.text())
        if self._kind == "vscode" and not self._ended and self._is_due("line", now, _LINE_EVERY):
            console.say(self._state.status.line() or self._state.headline())

    def _is_due(self, what: str, now: float, every: float) -> bool:
        if now < self._due[what]:
            return False
        self._due[what] = now + every
        return True

    def _make_folder(self) -> None:
        """Create the folder; without one the page reads the kernel's messages."""
        folder = self._folder
        if folder is not None and folder.path.resolve().is_relative_to(self._session.path.resolve()):
            # A session may be on Drive, which would upload every state.
            folder = self._folder = None
        self._reachable = served(folder.path.parent) if folder is not None else False
        try:
            if folder is not None:
                folder.make()
        except OSError:
            self._folder, self._reachable = None, False

    def _show_first(self) -> None:
        if self._kind != "jupyter":
            return
        unread = self._folder is None or self._reachable is False
        html = page_html(self._output.identity, self._name(), self._state.command, messages=unread)
        self._output.show(html=html, text=f"{self._state.name}: training")

    def _show_last(self) -> None:
        """Show the last content."""
        self._try(self._replace_output)

    @staticmethod
    def _try(show: Callable[[], None]) -> None:
        """Show something; if that fails, print why: the training is not concerned."""
        try:
            show()
        except Exception as error:  # noqa: BLE001 - of whatever kind, it must not end the cell
            console.say(f"The panel cannot be shown: {first_line(error)}")

    def _replace_output(self) -> None:
        """Replace the output by the last content, which needs no folder."""
        with self._lock:
            self._draw(time.monotonic())
            text = self._state.text()
            if self._kind == "jupyter":
                picture = data_address(self._strip, "image/jpeg") if self._strip else ""
                state = {**self._content(), "ended": True, "picture": picture}
                html = page_html(self._output.identity, self._name(), self._state.command, self._frame, state)
                self._output.show(html=html, text=text)
            else:
                self._output.show(picture=self._frame, text=text)
        self._write()

    def _name(self) -> str:
        return f"fastdb-panel-{self._output.identity}"


def _prompts(session: Session) -> list[str]:
    """Return the prompts to train, each once; empty if the images cannot be read, which training reports."""
    try:
        images = instances(session)
    except FastDBError:
        return []
    return list(dict.fromkeys(image.prompt for image in images))


def _newest(session: Session) -> Path | None:
    """Return the newest checkpoint in the session's folder; None if there is none, or the disk does not answer."""
    try:
        checkpoints = complete(session.checkpoints)
    except StorageError:
        return None
    return checkpoints[-1].path if checkpoints else None


def _waiting(path: Path) -> bool | None:
    try:
        return waits_for_upload(path) if any(path.is_relative_to(drive) for drive in DRIVES) else None
    except OSError:
        return None
