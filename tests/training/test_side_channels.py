"""Logs, samples, the history, the lease and memory: what must not end a run, or not in a traceback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.retention import delete_unclaimed
from fastdb.commands import results, training
from fastdb.errors import StorageError, TrainingError, is_out_of_memory, out_of_memory
from fastdb.models import export as export_module
from fastdb.reporting import Note
from fastdb.runtime.paths import work_folder
from fastdb.sessions import lease
from fastdb.sessions.events import read_events
from fastdb.sessions.session import Session
from fastdb.training import process, saver, trainer
from fastdb.training.observers import Sampler
from tests.sessions.test_events import fill
from tests.training.conftest import result
from tests.training.test_trainer import Life

Made = Callable[..., Session]
QUICK: dict[str, Any] = {"text_encoder__steps": 0, "unet__steps": 4, "prior__class_images": 0}
SAMPLED: dict[str, Any] = {"samples__every_steps": 2, "samples__steps": 1, "samples__guidance": 1.0}


def test_the_largest_seed_of_samples_is_followed_by_the_first(make_session: Made) -> None:
    prompts = ("a cup", "a cup on a table")
    life = Life(make_session(**QUICK, **SAMPLED, samples__seed=2**63 - 1, samples__prompts=prompts))
    assert life.run() == "finished"
    assert life.said("note") == []
    assert len(life.said("sample")) == 4


def test_samples_that_fail_are_told_and_change_nothing(make_session: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_session(**QUICK)
    assert Life(plain).run() == "finished"

    def failing(*arguments: Any, **named: Any) -> None:
        raise ValueError("a scheduler that fails")

    monkeypatch.setattr(Sampler, "_write", failing)
    life = Life(make_session(**QUICK, **SAMPLED, unet__ema_decay=0.5))
    assert life.run() == "finished"
    notes = [(event["kind"], event["subject"], event["reason"]) for event in life.said("note")]
    assert notes == [("samples failed", step, "ValueError: a scheduler that fails") for step in ("2", "4")]
    mine = result(life.trainer.session)
    del mine["unet-000004/unet_ema.safetensors"]
    assert mine == result(plain)


def test_a_history_that_cannot_be_written_does_not_change_how_the_run_ended(
    make_session: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(session: Session, outcome: str) -> None:
        raise StorageError("the disk is full", where=session.path)

    life = Life(make_session(**QUICK))
    monkeypatch.setattr(Session, "with_run_ended", full)
    assert life.run() == "finished"
    assert [event["kind"] for event in life.said("note")] == ["history not written"]


def test_the_heartbeat_of_a_lease_goes_on_after_an_error(make_session: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    session, notes, beats, enough = make_session(**QUICK), [], [], threading.Event()
    monkeypatch.setattr(lease, "BEAT", 0.01)

    def failing(held: lease.Held) -> None:
        beats.append(1)
        if len(beats) >= 3:
            enough.set()
        raise ValueError("a fault")

    monkeypatch.setattr(lease.Held, "_renew", failing)
    with lease.take(session.path, notes.append, lambda: None):
        assert enough.wait(30)
    assert [(note.kind, note.subject) for note in notes] == [("lease not renewed", "in-use.json (ValueError: a fault)")]


NO_MEMORY = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{NO_MEMORY}allocate 3000000000 bytes. Error code 12 (Cannot allocate memory)"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_want_of_memory_is_recognised_and_explained(error: Exception) -> None:
    assert is_out_of_memory(error)
    size = " (3,000 MB more were needed)" if "3000000000" in str(error) else ""
    assert str(out_of_memory(error, "training", "Do.")) == f"training: this machine has too little memory{size}. Do."


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(28, "No space left"), ImportError("no module")])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_want_of_memory_on_a_cpu_names_a_remedy_that_works(make_session: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_session(**QUICK)

    def hungry(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{NO_MEMORY}allocate 2000000000 bytes.")

    # Within a stage, training takes a step of the ladder instead (test_memory_ladder.py).
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "image_groups", hungry)
        with pytest.raises(TrainingError, match=r"too little memory \(2,000 MB more were needed\)") as told:
            Life(session).run()
    assert "Close other programs that use its memory and run the same command again" in str(told.value)
    assert Life(session).run() == "finished"


def test_a_local_disk_that_fills_up_ends_in_order_and_the_same_command_resumes(
    make_session: Made, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the log can be written; the session's disk is another one."""
    disk = small_disk("150m")
    monkeypatch.setenv("FASTDB_CACHE", str(disk))
    session = make_session(**{**QUICK, "unet__steps": 12}, checkpoints__every_steps=2)
    running, full = process.start(session), None
    end: dict[str, Any] = {}
    for event in running.follow():
        if event["event"] == "saved" and full is None:
            full = fill(disk)
        end = event
    assert full is not None
    assert (end["event"], end["outcome"]) == ("end", "failed")
    assert "the disk is full" in end["message"]
    assert Session.open(session.path).record.runs[-1].outcome == "failed"
    full.unlink()
    assert training.train(session) == "finished"
    said = [read_events(path)[-1]["event"] for path in sorted(work_folder(session.path).glob("run-*.jsonl"))]
    assert said[-1] == "end"


def test_training_leaves_the_checkpoints_that_an_export_reads(
    straight: Session, copy_here: Callable[[Session], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training deletes all that it may, just before the export reads the weights."""
    session, honest = copy_here(straight), export_module.export_model
    before = [checkpoint.path.name for checkpoint in complete(session.local_checkpoints)]

    def after_deletion(*arguments: Any, **named: Any) -> Any:
        assert delete_unclaimed(complete(session.checkpoint_folders)) == []
        return honest(*arguments, **named)

    monkeypatch.setattr(export_module, "export_model", after_deletion)
    (file,) = results.export(session, formats=["safetensors"])
    assert file.is_file()
    assert [checkpoint.path.name for checkpoint in complete(session.local_checkpoints)] == before
    assert complete(session.checkpoints) == [], "these were not read"


def test_a_session_s_disk_that_hangs_delays_no_checkpoint(make_session: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be deleted on this machine is listed from the session's disk."""
    listed, answer = list[int](), threading.Event()

    def hanging(session: Session, keep: int, *, needed: bool) -> list[Note]:
        listed.append(keep)
        answer.wait(30)
        return []

    monkeypatch.setattr(saver, "prune_local", hanging)
    session, told = make_session("hung"), list[str]()
    saving = saver.Saver(session, {}, {}, lambda kind, **fields: told.append(kind))
    for step in (1, 2, 3):
        contents = {"unet.safetensors": {"a": torch.zeros(9)}}
        saving._write("unet", step, contents, {"format": 2}, time.perf_counter(), False)
    saving.wait()
    assert (told, listed) == (["saved"] * 3, [2])
    answer.set()
