"""Training, export and inference from compressed checkpoints equal those from raw ones."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file

from fastdb.checkpoints import compressed_checkpoint
from fastdb.checkpoints.checkpoint import Checkpoint, complete
from fastdb.checkpoints.checkpoint import save as save_checkpoint
from fastdb.checkpoints.compressed_checkpoint import compress, open_packed, raw_file, raw_sha256
from fastdb.checkpoints.compressed_file import Packed
from fastdb.checkpoints.export_parts import export_parts
from fastdb.checkpoints.progress import Standing, standing
from fastdb.commands import results
from fastdb.errors import CheckpointError, FastDBError, ModelError, StorageError, TrainingError
from fastdb.evaluation.candidates import checkpoints_of
from fastdb.inference.open_model import open_source
from fastdb.inference.request import Request
from fastdb.models.diffusers_folder import open_base_model, weight_file
from fastdb.models.resolve import ensure_base
from fastdb.sessions.session import Session
from fastdb.storage.delete import bytes_of
from fastdb.storage.manifest import faults, sha256, write_manifest
from tests.other_models import another
from tests.training.conftest import as_saved, result
from tests.training.test_trainer import Life, at

Made = Callable[..., Session]

KINDS: dict[str, dict[str, Any]] = {
    "adamw, average, two stages": {"optimizer__name": "adamw", "unet__ema_decay": 0.5},
    "adamw8bit, joint": {"optimizer__name": "adamw8bit", "text_encoder__mode": "joint", "batch_size": 2},
}
SHORT: dict[str, Any] = {"text_encoder__steps": 2, "unet__steps": 5, "prior__class_images": 0}


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=pytest.mark.full if "joint" in kind else ()) for kind in KINDS],
)
def stopped(request: pytest.FixtureRequest, make_session: Made) -> Session:
    """A session stopped in the UNet's stage, its checkpoints raw; tests only copy it."""
    if "8bit" in request.param:
        pytest.importorskip("bitsandbytes")
    session = make_session("cup", **SHORT, **KINDS[request.param])
    assert Life(session, until=at("unet", 3)).run() == "stopped"
    return Session.open(session.path)


@pytest.fixture(scope="module")
def averaged(make_session: Made) -> Session:
    """A session trained to its end, with a running average, of which two UNets are published; tests only copy it."""
    session = make_session("cup", **SHORT, **KINDS["adamw, average, two stages"], checkpoints__keep_every=4)
    assert Life(session).run() == "finished"
    return Session.open(session.path)


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, in which nothing was unpacked yet."""
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    compressed_checkpoint._requested.clear()
    return tmp_path / "cache" / "unpacked"


def twins(session: Session, folder: Path, mini: Path) -> tuple[Session, Session]:
    """Two copies of a session, the second with its checkpoints packed and no raw one left."""
    raw = as_saved(session, folder / "raw")
    packed = Session.open(shutil.copytree(raw.path, folder / "packed" / session.name))
    shutil.rmtree(packed.checkpoints)
    for one in complete(raw.checkpoints):
        pack(one, packed.checkpoints, mini)
    assert not list(packed.checkpoints.rglob("*.safetensors"))
    return raw, packed


def pack(raw: Checkpoint, folder: Path, mini: Path) -> Checkpoint:
    """The packed twin of a raw checkpoint."""
    assert faults(raw.path) == []
    state = raw.state
    made, said = save_checkpoint(folder, raw.stage, raw.step, state, lambda hidden: compress(raw, hidden, mini))
    assert (said, faults(made.path), made.state) == ([], [], state)
    return made


@pytest.fixture(scope="module")
def made(averaged: Session, tmp_path_factory: pytest.TempPathFactory, mini: Path) -> Path:
    """The folder with that session's twins; tests only copy it."""
    folder = tmp_path_factory.mktemp("twins")
    twins(averaged, folder, mini)
    return folder


@pytest.fixture
def both(made: Path, tmp_path: Path, caches: Path) -> tuple[Session, Session]:
    """The trained session with raw and with packed checkpoints."""
    shutil.copytree(made, tmp_path / "twins")
    return Session.open(tmp_path / "twins" / "raw" / "cup"), Session.open(tmp_path / "twins" / "packed" / "cup")


@pytest.fixture
def weights(both: tuple[Session, Session]) -> Path:
    """The packed weights of its UNet."""
    return standing(both[1]).training_weights["unet"]


@pytest.fixture
def plain(both: tuple[Session, Session]) -> bytes:
    """The raw bytes of the same."""
    return standing(both[0]).training_weights["unet"].read_bytes()


# What reads a checkpoint.


def test_training_goes_on_the_same(stopped: Session, tmp_path: Path, mini: Path, caches: Path) -> None:
    raw, packed = twins(stopped, tmp_path, mini)
    stands = standing(packed)
    assert {path.suffix for path in stands.training_weights.values()} == {".packed"}
    assert stands.done("unet") == standing(raw).done("unet")
    assert Life(packed).run() == Life(raw).run() == "finished"
    assert result(packed) == result(raw)
    assert len([name for name in result(raw) if name.startswith("unet-000005/")]) == 3


def test_each_file_comes_back_to_the_byte(stopped: Session, tmp_path: Path, mini: Path, caches: Path) -> None:
    raw, packed = twins(stopped, tmp_path, mini)
    count = 0
    for one in complete(packed.checkpoints):
        for path in sorted(one.path.glob("*.packed")):
            before = raw.checkpoints / one.path.name / f"{path.stem}.safetensors"
            assert raw_file(path, mini).read_bytes() == before.read_bytes()
            assert raw_sha256(path) == sha256(before) == raw_sha256(before)
            assert path.stat().st_size < before.stat().st_size
            count += 1
    assert count >= 3
    assert bytes_of(packed.checkpoints) < 0.95 * bytes_of(raw.checkpoints)


def test_an_average_is_a_difference_to_the_weights_beside_it(both: tuple[Session, Session], mini: Path) -> None:
    last = standing(both[1]).checkpoints["unet"].path
    average, plain = open_packed(last / "unet_ema.packed", mini), last / "unet.packed"
    assert average.base_sha256 == raw_sha256(plain)
    assert Packed.open(plain).base_sha256 == sha256(weight_file(mini, "unet"))


def test_what_is_exported_drawn_and_measured_is_the_same(both: tuple[Session, Session], mini: Path) -> None:
    files, pictures, keys, drawn = [], [], [], []
    for session in both:
        suffixes = {path.suffix for path in standing(session).weights.values()}
        assert suffixes == {".safetensors" if session is both[0] else ".packed"}
        (file,) = results.export(session, formats=["safetensors"])
        files.append(file.read_bytes())
        asked = Request("a photo of sks cup", seed=3, steps=3, width=64, height=64)
        pictures.append(open_source(session, None, None).load().generate(asked)[0].tobytes())
        found, said = checkpoints_of(session, open_base_model(mini), None)
        assert said == []
        keys.append([one.key for one in found])
        drawn.append([one.load().generate(asked)[0].tobytes() for one in found])
    assert files[0] == files[1]
    assert pictures[0] == pictures[1]
    assert len(set(keys[0])) == len(keys[0]) >= 2
    assert keys[0] == keys[1]
    assert drawn[0] == drawn[1]


def test_only_what_the_manifest_names_is_used(both: tuple[Session, Session]) -> None:
    """A file that lies there without having been held against anything, however good its name, is not taken."""
    for session in both:
        last = standing(session).checkpoints["unet"]
        before = Standing({"unet": last}, ()).weights
        for name in ("unet_ema.safetensors", "text_encoder.packed", "text_encoder.safetensors"):
            if not (last.path / name).exists():
                (last.path / name).write_bytes(b"stray")
        assert Standing({"unet": last}, ()).weights == before


# Making one.


def test_bytes_are_told_as_they_go_out(both: tuple[Session, Session], tmp_path: Path, mini: Path) -> None:
    told: list[int] = []
    raw = standing(both[0]).checkpoints["unet"]
    meant = compress(raw, tmp_path, mini, threads=2, pace=told.append)
    assert meant == {name: sha256(tmp_path / name) for name in meant}
    assert set(meant) == {"unet.packed", "unet_ema.packed", "optimizer.packed"}
    assert sum(told) == sum((tmp_path / name).stat().st_size for name in meant)
    assert len(told) > 10
    assert max(told) <= 2 << 20
    again = standing(both[1]).checkpoints["unet"].path
    assert all((again / name).read_bytes() == (tmp_path / name).read_bytes() for name in meant)


def test_a_raw_file_that_has_changed_is_not_packed(both: tuple[Session, Session], tmp_path: Path, mini: Path) -> None:
    raw = standing(both[0]).checkpoints["unet"]
    for name in ("unet.safetensors", "optimizer.safetensors", "unet_ema.safetensors"):
        with flipped(raw.path / name, -5), pytest.raises(CheckpointError, match="has changed since it was written"):
            pack_unchecked(raw, tmp_path / "made", mini)
        assert list((tmp_path / "made").iterdir()) == []


def test_a_file_of_another_writer_is_kept_as_it_is(both: tuple[Session, Session], tmp_path: Path, mini: Path) -> None:
    raw = standing(both[0]).checkpoints["unet"]
    known = load_file(raw.path / "unet.safetensors")
    save_file(known, raw.path / "unet.safetensors", {"format": "pt", "by": "another"})
    write_manifest(raw.path)
    foreign = sha256(raw.path / "unet.safetensors")
    made = pack(raw, tmp_path / "made", mini)
    path = Standing({"unet": made}, ()).training_weights["unet"]
    assert sha256(raw_file(path, mini)) == foreign
    average = Standing({"unet": made}, ()).weights["unet"]
    assert raw_file(average, mini).read_bytes() == (raw.path / "unet_ema.safetensors").read_bytes()


def test_a_full_disk_leaves_nothing(both: tuple[Session, Session], small_disk: Callable[..., Path], mini: Path) -> None:
    raw, disk = standing(both[0]).checkpoints["unet"], small_disk("8m")
    with pytest.raises(StorageError, match="the disk is full"):
        pack_unchecked(raw, disk / "checkpoints", mini)
    assert list((disk / "checkpoints").iterdir()) == []


def pack_unchecked(raw: Checkpoint, folder: Path, mini: Path) -> None:
    save_checkpoint(folder, raw.stage, raw.step, raw.state, lambda hidden: compress(raw, hidden, mini))


# Damage.


@contextlib.contextmanager
def flipped(path: Path, place: int) -> Iterator[None]:
    """Within this one bit of a file is another."""
    data = path.read_bytes()
    changed = bytearray(data)
    changed[place] ^= 0x10
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(data)


def line_of(act: Callable[[], object], kind: type[FastDBError] = FastDBError) -> str:
    """The one line of what goes wrong."""
    with pytest.raises(kind) as caught:
        act()
    assert caught.value.fix
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_flipped_byte_is_noticed(both: tuple[Session, Session], mini: Path, caches: Path) -> None:
    """By the manifest; and by the reader, where the manifest was made anew over the damage."""
    count = 0
    for one in standing(both[1]).checkpoints.values():
        for path in sorted(one.path.glob("*.packed")):
            size = path.stat().st_size
            for place in [0, 8, size - 1, size - 40, size - 60, *range(100, size, size // 4)]:
                with flipped(path, place):
                    assert faults(one.path) == [f"{path.name} has changed since it was written"]
                    write_manifest(one.path)
                    assert faults(one.path) == []
                    said = line_of(lambda path=path: raw_file(path, mini), CheckpointError)  # type: ignore[misc]
                    assert path.name in said
                    count += 1
                write_manifest(one.path)
    assert count >= 40
    assert [path for path in caches.iterdir() if path.name != ".lock"] == []


def test_a_damaged_checkpoint_is_skipped_and_training_resumes(averaged: Session, tmp_path: Path, mini: Path) -> None:
    _, packed = twins(averaged, tmp_path, mini)
    last = standing(packed).checkpoints["unet"]
    (last.path / "unet.packed").write_bytes((last.path / "unet.packed").read_bytes()[:-1])
    life = Life(packed)
    assert life.run() == "finished"
    assert any(f"{last.path.name}: unet.packed has" in line for line in life.findings())
    assert result(packed) == result(averaged)


def test_a_base_model_that_is_gone_or_another_is_told_as_that(
    both: tuple[Session, Session], weights: Path, mini: Path, tmp_path: Path
) -> None:
    average = weights.with_name("unet_ema.packed")
    other = another(mini, tmp_path / "other")
    damaged = shutil.copytree(mini, tmp_path / "damaged")
    data = bytearray(weight_file(damaged, "unet").read_bytes())
    data[-1] ^= 1
    weight_file(damaged, "unet").write_bytes(data)
    for path in (weights, average):
        said = line_of(lambda path=path: raw_file(path, tmp_path / "gone"), ModelError)  # type: ignore[misc]
        assert "the base model is missing, and unet.packed is stored as a difference to it" in said
        assert "Restore the base model that this session started with" in said
        for folder in (other, damaged):
            said = line_of(lambda path=path, folder=folder: raw_file(path, folder), CheckpointError)  # type: ignore[misc]
            assert "it needs the base model file" in said
            assert "Restore the base model that this session started with" in said
    record = both[1].record
    moved = record.model_copy(update={"base_model": record.base_model.model_copy(update={"folder": str(other)})})
    session = Session(both[1].path, moved)
    assert "other weights" in line_of(lambda: ensure_base(session), TrainingError)
    said = line_of(lambda: export_parts(session, open_base_model(other)), CheckpointError)
    assert "it needs the base model file" in said


# The cache of unpacked files.


def test_a_compressed_file_is_decompressed_once(weights: Path, plain: bytes, mini: Path, caches: Path) -> None:
    first = raw_file(weights, mini)
    made = first.stat()
    second = raw_file(weights, mini)
    assert (second, second.stat().st_ino) == (first, made.st_ino)
    assert first.parent == caches
    assert first.read_bytes() == plain
    assert raw_file(first, mini) == first


def test_what_was_damaged_in_the_cache_is_never_used(weights: Path, plain: bytes, mini: Path, caches: Path) -> None:
    file = raw_file(weights, mini)
    data = bytearray(plain)
    data[len(plain) // 2] ^= 1
    for wrong in (bytes(data), plain[:-1]):
        file.write_bytes(wrong)
        assert raw_file(weights, mini).read_bytes() == plain


def test_what_was_not_used_for_longest_goes(weights: Path, mini: Path, caches: Path) -> None:
    caches.mkdir(parents=True)
    before = [caches / f"{number:064x}.safetensors" for number in range(compressed_checkpoint.KEPT + 2)]
    for number, path in enumerate(before):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - 10_000 + number,) * 2)
    compressed_checkpoint._requested.append(before[0])  # This process was given it and may be reading it.
    os.utime(before[1])  # Another was given it just now.
    (caches / ".left.safetensors.123.part").write_bytes(b"of a dead process")
    file = raw_file(weights, mini)
    left = sorted(path for path in caches.iterdir() if path.name != ".lock")
    assert left == sorted([before[0], before[1], before[-1], file])
    assert len(left) == compressed_checkpoint.KEPT


def test_a_full_disk_of_the_cache_is_told(
    weights: Path, plain: bytes, mini: Path, small_disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("24m")
    monkeypatch.setenv("FASTDB_CACHE", str(disk))
    old = disk / "unpacked" / f"{0:064x}.safetensors"
    (disk / "unpacked").mkdir()
    old.write_bytes(bytes(12 << 20))
    os.utime(old, (time.time() - 1000,) * 2)
    assert raw_file(weights, mini).read_bytes() == plain
    assert not old.exists(), "it made room"
    (disk / "unpacked").joinpath(f"{sha256_of(plain)}.safetensors").unlink()
    (disk / "other").write_bytes(bytes(12 << 20))
    said = line_of(lambda: raw_file(weights, mini), StorageError)
    assert "the disk is full: decompressing a checkpoint's weights needs" in said
    assert [path.name for path in (disk / "unpacked").iterdir()] == [".lock"]


def test_a_disk_that_fills_meanwhile_leaves_nothing(
    weights: Path, mini: Path, small_disk: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("8m")
    monkeypatch.setenv("FASTDB_CACHE", str(disk))
    monkeypatch.setattr(compressed_checkpoint, "_make_room", lambda folder, wanted: None)
    assert "the disk is full" in line_of(lambda: raw_file(weights, mini), StorageError)
    assert [path.name for path in (disk / "unpacked").iterdir()] == [".lock"]


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


ASKING = """
    import sys
    from pathlib import Path
    from fastdb.checkpoints.compressed_checkpoint import raw_file
    from fastdb.storage.manifest import sha256
    print("ready", flush=True)
    sys.stdin.readline()
    print(sha256(raw_file(Path(sys.argv[1]), Path(sys.argv[2]))))
"""


def asking(weights: Path, mini: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(ASKING), str(weights), str(mini)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_ask_at_once_each_get_it(weights: Path, plain: bytes, mini: Path, caches: Path) -> None:
    several = [asking(weights, mini) for _ in range(3)]
    for one in several:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    assert {one.communicate()[0] for one in several} == {f"{sha256_of(plain)}\n"}
    assert {path.name for path in caches.iterdir()} == {".lock", f"{sha256_of(plain)}.safetensors"}


def test_one_killed_while_unpacking_does_no_harm(weights: Path, plain: bytes, mini: Path, caches: Path) -> None:
    one = asking(weights, mini)
    assert one.stdin is not None
    one.stdin.write("\n")
    one.stdin.flush()
    while not list(caches.glob(".*.part")):
        assert one.poll() is None
        time.sleep(0.001)
    os.kill(one.pid, signal.SIGKILL)
    one.communicate()
    assert [path.suffix for path in caches.iterdir() if path.name != ".lock"] == [".part"]
    assert raw_file(weights, mini).read_bytes() == plain
    assert {path.name for path in caches.iterdir()} == {".lock", f"{sha256_of(plain)}.safetensors"}
