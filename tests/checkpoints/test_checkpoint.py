"""Atomic saves of checkpoints, verified when written and read."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdb.checkpoints.checkpoint import (
    STATE,
    Checkpoint,
    clear_unfinished,
    complete,
    newest,
    save,
)
from fastdb.checkpoints.retention import KEEP, Retention, prune
from fastdb.errors import CheckpointError, StorageError
from fastdb.reporting import Note
from fastdb.storage.manifest import faults
from fastdb.storage.set_aside import move_aside


def put(folder: Path, step: int, stage: str = "unet", content: bytes | None = None) -> Checkpoint:
    data = content or f"{step:08d}".encode() * 100
    checkpoint, said = save(folder, stage, step, {"step": step}, lambda hidden: fill(hidden, data))
    assert said == []
    return checkpoint


def fill(hidden: Path, data: bytes) -> dict[str, str]:
    name = f"{hidden.name.removeprefix('.unfinished-').rpartition('-')[0]}.safetensors"
    (hidden / name).write_bytes(data)
    return {name: hashlib.sha256(data).hexdigest()}


def all_aside(folder: Path) -> Path | None:
    return move_aside(folder, [checkpoint.path for checkpoint in complete(folder)])


def steps(folder: Path, stage: str = "unet") -> list[int]:
    return [checkpoint.step for checkpoint in complete(folder, stage)]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_checkpoint_is_saved_and_found(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert newest(folder, "unet") == (None, [])
    checkpoint = put(folder, 7)
    assert checkpoint.path == folder / "unet-000007"
    assert faults(checkpoint.path) == []
    assert checkpoint.state == {"step": 7}
    put(folder, 1_234_567)
    put(folder, 90, "text_encoder")
    assert steps(folder) == [7, 1_234_567]
    found, said = newest(folder, "unet")
    assert found is not None
    assert (found.step, said) == (1_234_567, [])
    assert [c.stage for c in complete(folder)] == ["text_encoder", "unet", "unet"]


def test_other_things_in_the_folder_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("unet-12", "unet", "set-aside-1", ".unfinished-unet-000009", "unet-000003 (1)", "README"):
        (tmp_path / name).mkdir()
    (tmp_path / "unet-000004").touch()
    assert complete(tmp_path) == []


@pytest.mark.parametrize("what", ["unet.safetensors", STATE, "MANIFEST.json"])
def test_a_checkpoint_with_a_flipped_bit_is_skipped(what: str, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        put(tmp_path, step)
    flip(tmp_path / "unet-000003" / what)
    found, said = newest(tmp_path, "unet")
    assert found is not None
    assert found.step == 2
    [line] = said
    assert (line.kind, line.subject) == ("checkpoint skipped", "unet-000003")
    assert line.reason
    (tmp_path / "unet-000002" / what).unlink()
    found, said = newest(tmp_path, "unet")
    assert found is not None
    assert found.step == 1
    assert [note.subject for note in said] == ["unet-000003", "unet-000002"]


def test_a_state_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    checkpoint = put(tmp_path, 1)
    (checkpoint.path / STATE).write_text("{")
    with pytest.raises(CheckpointError, match=r"unet-000001: its state.json cannot be read"):
        _ = checkpoint.state


def test_old_ones_go_only_under_two_that_verify(tmp_path: Path) -> None:
    assert KEEP == 2
    for step in (1, 2, 3, 4):
        put(tmp_path, step)
    put(tmp_path, 1, "text_encoder")
    flip(tmp_path / "unet-000004" / "unet.safetensors")
    assert prune(tmp_path, "unet") == []
    assert steps(tmp_path) == [2, 3, 4], "4 is damaged and counts for nothing; it is kept for its owner to look at"
    put(tmp_path, 5)
    prune(tmp_path, "unet")
    assert steps(tmp_path) == [3, 4, 5]
    flip(tmp_path / "unet-000003" / "unet.safetensors")
    put(tmp_path, 6)
    put(tmp_path, 7)
    prune(tmp_path, "unet")
    assert steps(tmp_path) == [3, 4, 6, 7]
    assert steps(tmp_path, "text_encoder") == [1]


def test_those_at_multiples_stay(tmp_path: Path) -> None:
    for step in range(1, 11):
        put(tmp_path, step)
        assert prune(tmp_path, "unet", Retention(every=4)) == []
    assert steps(tmp_path) == [4, 8, 9, 10]
    flip(tmp_path / "unet-000004" / "unet.safetensors")
    put(tmp_path, 11)
    prune(tmp_path, "unet")
    assert steps(tmp_path) == [4, 10, 11], "4 is damaged; 8 goes like any other when nothing keeps it"


def test_more_of_the_last_stay_and_the_one_found_best(tmp_path: Path) -> None:
    for stage in ("text_encoder", "unet"):
        for step in range(1, 9):
            put(tmp_path, step, stage)
            assert prune(tmp_path, stage, Retention(last=3, best=2)) == []
    assert steps(tmp_path) == [2, 6, 7, 8]
    assert steps(tmp_path, "text_encoder") == [6, 7, 8], "the best is one of the UNet's stage"
    flip(tmp_path / "unet-000007" / "unet.safetensors")
    put(tmp_path, 9)
    prune(tmp_path, "unet", Retention(last=3))
    assert steps(tmp_path) == [6, 7, 8, 9], "7 counts for nothing; 2 goes when another was found better"


def test_the_same_step_again_sets_the_first_aside(tmp_path: Path) -> None:
    put(tmp_path, 5, content=b"first")
    flip(tmp_path / "unet-000005" / "unet.safetensors")
    damaged = (tmp_path / "unet-000005" / "unet.safetensors").read_bytes()
    checkpoint, said = save(tmp_path, "unet", 5, {}, lambda hidden: fill(hidden, b"again"))
    reason = "a new checkpoint of the same step replaced it"
    assert said == [Note("checkpoint set aside", "set-aside-1/unet-000005", reason)]
    assert (checkpoint.path / "unet.safetensors").read_bytes() == b"again"
    assert (tmp_path / "set-aside-1" / "unet-000005" / "unet.safetensors").read_bytes() == damaged
    assert steps(tmp_path) == [5]


def test_all_are_set_aside_and_none_is_lost(tmp_path: Path) -> None:
    assert all_aside(tmp_path / "none") is None
    put(tmp_path, 1, "text_encoder")
    put(tmp_path, 2)
    assert all_aside(tmp_path) == tmp_path / "set-aside-1"
    put(tmp_path, 2)
    assert all_aside(tmp_path) == tmp_path / "set-aside-2"
    assert complete(tmp_path) == []
    for aside, names in ((1, ["text_encoder-000001", "unet-000002"]), (2, ["unet-000002"])):
        kept = sorted((tmp_path / f"set-aside-{aside}").iterdir())
        assert [path.name for path in kept] == names
        assert all(faults(path) == [] for path in kept)


def test_setting_aside_cut_off_leaves_an_earlier_state_and_no_mixed_one(
    cut_everywhere: Callable[[str], list[Path]],
) -> None:
    """UNet checkpoints without the text encoder they were trained on must never be gone on from."""
    folders = cut_everywhere("""
from fastdb.checkpoints.checkpoint import complete, save
from fastdb.storage.set_aside import move_aside
def prepare(folder):
    for stage, step in (("text_encoder", 1), ("text_encoder", 2), ("unet", 1), ("unet", 2)):
        save(folder, stage, step, {}, lambda hidden: {})
def work(folder):
    move_aside(folder, [checkpoint.path for checkpoint in complete(folder)])
""")
    order = ["text_encoder-000001", "text_encoder-000002", "unet-000001", "unet-000002"]
    seen = set()
    for folder in folders:
        left = [checkpoint.path.name for checkpoint in complete(folder)]
        assert left == order[: len(left)]
        seen.add(len(left))
    assert seen == {0, 1, 2, 3, 4}


def test_a_fault_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    put(tmp_path, 1)

    def write(hidden: Path) -> dict[str, str]:
        fill(hidden, b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save(tmp_path, "unet", 2, {}, write)
    assert os.listdir(tmp_path) == ["unet-000001"]


def test_cut_at_each_point_of_saving_and_pruning_the_newest_is_whole(
    cut_everywhere: Callable[[str], list[Path]],
) -> None:
    folders = cut_everywhere("""
from fastdb.checkpoints.checkpoint import save
from fastdb.checkpoints.retention import prune
def write(step):
    def fill(hidden):
        for name in ("unet.safetensors", "optimizer"):
            with (hidden / name).open("wb") as stream:
                for _ in range(3):
                    stream.write((b"%08d" % step) * 1000)
                    stream.flush()
                    sys.audit("cut")
        return {}
    return fill
def prepare(folder):
    for step in (1, 2, 3):
        save(folder, "unet", step, {"step": step}, write(step))
def work(folder):
    save(folder, "unet", 4, {"step": 4}, write(4))
    prune(folder, "unet")
""")
    assert len(folders) > 40
    seen = []
    for folder in folders:
        found, said = newest(folder, "unet")
        assert found is not None
        assert said == []
        assert (found.path / "unet.safetensors").read_bytes() == b"%08d" % found.step * 3000
        good = [checkpoint for checkpoint in complete(folder, "unet") if not faults(checkpoint.path)]
        assert len(good) >= 2
        seen.append(found.step)
        clear_unfinished(folder)
        assert not list(folder.glob(".*"))
    assert sorted(seen) == seen
    assert set(seen) == {3, 4}
    assert sorted(os.listdir(folders[-1])) == ["unet-000003", "unet-000004"]


SAVER = """
import sys
from pathlib import Path
from fastdb.checkpoints.checkpoint import clear_unfinished, newest, save
from fastdb.checkpoints.retention import prune
from fastdb.storage.atomic_write import flush
folder = Path(sys.argv[1])
clear_unfinished(folder)
found, said = newest(folder, "unet")
step = found.step if found else 0
def write(hidden):
    for name in ("unet.safetensors", "optimizer.safetensors"):
        with (hidden / name).open("wb") as stream:
            for _ in range(8):
                stream.write((b"%08d" % step) * 5_000)
                stream.flush()
                flush(hidden / name)
    return {}
while True:
    step += 1
    save(folder, "unet", step, {"step": step}, write)
    prune(folder, "unet")
    print(step, flush=True)
"""


def test_killed_at_20_random_moments_nothing_said_is_lost(tmp_path: Path) -> None:
    folder, chance, said, kills, midway = tmp_path / "checkpoints", random.Random(3), 0, 0, 0
    while kills < 20 or midway < 5:
        assert kills < 200, f"only {midway} of {kills} kills hit a save"
        kills += 1
        with subprocess.Popen([sys.executable, "-c", SAVER, str(folder)], stdout=subprocess.PIPE, text=True) as saver:
            assert saver.stdout is not None
            first = saver.stdout.readline()
            assert int(first) > said, "it went on from what was there"
            time.sleep(chance.uniform(0, 0.04))
            saver.send_signal(signal.SIGKILL)
            said = max(int(line) for line in [first, *saver.stdout.read().splitlines()])
        found, skipped = newest(folder, "unet")
        assert found is not None
        assert skipped == []
        assert found.step >= said
        assert (found.path / "unet.safetensors").read_bytes() == b"%08d" % found.step * 40_000
        assert found.state == {"step": found.step}
        midway += any(folder.glob(".unfinished-*"))
        said = found.step
    assert len(complete(folder)) <= KEEP + 1


def test_a_full_disk_leaves_the_older_ones_and_no_rest(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("1m") / "checkpoints"
    for step in (1, 2):
        put(folder, step, content=bytes(300_000))
    for size in (500_000, 455_000):  # while the weights are written; while what comes after them is
        with pytest.raises(StorageError, match="the disk is full; existing files are unchanged"):
            put(folder, 3, content=bytes(size))
        assert sorted(os.listdir(folder)) == ["unet-000001", "unet-000002"]
        assert [faults(checkpoint.path) for checkpoint in complete(folder)] == [[], []]
    (folder / "unet-000001" / "unet.safetensors").unlink()
    assert put(folder, 3, content=bytes(300_000)).step == 3


def test_what_cannot_be_removed_is_said_and_the_new_one_stands(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("1m")
    for step in (1, 2, 3):
        put(folder, step)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    assert prune(folder, "unet") == [Note("checkpoint not removed", "unet-000001", "Read-only file system")]
    found, _ = newest(folder, "unet")
    assert found is not None
    assert found.step == 3


def test_the_rest_of_a_dead_trainer_on_a_read_only_disk_is_said(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("1m")
    (folder / ".unfinished-unet-000004").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(StorageError, match="the disk is read-only"):
        clear_unfinished(folder)


def test_pruning_cut_off_leaves_nothing_half_removed_for_good(cut_everywhere: Callable[[str], list[Path]]) -> None:
    """A half removed checkpoint would count as damaged, and what is damaged is kept: gigabytes, for ever."""
    folders = cut_everywhere("""
from fastdb.checkpoints.checkpoint import save
from fastdb.checkpoints.retention import prune
def write(hidden):
    for name in ("unet.safetensors", "a", "b", "c", "d"):
        (hidden / name).write_bytes(b"x")
    return {}
def prepare(folder):
    for step in (1, 2, 3):
        save(folder, "unet", step, {}, write)
def work(folder):
    prune(folder, "unet")
""")
    cut_off = 0
    for folder in folders:
        for checkpoint in complete(folder):
            assert faults(checkpoint.path) == []
        cut_off += any(folder.glob(".unfinished-*"))
        clear_unfinished(folder)
        assert prune(folder, "unet") == []
        assert sorted(os.listdir(folder)) == ["unet-000002", "unet-000003"]
    assert cut_off >= 5


def test_what_was_not_written_as_meant_is_refused(tmp_path: Path) -> None:
    """A disk that takes bytes and keeps others: the hash of what was meant says so before the folder has its name."""
    put(tmp_path, 1)

    def write(hidden: Path) -> dict[str, str]:
        meant = fill(hidden, b"good")
        (hidden / "unet.safetensors").write_bytes(b"evil")
        return meant

    with pytest.raises(StorageError, match="the file does not match its checksum after writing"):
        save(tmp_path, "unet", 2, {}, write)
    assert os.listdir(tmp_path) == ["unet-000001"]
