"""The remedy of every error of the training is executed, and works."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from typer.testing import CliRunner

import fastdb.training
from fastdb.checkpoints.checkpoint import FINITE, complete
from fastdb.checkpoints.progress import standing
from fastdb.checkpoints.publisher_process import Publisher
from fastdb.cli import app
from fastdb.commands import sessions, training
from fastdb.errors import FastDBError
from fastdb.formats.safetensors_file import save_tensors
from fastdb.models.resolve import ensure_base
from fastdb.runtime.device import Device
from fastdb.sessions.session import Session
from fastdb.storage import MANIFEST
from fastdb.storage.manifest import write_manifest
from fastdb.training import disk_estimate, prepare, process
from fastdb.training.saver import OPTIMIZER
from tests.known_faces import faces_detected_once
from tests.training.conftest import outcome
from tests.training.test_trainer import Life

Made = Callable[..., Session]
SHORT: dict[str, Any] = {"text_encoder__steps": 0, "unet__steps": 2, "prior__class_images": 0}
ELSEWHERE = {
    "disk_estimate.py: the first checkpoints need ",
    "optimizers.py: the optimizer state has ",
}
"""Errors whose remedy is no command for this machine: to install a package, or to free a disk."""


class World(NamedTuple):
    """What a case works on: a session that is trained to its end, and how to make others."""

    session: Session
    make: Made
    patch: pytest.MonkeyPatch
    folder: Path


CASES: dict[str, Callable[[World], None]] = {}


def remedy_of(place: str) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Register the case of an error by its module and the beginning of its text."""

    def register(case: Callable[[World], None]) -> Callable[[World], None]:
        CASES[place] = case
        return case

    return register


def run(command: str | list[str], session: Session) -> str:
    """Run a command as a person would, and return what it printed."""
    words = shlex.split(command) if isinstance(command, str) else command
    done = CliRunner().invoke(app, [*words[1:], "--root", str(session.path.parent)])
    assert done.exit_code == 0, (command, done.output)
    return done.output


def failed(session: Session, match: str, **given: Any) -> str:
    """Train a session, and return the message of the error that it must raise."""
    with pytest.raises(FastDBError, match=match) as error:
        training.train(session, **given)
    return str(error.value)


def named(message: str, start: str = "fastdb") -> list[str]:
    """The commands that a message names."""
    return [command.strip().rstrip(".") for command in re.findall(rf"{start} [^:]*?(?=\. |$|, then)", message)]


def done(session: Session) -> int:
    return standing(Session.open(session.path)).done("unet")


@remedy_of("preflight.py: unet.steps is 0, and a text encoder")
def nothing_to_train(world: World) -> None:
    session = world.make("nothing", **{**SHORT, "unet__steps": 0})
    [command] = named(failed(session, "both stages have 0 steps"))
    run(command.replace("800", "1"), session)
    assert done(session) == 1


@remedy_of("preflight.py: prior preservation needs a class word")
def no_class(world: World) -> None:
    settings = {key.replace("__", "."): value for key, value in SHORT.items()}
    settings |= {"prior.class_images": 1, "prior.steps": 1, "unet.steps": 1}
    photo, folder = next(world.session.originals.iterdir()), ensure_base(world.session).folder
    with faces_detected_once():
        session = sessions.new("no_class", folder, [photo], token="sks", root=world.folder, settings=settings)
    [command] = named(failed(session, "needs a class word"))
    run(command, session)
    assert done(session) == 1


@remedy_of("preflight.py: stop.hold_out is ")
def none_is_trained(world: World) -> None:
    session = world.make("held_out", **{**SHORT, "unet__steps": 1, "stop__hold_out": 99})
    [command] = named(failed(session, "so none would be trained"))
    run(command, session)
    assert done(session) == 1


@remedy_of("preflight.py: changed since step ")
def another_recipe(world: World) -> None:
    def edited(settings: dict[str, Any]) -> Session:
        session = Session.open(world.session.path)
        return session.with_config(session.config.changed(settings))

    begun = Session.open(world.session.path).config
    message = failed(edited({"unet.steps": 1}), r"unet\.steps 2 -> 1")
    assert "Undo the change to resume, or restart the UNet stage with --from-step 0, or everything with --re" in message
    extend = next(command for command in named(message) if "extend" in command)
    world.session.with_config(begun)
    run("fastdb train cup", world.session)
    run(extend.replace("--steps N", "--steps 1"), world.session)
    run("fastdb train cup", world.session)
    assert done(world.session) == 3
    message = failed(edited({"unet.learning_rate": 1e-5}), r"unet\.learning_rate 0\.0005 -> 1e-05")
    session = Session.open(world.session.path)
    session.with_config(session.config.changed({"unet.learning_rate": 5e-4}))
    [rate] = [command for command in named(message) if "--set" in command]
    run(rate.replace("N", "2").replace("X", "1e-5"), world.session)
    assert [str(one) for one in Session.open(session.path).config.unet.rate_changes] == ["1e-05 after step 2"]
    message = failed(session, "was made by|changed since", from_step=2, settings={"unet.ema_decay": 0.5})
    export = next(command for command in named(message) if "export" in command)
    run(export, session)
    base = re.search(r"--base (\S+?)\.$", message)
    assert base is not None
    assert Path(shlex.split(base[1])[0]).is_file()
    run("fastdb train cup --from-step 0 --set unet.ema_decay=0.5 --set unet.extensions=[]", session)
    run("fastdb train cup --restart --set unet.ema_decay=0 --set unet.steps=1", session)
    assert done(session) == 1


@remedy_of("schedules.py: the ")
def no_step_follows(world: World) -> None:
    message = failed(world.session, "no further step after step 2", from_step=2, settings={"unet.learning_rate": 1e-5})
    run(named(message)[0].replace("NAME", "cup").replace(" N", " 1"), world.session)
    run("fastdb train cup --from-step 2 --set unet.learning_rate=1e-5", world.session)
    assert done(world.session) == 3


@remedy_of("optimizers.py: the optimizer state has ")
def moments_of_another_model(world: World) -> None:
    session = world.session
    for one in complete(session.checkpoint_folders, "unet"):
        shutil.rmtree(one.path) if one.path.parent == session.checkpoints else None
    [*_, last] = complete(session.local_checkpoints, "unet")
    assert last.state[FINITE] is True
    save_tensors(last.path / OPTIMIZER, {"9999/exp_avg": torch.ones(3), "9999/step": torch.tensor(1.0)})
    (last.path / MANIFEST).unlink()
    write_manifest(last.path)
    run("fastdb extend cup --steps 1", session)
    assert "start over with --restart" in failed(session, "the optimizer state has 1 tensors")
    run("fastdb train cup --restart", session)
    assert done(session) == 3


@remedy_of("movement.py: no weight of ")
def too_low_a_rate(world: World) -> None:
    session = world.make("low", **{**SHORT, "unet__learning_rate": 1e-300, "checkpoints__every_steps": 1})
    message = failed(session, "no weight of unet has changed in 2 of its steps")
    words = re.search(r"such as (--from-step 0 --set \S+?)\.$", message)
    assert words is not None
    run(f"fastdb train low {words[1]}", session)
    assert done(session) == 2


@remedy_of("loop.py: accelerate accumulates ")
def accumulation_by_a_variable(world: World) -> None:
    name = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    world.patch.setenv(name, "7")
    session = world.make("variable", **{**SHORT, "environment__pass": [name]})
    message = failed(session, f"gradient_accumulation is 1.*Remove {name} from the setting environment.pass")
    assert message
    run("fastdb train variable --set environment.pass=[]", session)
    assert done(session) == 2


@remedy_of("fused_backward.py: the gradient scaler of fp16 skips a step")
def fused_with_a_scaler(world: World) -> None:
    settings = {**SHORT, "optimizer__max_grad_norm": 0, "optimizer__fused_backward_pass": True}
    session = world.make("scaled", **settings)
    with world.patch.context() as patch:
        patch.setattr(prepare, "choose_device", lambda *_: Device("cuda", "T4", "fp16", "no bf16"))
        with pytest.raises(FastDBError, match="some weights have changed by then") as error:
            Life(session).run()
    precision, unfused = named(str(error.value))
    run(precision, session)
    assert done(session) == 2
    run("fastdb extend scaled --steps 1", session)
    run(unfused, session)
    assert done(session) == 3


@remedy_of("models/base_identity.py: this base model has other weights")
def another_base(world: World) -> None:
    session = world.session
    run("fastdb extend cup --steps 1", session)
    record = session.record.base_model
    folder = shutil.copytree(ensure_base(session).folder, world.folder / "base")
    moved = replace(session, record=Session.open(session.path).record)
    moved = moved.with_values(record.model_copy(update={"folder": str(folder)}), moved.record.subject, moved.config)
    [weights] = (folder / "unet").glob("*.safetensors")
    original = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(original[:-4] + b"\0\0\1\0")
    failed(moved, "base model")
    weights.write_bytes(original)
    run("fastdb train cup", session)
    assert done(session) == 3


@remedy_of("process.py: the trainer ")
def killed(world: World) -> None:
    session = world.make("killed", **{**SHORT, "unet__steps": 3, "checkpoints__every_steps": 1})
    running = process.start(session)

    def follow() -> None:
        for event in running.follow():
            if event["event"] == "stage":
                os.kill(running.pid, signal.SIGKILL)

    with pytest.raises(FastDBError, match=r"was killed \(SIGKILL\).*Run the same command again; it resumes"):
        follow()
    run("fastdb train killed", session)
    assert done(session) == 3


@remedy_of("process.py: another process holds the training lock")
def lock_without_process(world: World) -> None:
    run("fastdb extend cup --steps 1", world.session)
    world.patch.setattr(process, "_ANNOUNCED_WITHIN", 0.2)
    for path in process.work_folder(world.session.path).glob("current.json"):
        path.unlink()
    with process.training_lock(world.session.path):
        failed(world.session, "another process holds the training lock.*Wait until it ends, or kill it")
    world.patch.setattr(process, "_ANNOUNCED_WITHIN", 10.0)
    run("fastdb train cup", world.session)
    assert done(world.session) == 3


@remedy_of("process.py: another process is training this session")
def second_trainer(world: World) -> None:
    session = world.make("twice", **{**SHORT, "unet__steps": 8})
    running = process.start(session)
    with (
        pytest.raises(FastDBError, match="another process is training this session") as error,
        process.training_lock(session.path),
    ):
        pass
    assert "following" in run(str(error.value).split(": ")[-1], session)
    list(running.follow())
    assert done(session) == 8


@remedy_of("trainer.py: the last checkpoint is damaged")
def damaged_last(world: World) -> None:
    session = world.make("rotten", **{**SHORT, "checkpoints__every_steps": 1})

    def rot(event: dict[str, Any]) -> bool:
        if event["event"] == "saved" and event["step"] == 2:
            (Path(event["path"]) / "unet.safetensors").write_bytes(b"")
        return False

    # In this process nobody would end the publisher.
    world.patch.setattr(Publisher, "wake", lambda self: None)
    with pytest.raises(FastDBError, match=r"damaged when read back.*run the same command again"):
        Life(session, until=rot).run()
    run("fastdb train rotten", session)
    assert done(session) == 2


@remedy_of("disk_estimate.py: checkpoints are saved on this machine")
def local_disk_full(world: World) -> None:
    session = world.make("full", **SHORT)
    honest, small = shutil.disk_usage, str(process.work_folder(session.path).parents[1])

    def usage(path: Any) -> Any:
        found = honest(path)
        return found._replace(free=1000) if str(path).startswith(small) else found

    world.patch.setattr(disk_estimate.shutil, "disk_usage", usage)
    failed(session, r"set FASTDB_CACHE to a folder on a larger disk")
    world.patch.setenv("FASTDB_CACHE", str(world.folder / "larger"))
    run("fastdb train full", session)
    assert done(session) == 2


@pytest.fixture(scope="module")
def trained(make_session: Made) -> Session:
    session = make_session("cup", **SHORT, checkpoints__every_steps=1)
    assert outcome(process.start(session)) == "finished"
    return session


LONG = ("preflight.py: changed since", "optimizers.py: the stage began", "trainer.py: ")


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=pytest.mark.full if place.startswith(LONG) else (), id=re.sub(r"\W+", "_", place))
        for place in CASES
    ],
)
def test_the_remedy_works(
    place: str, trained: Session, make_session: Made, copy_here: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    CASES[place](World(copy_here(trained), make_session, monkeypatch, tmp_path))


def raised() -> Iterator[str]:
    """Each error that the package of the training raises: its module and the beginning of its text."""
    for path in sorted(Path(fastdb.training.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
                continue
            if not getattr(node.exc.func, "id", "").endswith(("Error", "Busy", "Divergence")):
                continue
            texts = [part.value for part in ast.walk(node.exc.args[0]) if isinstance(part, ast.Constant)]
            yield f"{path.name}: {next(text for text in texts if isinstance(text, str))}"


def test_every_error_has_a_case() -> None:
    """Those of divergence are in test_divergence.py, which raises a `Divergence` with a remedy of its own."""
    known = [*CASES, *ELSEWHERE]
    unknown = {error for error in raised() if not error.startswith(tuple(known)) and "ot finite" not in error}
    assert unknown == {
        "adamw8bit.py: a closure is not supported",  # of torch's interface, which no command reaches
        "loop.py: the loss of step ",
        "loop.py: the gradient of step ",
        "loop.py: the gradients of ",
        "saver.py:  in ",
    }
    here = [place for place in known if not place.startswith("models/")]
    assert all(any(error.startswith(place) for error in raised()) for place in here)
