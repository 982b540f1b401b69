"""Compare runs that end when they have settled with the same runs trained to their end, on mini.

    python benchmarks/stopping.py FOLDER [--subjects ...] [--patience N]

Each subject is trained with `stop.when=settled` on four of its five photos, because the loss of photos that are trained
falls to the end. Then the same session goes on from where it ended to its last planned step, so both checkpoints are of
one run. Both are compared by `fastdb evaluate` on the same pictures, of the instance prompt and of six places, with the
interval of the paired difference. Subjects with a line in FOLDER/results.jsonl are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.reading_subjects import TUNING
from fastdb.checkpoints.progress import progress_of
from fastdb.commands import results, sessions, training
from fastdb.images.photos import save_png
from fastdb.sessions.session import Session
from fastdb.world.subjects import SUBJECTS as SHIPPED

PLACES = ("striped blue", "plain white", "dotted grey", "checkered green", "plain black", "striped yellow")
EVERY = 35
SUBJECTS = {**SHIPPED, TUNING[0].name: TUNING[0].subject}
LOST = 0.05


def run(root: Path, name: str, patience: int) -> dict[str, Any]:
    """Train a subject until it has settled, then to its end, and compare both."""
    subject = SUBJECTS[name]
    shutil.rmtree(root / name, ignore_errors=True)
    photos = root / f"{name}-photos"
    photos.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(subject.photos(), start=1):
        save_png(photo, photos / f"{name} ({number}).png")
    settings = {
        "stop.when": "settled",
        "stop.patience": patience,
        "stop.check_every": EVERY,
        "stop.hold_out": 1,
        "samples.every_steps": EVERY,
        "samples.prompts": [f"a photo of sks {subject.shape} on a {place} background" for place in PLACES],
        "checkpoints.keep_every": EVERY,
        "token.try": "off",
    }
    made = sessions.new(name, "mini", [photos], token="sks", class_word=subject.shape, root=root, settings=settings)
    planned = made.config.unet.steps
    training.train(made)
    settled = progress_of(Session.open(made.path))["unet"]
    if settled < planned:
        training.train(Session.open(made.path), settings={"stop.when": "off"}, from_step=settled)
    session = Session.open(made.path)
    prompts = [f"a photo of sks {subject.shape}", *settings["samples.prompts"]]
    evaluation = results.evaluate(session, seeds=10, checkpoints=sorted({settled, planned}), prompts=prompts)
    figures = [found.values for found in evaluation.measured[1:]]
    row: dict[str, Any] = {"subject": name, "planned": planned, "settled": settled}
    for figure in ("subject", "both"):
        lost = figures[-1][figure] - figures[0][figure]
        row[f"{figure}_share"] = [figures[0][figure].mean, figures[-1][figure].mean, lost.mean, lost.low, lost.high]
    return row


def main() -> int:
    """Make the missing runs, print a table, and return 1 if the aims are missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--patience", type=int, default=4)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    file = chosen.folder.absolute() / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for name in chosen.subjects:
        if all(row["subject"] != name for row in rows):
            rows.append(run(file.parent / "sessions", name, chosen.patience))
            with file.open("a") as lines:
                lines.write(json.dumps(rows[-1]) + "\n")
    print("| subject | settled / planned | subject, settled -> end | both, settled -> end | left out |")
    print("|---|---|---|---|---|")
    good = saved = 0
    for row in rows:
        left = 1 - row["settled"] / row["planned"]
        shares = row["subject_share"], row["both_share"]
        cells = [
            f"{now:.2f} -> {end:.2f} ({lost:+.2f} [{low:+.2f}, {high:+.2f}])" for now, end, lost, low, high in shares
        ]
        print(f"| {row['subject']} | {row['settled']} / {row['planned']} | {cells[0]} | {cells[1]} | {left:.0%} |")
        good += all(share[2] <= LOST for share in shares)
        saved += left >= 0.15
    print(f"at most {LOST} lost: {good} of {len(rows)}; at least 15 % of the steps left out: {saved} of {len(rows)}")
    return int(good < len(rows) - 1 or saved < 2)


if __name__ == "__main__":
    sys.exit(main())
