"""Training does not depend on the caller's folder and environment variables, and changes the weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from fastdb.commands import training
from fastdb.errors import TrainingError
from fastdb.sessions.session import Session
from fastdb.training.movement import PATIENCE, Movement
from tests.training.conftest import result

HOSTILE = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "TORCH_COMPILE_DISABLE": "0",
    "TRANSFORMERS_OFFLINE": "maybe",
    "DIFFUSERS_ATTN_BACKEND": "flash",
    "CUBLAS_WORKSPACE_CONFIG": ":0:0",
    "PYTHONHASHSEED": "1",
    "PYTHONOPTIMIZE": "2",
    "PYTHONWARNINGS": "error",
}
"""Each of them changes the result of a training or ends it, where it reaches the trainer."""

TWO_STEPS = {"text_encoder__steps": 0, "unet__steps": 2, "prior__class_images": 0}


@pytest.mark.usefixtures("real_processes")
def test_a_hostile_folder_and_environment_change_no_bit(
    make_session: Callable[..., Session], straight: Session, tmp_path: Path
) -> None:
    """The command itself runs in a folder that is deleted, and that contains modules of its own."""
    session, marker = make_session(checkpoints__keep_every=9), tmp_path / "imported"
    folder = tmp_path / "hostile"
    (folder / "fastdb").mkdir(parents=True)
    for name in ("torch.py", "random.py", "sitecustomize.py", "startup.py", "fastdb/__init__.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'a').write(__name__ + '\\n')")
    code = (
        "import os, shutil, sys; from fastdb.commands import training; from fastdb.training import process\n"
        "os.environ.update(PYTHONPATH=os.getcwd(), PYTHONSTARTUP='startup.py')\n"
        "running = process.start(training.Session.open(sys.argv[1]))\n"
        "shutil.rmtree(os.getcwd())\n"
        "print(list(running.follow())[-1])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(session.path)],
        env={**os.environ, **HOSTILE},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "'outcome': 'finished'" in done.stdout, done.stdout + done.stderr
    assert not marker.exists(), marker.read_text()
    assert result(session) == result(straight)


def test_a_variable_that_is_passed_on_purpose_may_not_change_the_number_of_steps(
    make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    session = make_session("passed", **TWO_STEPS, environment__pass=["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"])
    with pytest.raises(TrainingError) as caught:
        training.train(session)
    assert str(caught.value) == (
        "unet stage: accelerate accumulates 7 forward passes per step, and gradient_accumulation is 1. "
        "Remove ACCELERATE_GRADIENT_ACCUMULATION_STEPS from the setting environment.pass."
    )
    assert training.train(session, settings={"environment.pass": []}) == "finished"


def test_a_stage_whose_weights_do_not_change_ends_with_an_error(make_session: Callable[..., Session]) -> None:
    session = make_session("still", **TWO_STEPS, unet__learning_rate=1e-300)
    with pytest.raises(TrainingError) as caught:
        training.train(session)
    assert str(caught.value) == (
        "unet stage: no weight of unet has changed in 2 of its steps, with a learning rate of 5e-301. "
        "Run the same command with a higher rate, such as --from-step 0 --set unet.learning_rate=2e-6."
    )
    assert training.train(session, settings={"unet.learning_rate": 2e-6}) == "finished"


class Steps:
    """A stage with a part that moves by `change` in each step."""

    def __init__(self) -> None:
        self.module = torch.nn.Linear(2, 2)
        self.movement = Movement("unet", {"unet": list(self.module.parameters())})

    def take(self, change: float, rate: float = 1.0, skipped: bool = False, last: bool = False) -> None:
        """Take a step."""
        self.movement.before_step({"unet": rate})
        with torch.no_grad():
            self.module.bias += change
        self.movement.after_step({"unet": rate}, skipped, last)


def test_a_part_must_move_within_the_first_steps() -> None:
    steps = Steps()
    for _ in range(PATIENCE - 1):
        steps.take(0.0)
    with pytest.raises(TrainingError, match=f"has changed in {PATIENCE} of its steps"):
        steps.take(0.0)
    moved = Steps()
    moved.take(1e-3)
    for _ in range(2 * PATIENCE):
        moved.take(0.0, last=True)


@pytest.mark.parametrize("excused", [{"skipped": True}, {"rate": 0.0}])
def test_skipped_steps_and_steps_without_a_rate_need_not_move(excused: dict[str, float | bool]) -> None:
    steps = Steps()
    for _ in range(2 * PATIENCE):
        steps.take(0.0, last=True, **excused)
    with pytest.raises(TrainingError, match="in 1 of its steps"):
        steps.take(0.0, last=True)
