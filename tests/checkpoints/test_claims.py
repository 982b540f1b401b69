"""Claims, by which a checkpoint that is read is not deleted."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastdb.checkpoints import checkpoint as checkpoints_module
from fastdb.checkpoints.checkpoint import Checkpoint, complete, newest, save
from fastdb.checkpoints.claims import claimed, claims_kept, unclaimed
from fastdb.checkpoints.retention import delete_checkpoint, delete_unclaimed, prune
from fastdb.storage.manifest import faults

HOLD = """
import sys, time
from pathlib import Path
from fastdb.checkpoints.claims import claimed
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(60)
"""


def made(folder: Path, step: int) -> Checkpoint:
    def write(hidden: Path) -> dict[str, str]:
        (hidden / "unet.safetensors").write_bytes(bytes([step % 256]) * 1000)
        return {"unet.safetensors": hashlib.sha256(bytes([step % 256]) * 1000).hexdigest()}

    return save(folder, "unet", step, {"format": 2, "stage": "unet", "step": step, "steps": 100}, write)[0]


def test_a_claimed_checkpoint_is_not_deleted_and_goes_once_it_is_released(tmp_path: Path) -> None:
    checkpoints = [made(tmp_path, step) for step in (1, 2, 3)]
    with claimed(checkpoints[0].path), claimed(checkpoints[0].path):
        assert prune(tmp_path, "unet") == []
        with pytest.raises(BlockingIOError, match="another process is reading it"):
            delete_checkpoint(checkpoints[0].path)
        assert faults(checkpoints[0].path) == []
    assert prune(tmp_path, "unet") == []
    assert complete(tmp_path) == checkpoints[1:]


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    checkpoint = made(tmp_path, 1)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(checkpoint.path)], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"claimed\n"
        assert delete_unclaimed([checkpoint]) == []
        assert faults(checkpoint.path) == []
        reader.send_signal(signal.SIGKILL)
    assert delete_unclaimed([checkpoint]) == []
    assert complete(tmp_path) == []


def test_what_is_gone_or_going_cannot_be_claimed(tmp_path: Path) -> None:
    checkpoint = made(tmp_path, 1)
    with (
        unclaimed(checkpoint.path),
        pytest.raises(FileNotFoundError, match="deleted meanwhile"),
        claimed(checkpoint.path),
    ):
        raise AssertionError("it was claimed")
    delete_checkpoint(checkpoint.path)
    with pytest.raises(FileNotFoundError, match="deleted meanwhile"), claimed(checkpoint.path):
        raise AssertionError("it was claimed")


def test_a_folder_without_a_manifest_is_read_and_deleted_without_a_claim(tmp_path: Path) -> None:
    folder = tmp_path / "unet-000001"
    folder.mkdir()
    with claimed(folder):
        assert faults(folder) == ["it has no manifest, so it was never finished"]
    delete_checkpoint(folder)
    assert not folder.exists()


def test_a_reader_and_a_deletion_at_the_same_time_are_either_or(tmp_path: Path) -> None:
    """The reader finds all of it or nothing, never a part."""
    read, gone = 0, 0
    for step in range(1, 151):
        checkpoint = made(tmp_path, step)
        ready = threading.Barrier(2)

        def delete(checkpoint: Checkpoint = checkpoint, ready: threading.Barrier = ready) -> None:
            ready.wait()
            delete_unclaimed([checkpoint])

        thread = threading.Thread(target=delete)
        thread.start()
        ready.wait()
        try:
            with claimed(checkpoint.path):
                assert faults(checkpoint.path) == []
                read += 1
        except FileNotFoundError:
            gone += 1
        thread.join()
    assert read + gone == 150


def test_what_a_verb_found_valid_stays_until_it_ends(tmp_path: Path) -> None:
    checkpoint = made(tmp_path, 1)
    with claims_kept():
        assert newest(tmp_path, "unet") == (checkpoint, [])
        assert delete_unclaimed([checkpoint]) == []
        assert faults(checkpoint.path) == []
    newest(tmp_path, "unet")
    assert delete_unclaimed([checkpoint]) == []
    assert complete(tmp_path) == [], "outside of it, reading claims nothing"


def test_a_checkpoint_that_vanishes_while_it_is_verified_gives_way_to_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not told as damaged."""
    going, honest = made(tmp_path, 1), faults

    def vanishing(path: Path, **named: bool) -> list[str]:
        if path == going.path and path.exists():
            delete_checkpoint(path)
            made(tmp_path, 2)
        return honest(path, **named)

    monkeypatch.setattr(checkpoints_module, "faults", vanishing)
    found, skipped = newest(tmp_path, "unet")
    assert found is not None
    assert (found.step, skipped) == (2, [])
