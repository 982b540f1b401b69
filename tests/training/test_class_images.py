"""Class images are functions of their number and train with their own prompt."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from PIL import Image

from fastdb.checkpoints.progress import standing
from fastdb.errors import ImageError, TrainingError
from fastdb.inference.engine import Engine
from fastdb.inference.request import Request, group_size
from fastdb.models.diffusers_folder import open_base_model
from fastdb.reporting import Note
from fastdb.runtime.device import choose_device
from fastdb.sessions.session import Session
from fastdb.training.batches import Batches
from fastdb.training.class_images import class_images
from tests.training.conftest import result
from tests.training.test_trainer import Life, at

Made = Callable[..., Session]

PROMPTS = ("a photo of a mug", "a photo of a red house", "a fish")
FEW: dict[str, Any] = {"text_encoder__steps": 0, "unet__steps": 1, "prior__steps": 2, "prior__prompts": PROMPTS}


@pytest.fixture(scope="module")
def engine(mini: Path) -> Engine:
    return Engine.from_base(open_base_model(mini), device=choose_device())


class Drawing:
    """Makes class images with an engine and notes what it was asked for; `stop_after` groups it is told to stop."""

    def __init__(self, engine: Engine, stop_after: int = 1000) -> None:
        self.engine, self.stop_after = engine, stop_after
        self.asked: list[Sequence[Request]] = []
        self.done: list[tuple[int, int]] = []

    def generate_together(self, requests: Sequence[Request]) -> list[Image.Image]:
        self.asked.append(requests)
        return self.engine.generate_together(requests)

    def made(self, session: Session) -> dict[str, str]:
        """The class images by name with their prompts."""
        found, self.note = class_images(
            session,
            lambda: self,  # type: ignore[arg-type, return-value]
            lambda done, total: self.done.append((done, total)),
            lambda: len(self.asked) >= self.stop_after,
        )
        return {image.path.name: image.prompt for image in found}


def pictures(session: Session) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in session.class_images.glob("*.png")}


def test_prompts_take_turns_by_number(make_session: Made, engine: Engine) -> None:
    session, drawing = make_session("turns", prior__class_images=10, **FEW), Drawing(engine)
    made = drawing.made(session)
    assert list(made.values()) == [PROMPTS[number % 3] for number in range(10)]
    assert drawing.done == [(number, 10) for number in range(1, 11)]
    for name, prompt in made.items():
        with Image.open(session.class_images / name) as picture:
            assert picture.info["parameters"].splitlines()[0] == prompt
    again = Drawing(engine)
    assert again.made(session) == made
    assert again.asked == []


def test_each_depends_on_its_number_alone(make_session: Made, engine: Engine) -> None:
    """Made straight through, stopped in between, half lost, fewer wanted, a person's own among them: the same bytes."""
    settings = {**FEW, "prior__class_images": 10}
    assert group_size(64) == 8
    session = make_session("whole", **settings)
    Drawing(engine).made(session)
    whole = pictures(session)
    assert len(set(whole.values())) == 10

    stopped = make_session("stopped", **settings)
    assert len(Drawing(engine, stop_after=1).made(stopped)) == 8
    for number in (2, 3, 7):
        (stopped.class_images / f"class-{number:04d}.png").unlink()
    drawing = Drawing(engine)
    assert len(drawing.made(stopped)) == 10
    assert drawing.done[-1] == (5, 5)
    assert pictures(stopped) == whole

    fewer = make_session("fewer", **{**settings, "prior__class_images": 3})
    shutil.copy(next(session.originals.glob("cup.png")), fewer.class_images / "a_cup.png")
    Drawing(engine).made(fewer)
    made = pictures(fewer)
    del made["a_cup.png"]
    assert made == {name: whole[name] for name in ("class-0001.png", "class-0002.png")}


def test_a_persons_own_pictures_are_said_by_their_caption_file_or_the_first_prompt(
    make_session: Made, engine: Engine, photos: list[Path]
) -> None:
    session = make_session("own", prior__class_images=4, **FEW)
    for name in ("cat.png", "cup.png", "class-0002.png"):
        shutil.copy(photos[0], session.class_images / name)
    (session.class_images / "cat.txt").write_text("\ufeffa photo of\n a cat \n", encoding="utf-8")
    made = Drawing(engine).made(session)
    assert made == {
        "cat.png": "a photo of a cat",
        "class-0001.png": PROMPTS[0],
        "class-0002.png": PROMPTS[0],  # It only has the name of a generated one, and is not taken for one.
        "cup.png": PROMPTS[0],
    }
    (session.class_images / "class-0001.txt").write_text("a mug that leans")
    assert Drawing(engine).made(session)["class-0001.png"] == "a mug that leans"
    (session.class_images / "cat.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ImageError, match=r"cat\.txt: the caption is not UTF-8"):
        Drawing(engine).made(session)


@pytest.mark.parametrize(
    ("change", "foreign"),
    [
        ({"prior.guidance": 3.0}, 3),
        ({"prior.steps": 3}, 3),
        ({"seed": 12}, 3),
        ({"prior.prompts": [PROMPTS[0], "a boat", PROMPTS[2]]}, 1),
        ({"prior.weight": 0.5, "prior.batch_size": 2}, 0),
    ],
)
def test_those_made_otherwise_are_set_aside(
    make_session: Made, engine: Engine, change: dict[str, Any], foreign: int
) -> None:
    session = make_session("otherwise", prior__class_images=3, **FEW)
    Drawing(engine).made(session)
    before, drawing = pictures(session), Drawing(engine)
    drawing.made(session.with_config(session.config.changed(change)))
    kept = {name for name, data in pictures(session).items() if before[name] == data}
    assert (len(pictures(session)), len(kept)) == (3, 3 - foreign)
    expected = Note("class images set aside", "set-aside-1", str(foreign)) if foreign else None
    assert drawing.note == expected


def test_as_many_at_once_as_memory_for_four_large_ones_takes() -> None:
    assert [group_size(side) for side in (64, 256, 384, 512, 768, 1024, 2048)] == [8, 8, 7, 4, 1, 1, 1]


def test_each_is_trained_with_its_own_prompt(make_session: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_session("captions", **{**FEW, "unet__steps": 4}, prior__class_images=4, prior__batch_size=3)
    honest, seen = Batches.at, []

    def noted(self: Batches, step: int, microbatch: int) -> Any:
        batch = honest(self, step, microbatch)
        seen.append((batch.instances, batch.prompts))
        return batch

    monkeypatch.setattr(Batches, "at", noted)
    life = Life(session)
    assert life.run() == "finished"
    plan = life.said("plan")[0]
    assert (plan["class_images"], plan["class_prompts"]) == (4, 3)
    assert {instances for instances, _ in seen} == {1}
    assert {len(prompts) for _, prompts in seen} == {4}
    assert {prompts[0] for _, prompts in seen} == {"a photo of sks cup"}
    # 12 rows are three epochs of four images, two of which have the first prompt.
    of_class = [prompt for _, prompts in seen for prompt in prompts[1:]]
    assert {prompt: of_class.count(prompt) for prompt in PROMPTS} == {PROMPTS[0]: 6, PROMPTS[1]: 3, PROMPTS[2]: 3}


@pytest.mark.full
def test_training_with_several_prompts_goes_on_exactly(make_session: Made) -> None:
    settings: dict[str, Any] = {
        "text_encoder__steps": 2,
        "unet__steps": 4,
        "prior__class_images": 9,
        "prior__steps": 2,
        "prior__prompts": PROMPTS,
        "prior__batch_size": 2,
        "min_snr_gamma": 5.0,
    }
    one, other = (make_session(f"several{number}", **settings) for number in range(2))
    assert Life(one).run() == "finished"
    stop = Life(other, until=lambda event: event["event"] == "progress" and event["done"] == 3)
    assert stop.run() == "stopped"
    assert Life(other, until=at("text_encoder", 1)).run() == "stopped"
    assert Life(other, until=at("unet", 2)).run() == "stopped"
    assert Life(other).run() == "finished"
    assert result(one) == result(other)


def test_a_caption_that_changed_is_noticed(make_session: Made) -> None:
    session = make_session("caption", **{**FEW, "unet__steps": 3}, prior__class_images=2)
    assert Life(session, until=at("unet", 1)).run() == "stopped"
    assert standing(session).checkpoints["unet"].step == 1
    (session.class_images / "class-0002.txt").write_text("a photo of a blue house")
    with pytest.raises(TrainingError, match="changed since step 1 of the unet stage: the class prompt"):
        Life(session).run()
    (session.class_images / "class-0002.txt").unlink()
    assert Life(session).run() == "finished"
