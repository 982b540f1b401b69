"""Figures of the drawn world on known pictures, and a whole evaluation on mini."""

from __future__ import annotations

import json
import random
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from PIL import Image

from fastdb import interactive
from fastdb.checkpoints.retention import retention
from fastdb.errors import ModelError
from fastdb.evaluation.prompts import Protocol, custom_protocol, drawn_protocol
from fastdb.images.photo_files import photos_in
from fastdb.images.photos import save_png
from fastdb.measures.drawn import Drawn, autoencoder
from fastdb.measures.intervals import share_difference
from fastdb.measures.shots import COLOURED
from fastdb.measures.values import Taken, Value, values_of
from fastdb.measures.words import Words
from fastdb.models.registry import MINI
from fastdb.models.resolve import resolve_base
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import write_record
from fastdb.world.draw import draw
from fastdb.world.readings import to_tensor
from fastdb.world.scene import BACKGROUNDS, COLOURS, parse_prompt, random_scene
from fastdb.world.subjects import SUBJECTS, Subject

MUG = SUBJECTS["mug"]
WORDS = Words(("a photo of sks mug",), "sks", "mug")


@cache
def measure() -> Drawn:
    """Return the measure of the mug."""
    return Drawn(MUG.photos(), "mug", autoencoder(resolve_base(MINI).folder))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the drawn world, and no photos on mini, need a network."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was tried")

    def connect(used: socket.socket, address: object) -> None:
        refuse() if isinstance(address, tuple) else real(used, address)  # type: ignore[arg-type]

    real = socket.socket.connect
    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def prompts(protocol: Protocol) -> dict[str, tuple[str, ...]]:
    return {group.name: group.prompts for group in protocol.groups}


def ideal(prompt: str, seed: int) -> Image.Image:
    """Draw the content of a prompt, with random choices where it leaves them open."""
    asked, scene = parse_prompt(prompt), random_scene(random.Random(seed))
    colour, background = asked.colour or scene.colour_name, asked.background or scene.background_name
    assert asked.shape is not None
    return draw(
        replace(
            scene,
            shape=asked.shape,
            colour=COLOURS[colour],
            background=BACKGROUNDS[background],
            texture=asked.texture or scene.texture,
            decoration=None,
        )
    )


def subject_on(prompt: str, subject: Subject) -> Image.Image:
    """Draw the subject on the background of a prompt."""
    asked = parse_prompt(prompt)
    return draw(subject.scene(asked.background or "white", asked.texture or "plain"))


def values(picture: Callable[[str, str, int], Image.Image]) -> dict[str, float]:
    """Return the figures of pictures drawn by group, prompt and seed, after the autoencoder."""
    shots = drawn_protocol(WORDS, "mug", 1).shots()
    drawn = [picture(shot.group, shot.prompt, number) for number, shot in enumerate(shots)]
    subject = measure().subject
    assert subject is not None
    pixels = ((subject.round_trip(to_tensor(drawn)) + 1) * 127.5).round().byte()
    pictures = [Image.fromarray(array.numpy()) for array in pixels.permute(0, 2, 3, 1)]
    found = measure().read([Taken(shot, one) for shot, one in zip(shots, pictures, strict=True)])
    assert len(found.pictures) == len(shots)
    return {name: value.mean for name, value in found.values.items()}


def perfect(group: str, prompt: str, seed: int) -> Image.Image:
    return subject_on(prompt, MUG) if group in ("subject", "context") else ideal(prompt, seed)


def test_a_perfect_checkpoint_has_perfect_figures() -> None:
    found = values(perfect)
    assert found["leak"] == found["coloured_leak"] == 0
    assert found["subject"] == 1
    assert min(found["subject_class"], found["both"], found["background"]) >= 0.9
    assert found["others"] >= 0.9


def test_a_checkpoint_that_shows_the_subject_everywhere_leaks() -> None:
    found = values(lambda group, prompt, seed: subject_on(prompt, MUG))
    assert (found["subject"], found["leak"], found["coloured_leak"], found["others"]) == (1, 1, 1, 0)


def test_an_untrained_checkpoint_shows_no_subject() -> None:
    found = values(lambda group, prompt, seed: ideal(prompt, seed))
    assert (found["subject"], found["both"], found["leak"]) == (0, 0, 0)
    assert found["subject_class"] >= 0.9, "it is a mug, though another one"
    assert found["background"] >= 0.9


def test_copies_of_an_instance_image_ignore_the_prompt() -> None:
    found = values(lambda group, prompt, seed: MUG.photos()[0])
    assert found["subject"] == 1
    assert found["both"] <= 0.2
    assert found["background"] <= 0.1


def test_another_subject_does_not_count() -> None:
    found = values(lambda group, prompt, seed: subject_on(prompt, SUBJECTS["fish"]))
    assert (found["subject"], found["subject_class"], found["leak"]) == (0, 0, 0)


def test_each_attribute_of_the_others_counts() -> None:
    def wrong(prompt: str, seed: int, **changes: str) -> Image.Image:
        for old, new in changes.items():
            prompt = prompt.replace(old, new)
        return ideal(prompt, seed)

    def with_wrong_texture(group: str, prompt: str, seed: int) -> Image.Image:
        return wrong(prompt, seed, striped="dotted", plain="checkered") if group == "others" else ideal(prompt, seed)

    share = (
        sum("striped" in text or "plain" in text for text in prompts(drawn_protocol(WORDS, "mug", 1))["others"]) / 24
    )
    assert 0.4 < share < 0.6
    assert values(with_wrong_texture)["others"] == pytest.approx(values(perfect)["others"] - share, abs=0.1)


def test_others_kept_is_a_fraction_of_the_base() -> None:
    start = values_of({"others": {number: number < 20 for number in range(24)}})
    now = values_of({"others": {number: number < 15 for number in range(24)}})
    kept = measure().compare(now, start)["others_kept"]
    low, high = share_difference([number < 15 for number in range(24)], [number < 20 for number in range(24)])
    assert (kept.mean, kept.count) == (pytest.approx(0.75), 24)
    assert (kept.low, kept.high) == (pytest.approx(1 + low * 1.2), pytest.approx(1 + high * 1.2))
    assert measure().compare(now, {"others": Value(0.0)}) == {}
    assert str(measure().compare(start, start)["others_kept"]) == "1.000", "by definition"
    assert measure().compare({}, {}) == {}


@pytest.mark.parametrize("name", list(SUBJECTS))
def test_the_protocol_covers_the_vocabulary(name: str) -> None:
    subject = SUBJECTS[name]
    protocol = drawn_protocol(Words((f"a photo of sks {subject.shape}",), "sks", subject.shape), subject.shape, 4)
    found = {group: [parse_prompt(prompt) for prompt in texts] for group, texts in prompts(protocol).items()}
    assert {group: len(set(said)) for group, said in found.items()} == {
        "subject": 1,
        "context": 16,
        "class": 1,
        COLOURED: 8,
        "others": 24,
    }
    for group in ("subject", "context", "class", COLOURED):
        assert {asked.shape for asked in found[group]} == {subject.shape}
    assert all("sks" in prompt for group in ("subject", "context") for prompt in prompts(protocol)[group])
    for group in ("class", COLOURED, "others"):
        assert not any("sks" in prompt for prompt in prompts(protocol)[group])
    assert sorted(asked.background or "" for asked in found["context"]) == sorted([*BACKGROUNDS] * 2)
    assert {asked.colour for asked in found[COLOURED]} == set(COLOURS)
    others = found["others"]
    assert len({asked.shape for asked in others}) == 9
    assert subject.shape not in {asked.shape for asked in others}
    assert None not in {part for asked in others for part in (asked.colour, asked.background, asked.texture)}
    assert {asked.colour for asked in others} == set(COLOURS)
    assert {asked.background for asked in others} == set(BACKGROUNDS)
    assert len(protocol.shots()) == 16 + 64 + 16 + 32 + 96


def test_a_session_on_mini_is_measured_by_readings(
    drawn: Path, sessions_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session.open(shutil.copytree(drawn, sessions_folder / "mug"))
    evaluation = interactive.evaluate(session, seeds=1, steps=4)
    output = capsys.readouterr().out
    about = "the drawn world's readings, made from 5 instance images: 6 regions"
    assert f"Evaluating step 0, step 4, step 8; measured by {about}" in output
    assert [group.name for group in evaluation.protocol.groups] == ["subject", "context", "class", COLOURED, "others"]
    saved = json.loads((session.path / "evaluation" / "evaluation.json").read_text())
    for checkpoint in saved["checkpoints"]:
        assert {"subject", "subject_class", "both", "leak", "coloured_leak", "others"} <= set(checkpoint["figures"])
        assert len(checkpoint["pictures"]) == 56
        present = [line["present"] for line in checkpoint["pictures"] if line["group"] == "class"]
        assert checkpoint["figures"]["leak"]["mean"] == sum(present) / 4
    assert sorted(path.name for path in (session.path / "evaluation").iterdir()) == [
        "curves.png",
        "evaluation.json",
        "grid.png",
        "pictures",
    ]


def test_the_mark_counts() -> None:
    def without_mark(group: str, prompt: str, seed: int) -> Image.Image:
        asked = parse_prompt(prompt)
        place = MUG.scene(asked.background or "white", asked.texture or "plain")
        return draw(replace(place, figure=MUG.figure[:-1]))

    found = values(without_mark)
    assert (found["subject"], found["both"], found["leak"]) == (0, 0, 0)
    assert found["subject_class"] == 1


def test_photos_that_are_not_drawn_are_compared_by_nearness_without_a_network(
    kept: Path, sessions_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session.open(shutil.copytree(kept, sessions_folder / "cup"))
    record = session.record.base_model.model_copy(update={"folder": "mini"})
    write_record(session.path, session.record.model_copy(update={"base_model": record}))
    evaluation = interactive.evaluate(session, checkpoints=[16], seeds=1, steps=1)
    output = capsys.readouterr().out
    assert output.startswith("Preparing the evaluation of cup\n")
    assert output.count("The instance images show no object of the drawn world") == 1
    assert "To compare by CLIP: fastdb evaluate cup --measure clip" in output
    assert {"near", "leak", "others"} <= set(evaluation.measured[-1].values)
    assert not {"subject", "both", "subject_class"} & set(evaluation.measured[-1].values), "cup is no class of it"
    assert evaluation.measure.endswith("nearness to 3 instance images")


def test_the_clip_that_a_message_names_is_tried_with_a_remedy_that_needs_no_network(
    kept: Path, sessions_folder: Path
) -> None:
    session = Session.open(shutil.copytree(kept, sessions_folder / "cup"))
    with pytest.raises(ModelError) as caught:
        interactive.evaluate(session, measure="clip", clip=str(sessions_folder / "clip"))
    line = str(caught.value)
    assert line.startswith(f"{sessions_folder / 'clip'}: the folder does not exist. Pass --clip the folder of a saved")
    assert line.endswith("or export without an evaluation: fastdb export cup")
    assert len(interactive.export(session, formats=["ckpt"])) == 1


def test_copies_of_photos_are_near(photos: list[Path]) -> None:
    images = [Image.open(path).convert("RGB").resize((64, 64)) for path in photos]
    found = Drawn(images, "cup", lambda pictures: pictures)
    assert found.subject is None
    shots = custom_protocol(["a photo of sks cup", "a photo of cup"], WORDS, 3).shots()
    far = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    read = found.read([Taken(shot, images[n % 3] if shot.group != "others" else far) for n, shot in enumerate(shots)])
    assert [line["present"] for line in read.pictures] == [shot.group != "others" for shot in shots]


def test_a_subject_that_the_package_does_not_contain_is_read(
    drawn: Path, sessions_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The photos of the trained session are replaced; only what they show is read."""
    session = Session.open(shutil.copytree(drawn, sessions_folder / "mug"))
    fills = {"#10a0a0": "#7838c8", "#f08418": "#faf8f0"}
    figure = tuple(replace(layer, fill=fills.get(layer.fill, layer.fill)) for layer in MUG.figure)
    for path, photo in zip(photos_in(session.instance_images), replace(MUG, figure=figure).photos(), strict=True):
        save_png(photo, path)
    evaluation = interactive.evaluate(session, checkpoints=[8], seeds=1, steps=1)
    output = capsys.readouterr().out
    assert "made from 5 instance images: 6 regions" in output
    assert "no object of the drawn world" not in output
    assert evaluation.measured[-1].values["subject"].count == 4


def test_more_pictures_decide(
    drawn: Path, sessions_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both checkpoints are hardly trained and equally good; a few pictures do not show that."""
    monkeypatch.setattr("fastdb.evaluation.choose.MARGIN", 0.15)  # for which fewer pictures are enough
    session = Session.open(shutil.copytree(drawn, sessions_folder / "mug"))
    asked = {"seeds": 1, "steps": 1}
    first = interactive.evaluate(session, **asked)  # type: ignore[arg-type]
    output = capsys.readouterr().out
    assert "undecided between step 4 and step 8" in output
    command = re.findall(r"To decide draw more pictures: (fastdb .*)", output)
    assert command == ["fastdb evaluate mug --seeds 1 --until-decided --steps 1"]
    assert "Export step 4 with: fastdb export mug --step 4\n" in output
    saved = json.loads((session.path / "evaluation" / "evaluation.json").read_text())
    assert (saved["picked"]["step"], saved["picked"]["undecided"]) == (4, [4, 8])
    assert [retention(session).keeps("unet", step) for step in (3, 4, 8)] == [False, True, True]

    with monkeypatch.context() as full:
        full.setattr("fastdb.evaluation.evaluate.shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=9)))
        interactive.evaluate(session, **asked, until_decided=True)  # type: ignore[arg-type]
    output = capsys.readouterr().out
    assert "Not drawing more pictures of step 4, step 8: they need " in output
    assert "To draw more: " not in output

    interactive.evaluate(session, **asked, until_decided=True, at_most=45)  # type: ignore[arg-type]
    output = capsys.readouterr().out
    assert "Undecided between step 4, step 8. Drawing up to 40 pictures," in output
    more = "fastdb evaluate mug --seeds 1 --until-decided --at-most 90 --steps 1"
    assert f"Up to 45 pictures of each do not decide. To draw more: {more}\n" in output
    monkeypatch.setattr("fastdb.evaluation.choose.MARGIN", 0.25)
    found = interactive.evaluate(session, **asked, until_decided=True)  # type: ignore[arg-type]
    output = capsys.readouterr().out
    assert (found.picked.label, found.picked.undecided) == ("step 4", ())
    assert "ndecided between step 4 and step 8" not in output
    saved = json.loads((session.path / "evaluation" / "evaluation.json").read_text())
    assert saved["picked"]["undecided"] == []
    base, *others = saved["checkpoints"]
    assert len(base["pictures"]) == len(first.measured[0].pictures) == 56
    counts = {len(one["pictures"]) for one in others}
    assert min(counts) > 56
    assert max(one["figures"]["subject"]["count"] + one["figures"]["both"]["count"] for one in others) <= 256
    assert {one["figures"]["leak"]["count"] for one in others} == {4}, "the subject only"
