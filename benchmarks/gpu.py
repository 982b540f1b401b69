"""Checks of training on a GPU, in less than ten minutes: determinism, exact resume after a kill, memory and speed.

    python benchmarks/gpu.py FOLDER [--mini]

FOLDER needs about 25 GB. The script builds random weights of Stable Diffusion 1.5's full size there once and trains
them at 512 px. `--mini` runs the same checks with mini at 64 px, on a CPU too, to try the script. It prints a line for
each figure and ends with exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.full_size import build, photos
from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.publish import MADE_OF
from fastdb.commands import sessions
from fastdb.console.views import _plan_lines
from fastdb.runtime.gpu import find_gpu
from fastdb.runtime.isolation import environment
from fastdb.sessions.session import Session
from fastdb.training import process

Event = dict[str, Any]
STEPS, KILLED_AT = 30, 17
NEVER = {"checkpoints.every_steps": 100_000, "checkpoints.every_minutes": 1440}
MEMORY: dict[str, dict[str, Any]] = {
    "batch 1": {},
    "batch 2": {"batch_size": 2},
    "batch 4": {"batch_size": 4},
    "running average": {"unet.ema_decay": 0.99},
    "32-bit moments": {"optimizer.name": "adamw"},
    "checkpointing": {"gradient_checkpointing": True},
}
"""Settings whose peak is compared with the trainer's prediction: SD 1.5 at 512 px in fp16 with 8-bit moments."""
CONTEXT = 0.5
"""Memory of CUDA's context in GiB, which the prediction leaves out."""


class Checks:
    """Sessions of one base model, and the failures so far."""

    def __init__(self, folder: Path, mini: bool) -> None:
        self.root, self.mini, self.failures = folder / "sessions", mini, 0
        self.base: Path | str = "mini" if mini else build(folder / "sd15")
        self.photos = photos(folder / "photos")
        self.device = "cpu" if find_gpu() is None else ""
        shutil.rmtree(self.root, ignore_errors=True)

    def session(self, name: str, **settings: Any) -> Session:
        """Make a session that trains the UNet alone, unless `settings` say otherwise."""
        size = {"resolution": 64, "prior.class_images": 0} if self.mini else {"resolution": 512, "precision": "fp16"}
        chosen = {"text_encoder.steps": 0, "unet.steps": STEPS, **size, **settings}
        return sessions.new(
            name, self.base, self.photos, token="sks", class_word="cup", root=self.root, settings=chosen
        )

    def events(self, session: Session) -> Iterator[Event]:
        """Train a session and yield its events."""
        self.running = process.start(session, device=self.device)
        yield from self.running.follow()

    def check(self, name: str, right: bool, figure: str = "") -> None:
        """Print a line, and count a failure."""
        self.failures += not right
        print(f"{'ok    ' if right else 'FAILED'} {name}: {figure or right}", flush=True)

    def run(self, part: Callable[[Checks], None]) -> None:
        """Run a part; an error in it is a failure, and the next part runs."""
        began = time.monotonic()
        try:
            part(self)
        except Exception as error:  # noqa: BLE001 - the other parts still tell something
            self.check(part.__name__, False, f"{type(error).__name__}: {error}")
        print(f"       {part.__name__}: {time.monotonic() - began:.0f} s", flush=True)


def flags(checks: Checks) -> None:
    """Print the environment of a trainer."""
    variables = environment(os.environ)
    names = ("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF", "CUDA_VISIBLE_DEVICES")
    checks.check("environment", True, ", ".join(f"{name} {variables.get(name, '-')}" for name in names))
    checks.check("GPU", checks.mini or find_gpu() is not None, str(find_gpu()))


def strict_operations(checks: Checks) -> None:
    """Train two steps of both stages with class images and samples; torch may refuse no operation."""
    whole = {"text_encoder.steps": 2, "unet.steps": 2, "samples.every_steps": 2, "samples.steps": 2}
    prior = {"prior.class_images": 2, "prior.steps": 2, "unet.ema_decay": 0.9}
    for checkpointing in (False, True):
        session = checks.session(f"strict-{checkpointing}", gradient_checkpointing=checkpointing, **whole, **prior)
        events = list(checks.events(session))
        notes = [event for event in events if event["event"] == "note"]
        if not checkpointing:
            print("       " + "; ".join(_plan_lines(next(event for event in events if event["event"] == "plan"))))
        refused = [note["subject"] for note in notes if note["kind"] == "not deterministic"]
        failed = [note["reason"] for note in notes if note["kind"] == "samples failed"]
        done = events[-1]["outcome"] == "finished"
        found = f"{events[-1]}" if not done else f"refused {refused or 'none'}, samples failed {failed or 'none'}"
        checks.check(f"operations, checkpointing {checkpointing}", done and not refused and not failed, found)


def exact_resume(checks: Checks) -> None:
    """Compare the last checkpoints of a run and of one that was killed."""
    straight, killed = (checks.session(name, **{"checkpoints.every_steps": 10}) for name in ("straight", "killed"))
    saved, seconds = [], []
    for event in checks.events(straight):
        saved += [event] if event["event"] == "saved" else []
        seconds += [event["seconds"]] if event["event"] == "step" else []
    for event in checks.events(killed):
        if event["event"] == "step" and event["step"] == KILLED_AT:
            os.kill(checks.running.pid, signal.SIGKILL)
            break
    began, restored = time.monotonic(), 0.0
    for event in checks.events(killed):
        if event["event"] == "stage":
            restored = time.monotonic() - began
    made = [complete(session.checkpoints, "unet")[-1].state.get(MADE_OF) for session in (straight, killed)]
    checks.check(f"{STEPS} steps, killed at {KILLED_AT}, equal bytes", None not in made and made[0] == made[1])
    checks.check("speed", True, f"{1 / statistics.median(seconds):.2f} steps per second")
    blocked = max((event["blocked"] for event in saved), default=0.0)
    wrote = statistics.median(event["seconds"] for event in saved)
    checks.check("save", True, f"{wrote:.1f} s, of which training waited at most {blocked:.2f} s")
    checks.check("start and restore", True, f"{restored:.1f} s until the first step")


def memory(checks: Checks) -> None:
    """Compare the peak of the GPU's memory over three steps with the prediction."""
    for name, settings in MEMORY.items():
        session = checks.session(f"memory-{name.replace(' ', '-')}", **NEVER, **settings)
        peak, host, predicted = 0.0, 0.0, 0.0
        for event in checks.events(session):
            peak, host = max(peak, used()), max(host, resident(checks.running.pid))
            if event["event"] == "note" and event["kind"] == "memory predicted":
                predicted = sum(event["shares"].values()) / 2**30 + CONTEXT
            if event["event"] == "step" and event["step"] == 3:
                # Nothing was saved, so no publisher remains.
                os.kill(checks.running.pid, signal.SIGKILL)
                break
        checks.running.reap()
        near = checks.mini or abs(peak - predicted) <= 0.1 * predicted
        checks.check(f"memory, {name}", near, f"{peak:.2f} GiB, predicted {predicted:.2f}; host {host:.2f} GiB")


def used() -> float:
    """Return the GPU's memory in use, in GiB."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0.0
    query = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return float(answer[0]) / 1024 if answer else 0.0


def resident(process: int) -> float:
    """Return the peak resident memory of a process, in GiB."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return max((float(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM")), default=0.0)


def main() -> int:
    """Run all parts and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mini", action="store_true")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("FASTDB_CACHE", str(chosen.folder / "cache"))
    began, checks = time.monotonic(), Checks(chosen.folder, chosen.mini)
    for part in (flags, strict_operations, exact_resume, memory):
        checks.run(part)
    print(f"{checks.failures} failed, {time.monotonic() - began:.0f} s")
    return 1 if checks.failures else 0


if __name__ == "__main__":
    sys.exit(main())
