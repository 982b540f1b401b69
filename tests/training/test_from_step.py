"""Training resumes from a chosen step without deleting anything."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from filelock import FileLock

from fastdb import interactive
from fastdb.checkpoints import publish
from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.progress import standing, standings
from fastdb.commands import results, sharing, training
from fastdb.errors import ConfigError, FastDBError, SessionBusy, TrainingError
from fastdb.models.resolve import ensure_base
from fastdb.reporting import Note, Report
from fastdb.sessions.identity import claim_work
from fastdb.sessions.session import Session
from fastdb.training.disk_estimate import need
from fastdb.training.preflight import preflight
from fastdb.training.schedules import with_rates_from
from tests.training.conftest import result
from tests.training.test_trainer import Life, at

Made = Callable[..., Session]
Copied = Callable[[Session], Session]
REWARM, HOLD = (
    {"steps": 2, "schedule": "rewarm", "learning_rate": 4e-4},
    {"steps": 2, "schedule": "hold", "learning_rate": 1e-4},
)
SHORT: dict[str, Any] = {
    "text_encoder__steps": 2,
    "unet__steps": 3,
    "prior__class_images": 0,
    "checkpoints__keep_every": 1,
}


@pytest.fixture(scope="module")
def finished(make_session: Made) -> Session:
    """Five steps of the UNet's stage, two of them an extension; each has its checkpoint."""
    session = make_session("cup", **SHORT, unet__extensions=[REWARM])
    assert Life(session).run() == "finished"
    return Session.open(session.path)


def steps(session: Session) -> list[int]:
    return [one.step for one in complete(session.checkpoints, "unet")]


def tree(session: Session) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(session.path.rglob("*")) if path.is_file()}


def test_training_from_a_step_ends_in_the_same_bytes(
    finished: Session, copy: Copied, capsys: pytest.CaptureFixture[str]
) -> None:
    session = copy(finished)
    before, last = result(session), (session.checkpoints / "unet-000005" / "unet.packed").read_bytes()
    assert interactive.train(session, from_step=2) == "finished"
    out = capsys.readouterr().out
    aside = session.checkpoints / "set-aside-1"
    [places] = re.findall(r"^Moved the checkpoints after step 2 to (.*)$", out, re.MULTILINE)
    assert str(aside) in places.split(" and ")
    assert "resuming after step 2" in out
    assert [one.step for one in complete(aside)] == [3, 4, 5]
    assert (aside / "unet-000005" / "unet.packed").read_bytes() == last
    session = Session.open(session.path)
    assert session.record.runs[-1].begins == "unet step 2"
    assert session.record.inherited == (finished.record.lineage,), "it is a copy, and no restart"
    assert (steps(session), result(session)) == ([1, 2, 3, 4, 5], before)


@pytest.mark.full
def test_before_an_extension_another_one_may_be_chosen(finished: Session, copy: Copied, make_session: Made) -> None:
    session = copy(finished)
    with pytest.raises(ConfigError, match=r"unet\.extensions 2 steps, rewarm at 0\.0004 -> 2 steps, hold at 0\.0001"):
        training.train(session, settings={"unet.extensions": [HOLD]})
    assert training.train(session, settings={"unet.extensions": [HOLD]}, from_step=3) == "finished"
    other = make_session("other", **SHORT, unet__extensions=[HOLD])
    assert Life(other).run() == "finished"
    assert result(Session.open(session.path)) == result(Session.open(other.path))
    assert result(other) != result(finished)


def rates(life: Life) -> list[tuple[int, float]]:
    return [(event["step"], event["learning_rate"]) for event in life.said("step")]


def test_a_rate_changes_from_a_step_and_resume_stays_exact(
    finished: Session, copy: Copied, make_session: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    """The schedule falls from the new rate as it would have from the old, and the history names the change."""
    session = copy(finished)
    before = {step: (session.checkpoints / f"unet-{step:06d}" / "unet.packed").read_bytes() for step in (1, 2)}
    assert interactive.train(session, settings={"unet.learning_rate": 9e-5}, from_step=1) == "finished"
    out = capsys.readouterr().out
    change = "0.000333 -> 6e-05 in step 2 (highest rate of the schedule: 9e-05)"
    assert f"Changed unet.learning_rate: {change}" in out
    assert "learning rate 6e-05 in step 2 (highest rate of the schedule: 9e-05)" in out
    session = Session.open(session.path)
    assert session.config.unet.learning_rate == 5e-4
    assert [str(change) for change in session.config.unet.rate_changes] == ["9e-05 after step 1"]
    assert [str(entry) for entry in session.record.revised] == [f"after unet step 1: unet.learning_rate {change}"]
    interactive.show(session)
    assert re.search(
        rf"revised +after unet step 1: unet\.learning_rate {re.escape(change)}, \d", capsys.readouterr().out
    )
    assert (session.checkpoints / "unet-000001" / "unet.packed").read_bytes() == before[1]
    assert (session.checkpoints / "unet-000002" / "unet.packed").read_bytes() != before[2]

    other = make_session("other", **SHORT, unet__extensions=[REWARM])
    assert Life(other, until=at("unet", 1)).run() == "stopped"
    other = Session.open(other.path)
    other = other.with_config(with_rates_from(other.config, {"unet.learning_rate": 9e-5}, 1))
    first, second = Life(other, until=at("unet", 2)), Life(other)
    assert (first.run(), second.run()) == ("stopped", "finished")
    assert rates(first) + rates(second) == [
        (2, pytest.approx(6e-5)),
        (3, pytest.approx(3e-5)),
        (4, pytest.approx(4e-4)),
        (5, pytest.approx(2e-4)),
    ]
    assert result(other) == result(session)


def test_without_a_step_another_rate_is_refused_with_the_way(finished: Session) -> None:
    with pytest.raises(ConfigError, match="for another learning rate from step N on: --from-step N"):
        training.train(finished, settings={"unet.learning_rate": 1e-5})
    edited = finished.config.changed({"unet.learning_rate": 1e-5})
    with pytest.raises(TrainingError, match=r"fastdb train cup --from-step N --set unet\.learning_rate=X"):
        preflight(
            replace(finished, record=finished.record.model_copy(update={"config": edited})), ensure_base(finished)
        )


def test_from_0_the_stage_begins_again_with_what_it_is_to_have(
    finished: Session, copy: Copied, capsys: pytest.CaptureFixture[str]
) -> None:
    session = copy(finished)
    encoder = {name: data for name, data in tree(session).items() if "text_encoder-" in name}
    settings = {"unet.steps": 2, "unet.extensions": []}
    with pytest.raises(ConfigError, match=r"to change the UNet stage from its start: --from-step 0"):
        training.train(session, settings=settings)
    changed = session.with_config(session.config.changed(settings))
    with pytest.raises(
        TrainingError, match=r"or restart the UNet stage with --from-step 0, or everything with --restart"
    ):
        training.train(changed)
    session.with_config(session.config)
    assert interactive.train(session, settings={"unet.steps": 2, "unet.extensions": []}, from_step=0) == "finished"
    assert "Text encoder: done, 2 steps" in capsys.readouterr().out
    assert steps(session) == [1, 2]
    assert {name: data for name, data in tree(session).items() if "text_encoder-" in name} == encoder
    capsys.readouterr()
    assert interactive.train(session, from_step=2) == "finished"
    assert "There were no checkpoints to set aside" in capsys.readouterr().out
    assert not (session.checkpoints / "set-aside-2").exists()


def test_rates_that_a_restart_of_the_stage_drops_are_reported(make_session: Made) -> None:
    session = make_session("dropped", **SHORT, unet__rate_changes=[{"after": 2, "learning_rate": 1e-5}])
    told = Collected()
    config = with_rates_from(session.config, {"unet.learning_rate": 2e-4}, 0)
    assert training._with_settings(session, config, 0, told).config == config
    assert told.notes == [
        Note("value changed", "unet.learning_rate", "0.0005 -> 0.0002"),
        Note("value changed", "unet.rate_changes", "1e-05 after step 2 -> none"),
    ]


class Collected(Report):
    """Keeps the notes it receives."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def note(self, note: Note) -> None:
        self.notes.append(note)


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        (
            {"from_step": 2, "settings": {"unet.ema_decay": 0.5}},
            TrainingError,
            "changed since step 2 of the unet stage: unet.ema_decay 0.0 -> 0.5. Undo the change to resume, or "
            "restart the UNet stage with --from-step 0, or everything with --restart (old checkpoints are moved aside, "
            "not deleted). Its weights can be the base model of a new session: fastdb export cup --step 2 --precision "
            "fp32, then fastdb new with --base {folder}/cup_step_2.safetensors.",
        ),
        (
            {"from_step": 0, "settings": {"seed": 5}},
            TrainingError,
            "changed since step 2 of the text_encoder stage: seed 11 -> 5. Undo the change to resume, or start over "
            "with --restart (old checkpoints are moved aside, not deleted).",
        ),
        (
            {"from_step": 9},
            ConfigError,
            "cup has no checkpoint of the UNet stage at step 9. Existing steps: 1, 2, 3, 4, 5.",
        ),
        ({"from_step": 2, "restart": True}, ConfigError, "--from-step and --restart cannot be combined."),
        ({"from_step": 2, "settings": {"unet.steps": -1}}, ConfigError, "unet.steps is -1"),
        (
            {"from_step": 5, "settings": {"unet.learning_rate": 1e-3}},
            ConfigError,
            "unet.learning_rate: the unet trains no further step after step 5. Choose a step before 5, or add steps",
        ),
        (
            {"from_step": 2, "settings": {"text_encoder.learning_rate": 1e-3}},
            TrainingError,
            "changed since step 2 of the text_encoder stage: text_encoder.learning_rate 0.0001 -> 0.001. Undo",
        ),
    ],
)
def test_a_refusal_says_the_way_and_changes_nothing(
    finished: Session, copy: Copied, given: dict[str, Any], kind: type[FastDBError], told: str
) -> None:
    session = copy(finished)
    before = tree(session)
    with pytest.raises(kind, match=re.escape(told.replace("{folder}", str(session.path)))):
        training.train(session, **given)
    assert tree(session) == before


def test_one_that_is_damaged_is_not_gone_back_to(finished: Session, copy: Copied) -> None:
    """Else what is newer and good would be set aside for it, and an older one taken."""
    session = copy(finished)
    (session.checkpoints / "unet-000002" / "optimizer.packed").write_bytes(b"short")
    before = tree(session)
    reason = r"cannot resume from step 2: optimizer\.packed has 5 bytes instead of"
    with pytest.raises(TrainingError, match=reason):
        training.train(session, from_step=2)
    with pytest.raises(TrainingError, match=reason):
        sharing.duplicate(session, "new", from_step=2)
    assert tree(session) == before


def test_the_space_it_needs_is_that_of_the_steps_to_come(finished: Session, mini: Any) -> None:
    assert need(finished, mini).checkpoints == {}
    assert set(need(finished, mini, from_step=2).checkpoints) == {"unet"}


def test_a_duplicate_up_to_a_step_goes_its_own_way(finished: Session, copy: Copied, make_session: Made) -> None:
    session = copy(finished)
    (session.checkpoints / "set-aside-1" / "unet-000001").mkdir(parents=True)
    (session.checkpoints / "set-aside-1" / "unet-000001" / "state.json").write_text("{}")
    before = tree(session)
    new = sharing.duplicate(session, "new", from_step=3)
    assert tree(session) == before
    assert steps(new) == [1, 2, 3]
    assert {path.name for path in new.checkpoints.iterdir()} == {
        *(f"unet-00000{step}" for step in (1, 2, 3)),
        "text_encoder-000001",
        "text_encoder-000002",
        "README.txt",
    }
    assert (new.record.lineage, new.record.runs) == (session.record.lineage, session.record.runs)
    assert Life(new.with_config(new.config.changed({"unet.extensions": [HOLD]}))).run() == "finished"
    assert steps(new) == [1, 2, 3, 4, 5]
    bare = sharing.duplicate(session, "bare", from_step=0)
    assert (steps(bare), len(complete(bare.checkpoints))) == ([], 2)
    with pytest.raises(ConfigError, match=r"at step 7\. Existing steps: 1, 2, 3, 4, 5\."):
        sharing.duplicate(session, "more", from_step=7)


def test_an_export_of_a_damaged_step_names_the_others_and_they_work(finished: Session, copy: Copied) -> None:
    session = copy(finished)
    path = session.checkpoints / "unet-000003" / "unet.packed"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(TrainingError) as caught:
        results.export(session, step=3, formats=["ckpt"])
    line = str(caught.value)
    assert line.startswith("cup: the checkpoint of this step is damaged (unet-000003: ")
    assert line.endswith("Choose another step (1, 2, 4, 5), or restore the checkpoint from a copy.")
    assert [file.name for file in results.export(session, step=4, formats=["ckpt"])] == ["cup_step_4.ckpt"]


def test_nothing_is_written_while_another_process_publishes(
    finished: Session, copy: Copied, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = claim_work(copy(finished))
    monkeypatch.setattr(publish, "BUSY_WITHIN", 0.1)
    before = (session.path / "session.yaml").read_bytes()
    with FileLock(session.work / publish.LOCK), pytest.raises(SessionBusy, match="is being published"):
        training.train(session, from_step=3, settings={"unet.learning_rate": 1e-5})
    assert Session.open(session.path).config == session.config
    assert (session.path / "session.yaml").read_bytes() == before


def test_waiting_for_another_publisher_is_reported_and_can_be_left(
    finished: Session, copy: Copied, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, notes = copy(finished), []
    monkeypatch.setattr(publish, "ANNOUNCED_AFTER", 0.1)

    def emit(_: str, /, **fields: Any) -> None:
        notes.append(fields["kind"])

    publishing = publish.Publishing(session, session.path, emit)
    with FileLock(session.work / publish.LOCK):
        publishing.run(lambda: True, leaving=lambda: bool(notes))
    assert notes == ["publishing waits"]


def test_another_machine_does_not_bring_back_what_a_changed_rate_replaced(
    make_session: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "first"))
    session = make_session("two", **SHORT)
    assert Life(session).run() == "finished"
    assert complete(session.local_checkpoints, "unet")[-1].step == 3
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "second"))
    assert training.train(session.path, from_step=1, settings={"unet.learning_rate": 9e-5}) == "finished"
    checkpoint = session.checkpoints / "unet-000003"
    after = (checkpoint / "MANIFEST.json").read_bytes()

    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "first"))
    session = Session.open(session.path)
    assert publish.pending(session) == []
    stands = standing(session)
    assert stands.checkpoints["unet"].path == checkpoint
    assert [note.reason for note in stands.skipped] == [
        "another machine changed the learning rate from an earlier step on"
    ]
    assert {step.checkpoints["unet"].path.parent for step in standings(session, [2, 3])[0]} == {session.checkpoints}
    assert training.train(session) == "finished"
    training.publish(session)
    assert (checkpoint / "MANIFEST.json").read_bytes() == after
