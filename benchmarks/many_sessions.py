"""Time `fastdb sessions` and `fastdb space` with many sessions.

    python benchmarks/many_sessions.py [1000]

Each session has the files of a trained session: photos, three checkpoints of two stages, samples, a log and two runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord, Run, write_record


def make(root: Path, number: int) -> None:
    """Create a session with realistic numbers of files but dummy contents."""
    name = f"session_{number:04d}"
    session = Session.create(name, base_model=BaseModelRecord(folder="mini", fingerprint="0" * 64), root=root)
    runs = tuple(Run(started="2026-11-01T10:00:00+00:00", begins="text_encoder step 0") for _ in range(2))
    write_record(session.path, session.record.model_copy(update={"runs": runs}))
    for index in range(8):
        (session.instance_images / f"photo ({index}).png").write_bytes(b"x" * 100)
        (session.originals / f"photo ({index}).jpg").write_bytes(b"x" * 100)
        (session.samples / f"unet-{index:06d}-1.png").write_bytes(b"x" * 100)
    for stage, step in (("text_encoder", 350), ("unet", 1000), ("unet", 1500)):
        folder = session.checkpoints / f"{stage}-{step:06d}"
        folder.mkdir()
        for file in ("MANIFEST.json", "state.json", "optimizer.safetensors", f"{stage}.safetensors"):
            (folder / file).write_bytes(b"x" * 100)
    (session.logs / "run.jsonl").write_text("{}\n")


def seconds(root: Path, verb: str, times: int = 5) -> list[float]:
    """Return the sorted wall times of whole processes."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        command = [sys.executable, "-m", "fastdb", verb, "--root", str(root)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        took.append(time.perf_counter() - began)
        assert len(done.stdout.splitlines()) > 3, done
    return sorted(took)


def main() -> None:
    """Create the sessions, time each verb and print a line of JSON."""
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FASTDB_CACHE"] = str(Path(folder) / "cache")
        root = Path(folder) / "sessions"
        for number in range(many):
            make(root, number)
        for verb in ("sessions", "space"):
            took = seconds(root, verb)
            line = {"verb": verb, "sessions": many, "best": round(took[0], 2), "median": round(took[2], 2)}
            print(json.dumps(line))


if __name__ == "__main__":
    main()
