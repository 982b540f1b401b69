"""Measure how long training waits for saving, and how fast it is while checkpoints are published.

    python benchmarks/publishing.py FOLDER [--model mini] [--steps 24] [--every 6] [--optimizer adamw8bit]

Trains the UNet stage of a new session in FOLDER once, with a checkpoint every `--every` steps, and reads the trainer's
events. A step counts as *beside* a checkpoint if the checkpoint was being saved or published during any part of it,
otherwise as *alone*. `sd15` is Stable Diffusion 1.5 at its full size with random weights, built in FOLDER, which then
needs 25 GB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from full_size import build, photos

from fastdb.commands import sessions
from fastdb.reporting import format_bytes
from fastdb.sessions.events import Event
from fastdb.training import process


def main() -> None:
    """Train once, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=["mini", "sd15"], default="mini")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--optimizer", default="adamw8bit")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    base: Any = build(chosen.folder / "sd15") if chosen.model == "sd15" else "mini"
    root, name = chosen.folder / "sessions", "published"
    shutil.rmtree(root / name, ignore_errors=True)
    settings = {
        "resolution": 64,
        "text_encoder.steps": 0,
        "unet.steps": chosen.steps,
        "prior.class_images": 0,
        "optimizer.name": chosen.optimizer,
        "checkpoints.every_steps": chosen.every,
        "checkpoints.every_minutes": 1440,
    }
    session = sessions.new(name, base, photos(chosen.folder / "photos"), root=root, settings=settings)
    events = list(process.start(session).follow())
    if events[-1].get("outcome") != "finished":
        raise SystemExit(str(events[-1]))
    report(events, chosen.steps)


def report(events: list[Event], steps: int) -> None:
    """Print the figures of the events."""
    saves = [event for event in events if event["event"] == "saved"]
    published = [event for event in events if event["event"] == "published"]
    # The last checkpoint is saved and published after the last step.
    spans = [(event["time"] - event["seconds"], event["time"]) for event in saves[:-1] + published[:-1]]
    beside, alone = [], []
    for event in (event for event in events if event["event"] == "step" and event["step"] > 1):
        began, ended = event["time"] - event["seconds"], event["time"]
        among = beside if any(began < last and ended > first for first, last in spans) else alone
        among.append(event["seconds"])
    step = statistics.median(alone)
    print(f"{os.cpu_count()} cores; a step alone {step:.3f} s (median of {len(alone)} of {steps})")
    if beside:
        slow = statistics.median(beside)
        print(f"a step beside a checkpoint {slow:.3f} s (median of {len(beside)}): {step / slow:.2f} of the rate")
    for event in saves[:-1]:
        share = event["blocked"] / step
        waited = f"the loop waited {event['blocked']:.2f} s, {share:.2f} of a step"
        print(f"saved {Path(event['path']).name} in {event['seconds']:.1f} s: {waited}")
    for event in published:
        print(f"published {Path(event['path']).name}: {format_bytes(event['bytes'])} in {event['seconds']:.1f} s")


if __name__ == "__main__":
    main()
