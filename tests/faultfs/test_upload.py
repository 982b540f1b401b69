"""Contents of the fake cloud after the machine is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faultfs.mount import Mount
from tests.faultfs.upload import AtOnce, Late, Slow, Uploads


def tree(folder: Path) -> dict[str, bytes]:
    """Each file below a folder, and each folder, which ends with a slash."""
    return {
        f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}": path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def drive_id(path: Path) -> str:
    return os.getxattr(path, "user.drive.id").decode()


def change(folder: Path) -> None:
    """Some of everything."""
    (folder / "a").mkdir()
    for number in range(6):
        (folder / "a" / str(number)).write_bytes(bytes([number]) * 3000 * number)
    (folder / "a").rename(folder / "b")
    (folder / "b" / "2").unlink()
    os.replace(folder / "b" / "3", folder / "b" / "4")
    os.truncate(folder / "b" / "5", 7)


def wait(folder: Path, operations: int) -> None:
    for _ in range(operations):
        os.path.exists(folder / "x")


def test_at_once_the_cloud_is_what_the_disk_is(tmp_path: Path) -> None:
    with Mount(tmp_path, AtOnce()) as drive:
        change(drive.path)
        assert drive.waiting() == []
        assert tree(drive.cloud) == tree(drive.disk)
        assert set(tree(drive.cloud)) == {"b/", "b/0", "b/1", "b/4", "b/5"}


@pytest.mark.parametrize("uploads", [AtOnce(), Late(1), Slow(1, rate=1e6)], ids=["at once", "late", "slow"])
def test_what_is_open_is_not_uploaded_until_it_is_closed(uploads: Uploads, tmp_path: Path) -> None:
    with Mount(tmp_path, uploads) as drive:
        with (drive.path / "file").open("wb") as stream:
            stream.write(b"half")
            stream.flush()
            os.fsync(stream)
            wait(drive.path, 1000)
            drive.settle()
            assert tree(drive.cloud) == {}
            assert drive_id(drive.path / "file").startswith("local")
        wait(drive.path, 1000)
        assert tree(drive.cloud) == {"file": b"half"}
        assert not drive_id(drive.path / "file").startswith("local")
        with (drive.path / "file").open("wb") as stream:
            wait(drive.path, 1000)
            assert tree(drive.cloud) == {"file": b"half"}, "the old one, until the new one is closed"


def test_late_it_comes_in_another_order_and_whole_in_the_end(tmp_path: Path) -> None:
    """Small files are there before large ones that were written earlier; another seed gives another order."""
    orders = []
    for seed in (1, 2, 1):
        folder = tmp_path / str(len(orders))
        folder.mkdir()
        with Mount(folder, Late(seed, delay=400)) as drive:
            for number in range(8):
                (drive.path / f"large{number}").write_bytes(bytes(50_000))
                (drive.path / f"small{number}").write_bytes(bytes(50))
            arrived: list[str] = []
            until = 0
            while len(arrived) < 16:
                arrived += sorted(set(os.listdir(drive.cloud)) - set(arrived))
                wait(drive.path, 5)
                until += 1
                assert until < 200
            assert tree(drive.cloud) == tree(drive.disk)
            orders.append(arrived)
    assert orders[0] == orders[2] != orders[1]
    for order in orders:
        assert order != sorted(order, key=lambda name: name[-1]), "not in the order of writing"
        places = {kind: [place for place, name in enumerate(order) if kind in name] for kind in ("large", "small")}
        assert sum(places["small"]) < sum(places["large"])


def test_a_slow_line_falls_behind_and_takes_small_ones_first(tmp_path: Path) -> None:
    with Mount(tmp_path, Slow(1, rate=100)) as drive:
        (drive.path / "large").write_bytes(bytes(200_000))
        for number in range(5):
            (drive.path / str(number)).write_bytes(b"small")
        wait(drive.path, 100)
        assert set(tree(drive.cloud)) == {"0", "1", "2", "3", "4"}
        assert drive.waiting() == ["/large"]
        wait(drive.path, 2200)
        assert tree(drive.cloud) == tree(drive.disk)


def test_a_rename_comes_apart(tmp_path: Path) -> None:
    """In the cloud it is a removal and a making of each file: each of them can be there without the other."""
    seen = set()
    with Mount(tmp_path, Late(3, delay=300)) as drive:
        for turn in range(6):
            name = f"a{turn}"
            (drive.path / name).mkdir()
            (drive.path / name / "file").write_bytes(bytes(10_000))
            drive.settle()
            (drive.path / name).rename(drive.path / f"b{turn}")
            for _ in range(40):
                seen.add(tuple((drive.cloud / f"{new}{turn}" / "file").exists() for new in "ab"))
                wait(drive.path, 10)
            assert tree(drive.cloud / f"b{turn}") == {"file": bytes(10_000)}
            assert not (drive.cloud / name).exists()
    assert seen >= {(True, False), (False, False), (False, True)}


def test_what_was_not_uploaded_is_lost_with_the_machine(tmp_path: Path) -> None:
    with Mount(tmp_path, Late(1, delay=1e6)) as drive:
        (drive.path / "kept").write_bytes(b"uploaded")
        drive.settle()
        (drive.path / "kept").write_bytes(b"changed")
        (drive.path / "gone").write_bytes(b"late")
        other = drive.lose()
        assert not drive.disk.exists()
        assert not os.path.ismount(drive.path)
        assert tree(other.path) == {"kept": b"uploaded"}
        (other.path / "more").write_bytes(b"of another machine")
        other.settle()
        third = other.lose()
        assert set(tree(third.path)) == {"kept", "more"}
    assert not any(os.path.ismount(one.path) for one in (drive, other, third))


def test_the_machine_is_lost_at_an_operation(tmp_path: Path) -> None:
    with Mount(tmp_path, AtOnce()) as drive:
        drive.reset()
        (drive.path / "one").touch()
        each = sum(drive.counts().values())
        drive.lose_at(each + 1)
        (drive.path / "two").touch()
        with pytest.raises(OSError, match="not connected"):
            (drive.path / "three").touch()
        drive.heal()
        with pytest.raises(OSError, match="not connected"):
            os.listdir(drive.path)
        assert sorted(os.listdir(drive.lose().path)) == ["one", "two"]


def test_a_full_account_takes_everything_and_uploads_nothing(tmp_path: Path) -> None:
    """No write fails, and only the attribute tells; folders and empty files cost nothing."""
    with Mount(tmp_path, AtOnce()) as drive:
        (drive.path / "before").write_bytes(b"uploaded")
        drive.full()
        (drive.path / "folder").mkdir()
        (drive.path / "folder" / "file").write_bytes(b"content")
        (drive.path / "folder" / "empty").touch()
        (drive.path / "before").write_bytes(b"changed")
        drive.settle()
        assert (drive.path / "folder" / "file").read_bytes() == b"content"
        ids = {name: drive_id(drive.path / name).startswith("local") for name in ("before", "folder", "folder/file")}
        assert ids == {"before": True, "folder": False, "folder/file": True}
        assert sorted(drive.waiting()) == ["/before", "/folder/file"]
        assert tree(drive.cloud) == {"before": b"uploaded", "folder/": b"", "folder/empty": b""}
        assert tree(drive.lose().path) == tree(drive.cloud)


def test_what_is_made_twice_becomes_a_twin(tmp_path: Path) -> None:
    """The mount forgot it, so nothing refused; the one made later gets the number, here and in the cloud."""
    with Mount(tmp_path, AtOnce()) as drive:
        (drive.path / "unet-000100").mkdir()
        for name in ("unet-000100/weights", "state.json"):
            (drive.path / name).write_bytes(b"first")
        for name in ("unet-000100", "state.json"):
            drive.forget(drive.path / name)
        assert os.listdir(drive.path) == []
        (drive.path / "unet-000100").mkdir()
        for name in ("unet-000100/weights", "state.json"):
            (drive.path / name).write_bytes(b"second")
        expected = {
            "state.json": b"first",
            "state (1).json": b"second",
            "unet-000100/": b"",
            "unet-000100/weights": b"first",
            "unet-000100 (1)/": b"",
            "unet-000100 (1)/weights": b"second",
        }
        assert tree(drive.cloud) == expected
        assert set(os.listdir(drive.path)) == {"unet-000100", "state.json"}
        drive.hear()
        assert tree(drive.path) == expected
        (drive.path / "state.json").write_bytes(b"third")
        assert tree(drive.lose().path) == {**expected, "state.json": b"third"}
