"""Numbers that are not finite: they reach no checkpoint and no picture, and the remedy of each error works."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file
from typer.testing import CliRunner

from fastdb.checkpoints.checkpoint import FINITE, STATE, Checkpoint, complete
from fastdb.checkpoints.compressed_checkpoint import compress, raw_file
from fastdb.checkpoints.finite_numbers import not_finite
from fastdb.checkpoints.progress import standing
from fastdb.checkpoints.publish import MADE_OF
from fastdb.checkpoints.publisher_process import Publisher
from fastdb.cli import app
from fastdb.commands import results
from fastdb.errors import ModelError, TrainingError
from fastdb.formats.safetensors_file import save_tensors
from fastdb.models.resolve import ensure_base
from fastdb.sessions.session import Session
from fastdb.storage import MANIFEST
from fastdb.storage.manifest import write_manifest
from fastdb.training.divergence import MOST_SKIPPED
from fastdb.training.loop import Loop
from tests.training.acted_trainer import Infinite, faulty, scaled
from tests.training.conftest import as_saved, result
from tests.training.test_trainer import Life, at

Made = Callable[..., Session]
Copied = Callable[[Session], Session]
SHORT: dict[str, Any] = {
    "text_encoder__steps": 0,
    "unet__steps": 6,
    "prior__class_images": 0,
    "checkpoints__every_steps": 1,
}
RUINOUS = {"unet__learning_rate": 0.1, "unet__steps": 7}


@pytest.fixture(autouse=True)
def unpublished(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer of this process starts no publisher, which would outlive its failure and hold the session's lock."""
    monkeypatch.setattr(Publisher, "wake", lambda self: None)


def all_finite(session: Session) -> bool:
    files = [path for one in complete(session.local_checkpoints) for path in one.path.glob("*.safetensors")]
    assert files
    return all(tensor.isfinite().all() for path in files for tensor in load_file(path).values())


def commands(message: str) -> Iterator[list[str]]:
    """The commands that a message names, as words."""
    for command in re.findall(r"fastdb ([a-z-]+ [^:;]*?)(?=\.? [A-Z]|[.,]? or |[.;]? ?$|: | \()", message):
        yield shlex.split(command.rstrip("."))


def run(words: list[str], session: Session) -> None:
    """Run a command of a message in the folder of a session's root."""
    done = CliRunner().invoke(app, [*words, "--root", str(session.path.parent)])
    assert done.exit_code == 0, (words, done.output)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_step_whose_gradient_is_not_finite_is_neither_taken_nor_saved(
    value: float, make_session: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session("gradient", **SHORT)
    with monkeypatch.context() as patch:
        faulty(patch, lambda step, loss: Infinite.apply(loss) * (value if value != value else 1) if step == 4 else loss)
        what = "loss" if value != value else "gradient"
        with pytest.raises(
            TrainingError, match=f"the {what} of step 4 is not finite, so the step was not taken"
        ) as error:
            Life(session).run()
    assert all_finite(session)
    assert standing(session).done("unet") == 3
    [words] = commands(str(error.value))
    after = 2 if what == "loss" else 3  # weights whose loss is NaN are not resumed from
    assert words[:5] == ["train", "gradient", "--from-step", str(after), "--set"]
    run(words, session)
    session = Session.open(session.path)
    assert standing(session).done("unet") == 6
    assert [change.after for change in session.config.unet.rate_changes] == [after]


def test_the_remedy_after_a_rate_that_ruins_the_weights_works(make_session: Made) -> None:
    """The newest checkpoints are finite but useless: the remedy goes back to the start."""
    session = make_session("ruined", **{**SHORT, **RUINOUS})
    with pytest.raises(TrainingError, match="not finite") as error:
        Life(session).run()
    assert all_finite(session)
    [words] = commands(str(error.value))
    assert words[2:4] == ["--from-step", "0"]
    run(words, session)
    assert standing(Session.open(session.path)).done("unet") == 7
    assert all_finite(session)


def test_generate_from_ruined_weights_is_an_error_whose_remedy_works(make_session: Made) -> None:
    session = make_session("black", **{**SHORT, **RUINOUS})
    with pytest.raises(TrainingError, match="not finite"):
        Life(session).run()
    with pytest.raises(ModelError, match="its weights are ruined") as error:
        results.generate(session, "a photo of sks cup", steps=2)
    assert not list((session.path / "generated").glob("*.png"))
    [words] = commands(str(error.value))
    run(words, session)
    assert results.generate(Session.open(session.path), "a photo of sks cup", steps=2)


def test_a_gradient_scaler_skips_steps_and_resumes_to_the_bit(
    make_session: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss and a gradient that are not finite, as fp16 makes them; the steps between are stopped and resumed."""
    scaled(monkeypatch)
    faulty(monkeypatch, lambda step, loss: {2: loss * math.nan, 4: Infinite.apply(loss)}.get(step, loss))
    one, other = make_session("whole", **SHORT), make_session("parts", **SHORT)
    whole = Life(one)
    assert whole.run() == "finished"
    assert [note["subject"] for note in whole.said("note") if note["kind"] == "step skipped"] == ["unet 2", "unet 4"]
    for step in (2, 3, 4):
        assert Life(other, until=at("unet", step)).run() == "stopped"
    assert Life(other).run() == "finished"
    assert result(one) == result(other)
    assert all_finite(one)
    state = standing(one).checkpoints["unet"].state
    assert state == {
        **standing(other).checkpoints["unet"].state,
        "lineage": state["lineage"],
        "recipe": state["recipe"],
    }
    steps = load_file(one.local_checkpoints / "unet-000006" / "optimizer.safetensors")
    assert {int(value) for name, value in steps.items() if name.endswith("/step")} == {4}, "two steps were skipped"


def test_too_many_skipped_steps_in_a_row_end_the_run_also_across_a_stop(
    make_session: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session("skipped", **{**SHORT, "unet__steps": 16, "checkpoints__every_steps": 5})
    with monkeypatch.context() as patch:
        scaled(patch)
        faulty(patch, lambda step, loss: loss * math.nan if step > 4 else loss)
        assert Life(session, until=at("unet", 7)).run() == "stopped"
        life = Life(session)
        with pytest.raises(TrainingError, match=f"gradients of {MOST_SKIPPED} steps in a row, up to step 14,") as error:
            life.run()
    assert all_finite(session)
    first, second = commands(str(error.value))
    assert first[:4] == ["train", "skipped", "--from-step", "0"]
    assert second == ["train", "skipped", "--set", "precision=fp32"]
    run(second, session)
    assert standing(Session.open(session.path)).done("unet") == 16


def test_a_checkpoint_that_would_not_be_finite_is_not_written(
    make_session: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that became NaN unseen, as by a fault of the hardware."""
    session = make_session("unseen", **SHORT)
    honest = Loop.run

    def ruin(self: Loop, start: int, after_step: Any) -> int:
        def ruined(report: Any) -> bool:
            if report.step == 3:
                next(iter(self.stage.unet.parameters())).data.view(-1)[0] = math.nan
            return bool(after_step(report))

        return honest(self, start, ruined)

    monkeypatch.setattr(Loop, "run", ruin)
    with pytest.raises(TrainingError, match=r"in unet\.safetensors is not finite after step 3, so it was not saved"):
        Life(session).run()
    assert [one.step for one in complete(session.local_checkpoints)] == [1, 2]
    assert all_finite(session)


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
def test_a_checkpoint_of_an_earlier_version_with_nan_is_passed_over(
    compressed: bool, straight: Session, copy: Copied, tmp_path: Path
) -> None:
    session = as_saved(straight, tmp_path / "raw") if not compressed else copy(straight)
    base = ensure_base(session).folder
    last = session.checkpoints / "unet-000010"
    poisoned(last, base, compressed)
    check = not_finite(base)
    assert standing(session).done("unet") == 10
    stands = standing(session, check)
    assert stands.done("unet") == 9
    assert [note.reason for note in stands.skipped if note.kind == "checkpoint skipped"] == [
        f"conv_in.bias in {'unet.packed' if compressed else 'unet.safetensors'} contains NaN or infinite numbers"
    ]
    assert Life(session).run() == "finished"
    assert result(session) == result(straight)


def poisoned(folder: Path, base: Path, compressed: bool) -> None:
    """Put NaN into a checkpoint as an earlier version saved it."""
    state = json.loads((folder / STATE).read_text())
    del state[FINITE]
    state.pop(MADE_OF, None)
    (folder / STATE).write_text(json.dumps(state))
    local = folder.with_name("local") if compressed else folder
    if compressed:
        local.mkdir()
        for name in ("unet", "optimizer"):
            shutil.copy(raw_file(folder / f"{name}.packed", base), local / f"{name}.safetensors")
    tensors = {name: tensor.clone() for name, tensor in load_file(local / "unet.safetensors").items()}
    tensors["conv_in.bias"][0] = math.nan
    save_tensors(local / "unet.safetensors", tensors)
    (local / MANIFEST).unlink(missing_ok=True)
    write_manifest(local)
    if compressed:
        for path in folder.glob("*.packed"):
            path.unlink()
        compress(Checkpoint(local, "unet", 10), folder, base)
        shutil.rmtree(local)
        (folder / MANIFEST).unlink()
        write_manifest(folder)
