"""Saving checkpoints on a drive that fails at any operation or loses the machine."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pytest

from fastdb.checkpoints.checkpoint import Checkpoint, clear_unfinished, complete, newest, save
from fastdb.checkpoints.retention import prune
from fastdb.errors import FastDBError, StorageError
from fastdb.reporting import Note
from tests.faultfs.mount import Mount
from tests.faultfs.upload import AtOnce, Late, Slow, Uploads

SIZE = 20_000


def content(step: int) -> bytes:
    return b"%08d" % step * (SIZE // 8)


def put(folder: Path, step: int) -> Checkpoint:
    def write(hidden: Path) -> dict[str, str]:
        for name in ("unet.safetensors", "optimizer"):
            (hidden / name).write_bytes(content(step))
        return {"unet.safetensors": hashlib.sha256(content(step)).hexdigest()}

    return save(folder, "unet", step, {"step": step}, write)[0]


def whole(checkpoint: Checkpoint) -> bool:
    """Not by its manifest: by what was meant."""
    data = [(checkpoint.path / name).read_bytes() for name in ("unet.safetensors", "optimizer")]
    return data == [content(checkpoint.step)] * 2 and checkpoint.state == {"step": checkpoint.step}


def lay(drive: Mount, good: Path) -> None:
    """Begin anew, with two checkpoints on the drive."""
    for path in drive.disk.iterdir():
        shutil.rmtree(path)
    shutil.copytree(good, drive.disk, dirs_exist_ok=True)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    for step in (1, 2):
        put(tmp_path / "good", step)
    return tmp_path / "good"


ERRORS = [(error, persistent) for error in ("EIO", "ENOSPC", "ENOTCONN") for persistent in (False, True)]
SHORT = [("SHORT", False), ("SHORT", True)]


def attempt(drive: Mount, nth: int, error: str, persistent: bool) -> str:
    """Save and prune with an error at the `nth` operation, heal, and look; how it ended, or nothing where there are
    not so many operations.
    """
    drive.reset()
    drive.fail("write" if error == "SHORT" else "any", nth, error, persistent=persistent)
    saved, case = False, (nth, error, persistent)
    try:
        saved = bool(put(drive.path, 3))
    except StorageError as refused:
        line = str(refused)
        assert "\n" not in line, case
        assert "disk is full" in line or "does not answer" in line, case
    notes = prune(drive.path, "unet")
    assert {note.kind for note in notes} <= {"checkpoint not removed", "older checkpoints unread"}, case
    if not any(struck for _, _, struck in drive.log()):
        return ""
    drive.heal()

    found, skipped = newest(drive.path, "unet")
    assert found is not None, case
    assert skipped == [], case
    # What only failed after it had its name is there too, though it was not said to be saved.
    assert found.step in ((3,) if saved else (2, 3)), case
    assert all(whole(checkpoint) for checkpoint in complete(drive.path)), case
    if not saved:
        clear_unfinished(drive.path)
        put(drive.path, 4)
        assert prune(drive.path, "unet") == [], case
        assert [checkpoint.step for checkpoint in complete(drive.path)] == [found.step, 4], case
        assert not list(drive.path.glob(".*")), case
    return "saved" if saved else "refused"


def at_each(folder: Path, good: Path, errors: Sequence[tuple[str, bool]]) -> Counter[str]:
    """An error at each operation, the given ones in turn; how often it ended how."""
    ended: Counter[str] = Counter()
    with Mount(folder) as drive:
        for nth in count(1):
            lay(drive, good)
            result = attempt(drive, nth, *errors[nth % len(errors)])
            if not result:
                counts = drive.counts()
                break
            ended[result] += 1
    kinds = {"write"} if errors[0][0] == "SHORT" else set(counts)
    assert sum(ended.values()) == sum(counts[kind] for kind in kinds), "each operation was made to fail"
    return ended


def test_an_error_at_any_operation_leaves_a_good_checkpoint(good: Path, tmp_path: Path) -> None:
    ended = at_each(tmp_path, good, ERRORS)
    assert set(ended) == {"saved", "refused"}
    assert sum(ended.values()) > 200


@pytest.mark.full
@pytest.mark.parametrize(("error", "persistent"), ERRORS, ids=str)
def test_every_error_at_every_operation_leaves_a_good_checkpoint(
    error: str, persistent: bool, good: Path, tmp_path: Path
) -> None:
    ended = at_each(tmp_path, good, [(error, persistent)])
    assert set(ended) == {"saved", "refused"}
    assert sum(ended.values()) > 200


@pytest.mark.parametrize(("error", "persistent"), SHORT, ids=str)
def test_short_writes_are_gone_on_with(error: str, persistent: bool, good: Path, tmp_path: Path) -> None:
    assert at_each(tmp_path, good, [(error, persistent)]) == {"saved": 4}


def test_a_drive_that_does_not_answer_is_no_empty_one(good: Path, tmp_path: Path) -> None:
    with Mount(tmp_path) as drive:
        lay(drive, good)
        drive.disconnect()
        for look in (lambda: complete(drive.path), lambda: newest(drive.path, "unet")):
            with pytest.raises(StorageError, match="the disk does not answer"):
                look()
        assert prune(drive.path, "unet") == [
            Note(
                "older checkpoints unread",
                reason="the disk does not answer (Transport endpoint is not connected)",
            )
        ]
        drive.heal()
        assert [checkpoint.step for checkpoint in complete(drive.path)] == [1, 2]
        assert complete(drive.path / "none") == complete(drive.path / "unet-000001" / "unet.safetensors") == []


SAVES = 6


def lose_and_resume(folder: Path, uploads: Uploads, chance: random.Random, operations: int) -> tuple[int, int]:
    """Lose the machine at a random operation of several saves; the last that was said to be saved, and what is found.

    What is found is 0 where no checkpoint verifies and -1 where one does that is not what was saved.
    """
    folder.mkdir()
    with Mount(folder, uploads) as drive:
        for step in (1, 2):
            put(drive.path, step)
        drive.settle()
        drive.lose_at(chance.randint(1, operations))
        said = 2
        try:
            for step in range(3, 3 + SAVES):
                put(drive.path, step)
                said = step
                prune(drive.path, "unet")
        except FastDBError:
            pass
        found, _ = newest(drive.lose().path, "unet")
        if found is None:
            return said, 0
        return said, found.step if whole(found) else -1


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many there are in that many saves."""
    with Mount(tmp_path_factory.mktemp("count")) as drive:
        for step in range(1, 3):
            put(drive.path, step)
        drive.reset()
        for step in range(3, 3 + SAVES):
            put(drive.path, step)
            prune(drive.path, "unet")
        return sum(drive.counts().values())


TURNS = 8
"""Of a hundred losses; the others are under the marker `full`."""

turns = pytest.mark.parametrize(
    "turns", [range(TURNS), pytest.param(range(TURNS, 100), marks=pytest.mark.full)], ids=len
)


@turns
def test_with_uploads_at_once_a_lost_machine_costs_nothing_that_was_saved(
    turns: range, operations: int, tmp_path: Path
) -> None:
    midway = 0
    for turn in turns:
        said, found = lose_and_resume(tmp_path / str(turn), AtOnce(), random.Random(turn), operations)
        assert found in (said, said + 1), turn
        midway += said < 2 + SAVES
    assert midway > len(turns) / 2


@turns
def test_with_uploads_as_late_as_one_save_takes_a_lost_machine_costs_one_save(
    turns: range, operations: int, tmp_path: Path
) -> None:
    """Out of order, but no later: of two checkpoints the older one is in the cloud."""
    behind = 0
    for turn in turns:
        uploads = Late(turn, delay=operations / SAVES)
        said, found = lose_and_resume(tmp_path / str(turn), uploads, random.Random(turn), operations)
        assert found in (said - 1, said, said + 1), turn
        behind += found < said
    assert behind > 0, "nothing came late"


@turns
@pytest.mark.parametrize(
    "uploads",
    [lambda turn: Late(turn, delay=1000), lambda turn: Slow(turn, rate=100), lambda turn: Slow(turn, rate=50)],
    ids=["later than three saves", "slower than the saves", "much slower than the saves"],
)
def test_however_late_the_uploads_a_lost_machine_leaves_a_good_checkpoint(
    uploads: Callable[[int], Uploads], turns: range, operations: int, tmp_path: Path
) -> None:
    """What is in the cloud stays until newer ones are there: not the newest is found, but always a right one."""
    behind = 0
    for turn in turns:
        said, found = lose_and_resume(tmp_path / str(turn), uploads(turn), random.Random(turn), operations)
        assert found > 0, turn
        behind += said - found
    assert behind > 0, "nothing came late"


def test_checkpoints_that_wait_for_their_upload_are_told_and_do_not_count(tmp_path: Path) -> None:
    with Mount(tmp_path, Slow(0, rate=0)) as drive:
        for step in range(1, 5):
            put(drive.path, step)
            said = prune(drive.path, "unet")
        assert [checkpoint.step for checkpoint in complete(drive.path)] == [1, 2, 3, 4]
        assert said == [Note("uploads pending", "4")]
    (tmp_path / "quick").mkdir()
    with Mount(tmp_path / "quick") as drive:
        for step in range(1, 5):
            put(drive.path, step)
            assert prune(drive.path, "unet") == []
        assert [checkpoint.step for checkpoint in complete(drive.path)] == [3, 4]


def test_a_drive_that_goes_while_checkpoints_are_read_damages_none(good: Path, tmp_path: Path) -> None:
    """At each operation of the search: an older checkpoint, or none, would mean to train steps again."""
    with Mount(tmp_path) as drive:
        lay(drive, good)
        drive.reset()
        assert newest(drive.path, "unet")[0] == Checkpoint(drive.path / "unet-000002", "unet", 2)
        operations, refused = sum(drive.counts().values()), 0
        for nth in range(1, operations + 1):
            drive.reset()
            drive.fail("any", nth, "ENOTCONN", persistent=True)
            try:
                found, _ = newest(drive.path, "unet")
            except StorageError:
                refused += 1
            else:
                assert found is not None, nth
                assert found.step == 2, nth
            drive.heal()
        assert refused > operations / 2
