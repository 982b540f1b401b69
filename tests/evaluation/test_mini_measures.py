"""Figures of the drawn world on known pictures, and a whole evaluation on mini."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from PIL import Image

from fastdb import interactive
from fastdb.checkpoints.retention import retention
from fastdb.commands import results
from fastdb.errors import ConfigError, ModelError
from fastdb.evaluation.intervals import share_difference
from fastdb.evaluation.measures import Taken, Value, values_of
from fastdb.evaluation.mini_measures import COLOURED, Drawn, drawn_protocol
from fastdb.evaluation.prompts import Protocol, Words
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import write_record
from fastdb.world.draw import draw
from fastdb.world.scene import BACKGROUNDS, COLOURS, parse_prompt, random_scene
from fastdb.world.subjects import SUBJECTS, Subject

MUG = SUBJECTS["mug"]
WORDS = Words(("a photo of sks mug",), "sks", "mug")


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


def values(picture: Callable[[str, str, int], Image.Image], subject: Subject = MUG) -> dict[str, float]:
    """Return the figures of pictures drawn by group, prompt and seed."""
    shots = drawn_protocol(WORDS, subject, 1).shots()
    found = Drawn(subject).read([Taken(shot, picture(shot.group, shot.prompt, n)) for n, shot in enumerate(shots)])
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

    share = sum("striped" in text or "plain" in text for text in prompts(drawn_protocol(WORDS, MUG, 1))["others"]) / 24
    assert 0.4 < share < 0.6
    assert values(with_wrong_texture)["others"] == pytest.approx(values(perfect)["others"] - share, abs=0.1)


def test_others_kept_is_a_fraction_of_the_base() -> None:
    start = values_of({"others": {number: number < 20 for number in range(24)}})
    now = values_of({"others": {number: number < 15 for number in range(24)}})
    kept = Drawn(MUG).compare(now, start)["others_kept"]
    low, high = share_difference([number < 15 for number in range(24)], [number < 20 for number in range(24)])
    assert (kept.mean, kept.count) == (pytest.approx(0.75), 24)
    assert (kept.low, kept.high) == (pytest.approx(1 + low * 1.2), pytest.approx(1 + high * 1.2))
    assert Drawn(MUG).compare(now, {"others": Value(0.0)}) == {}
    assert str(Drawn(MUG).compare(start, start)["others_kept"]) == "1.000", "by definition"
    assert Drawn(MUG).compare({}, {}) == {}


@pytest.mark.parametrize("name", list(SUBJECTS))
def test_the_protocol_covers_the_vocabulary(name: str) -> None:
    subject = SUBJECTS[name]
    protocol = drawn_protocol(Words((f"a photo of sks {subject.shape}",), "sks", subject.shape), subject, 4)
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
    assert "Evaluating step 0, step 4, step 8; measured by the drawn world's readings, subject: mug" in output
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


def test_the_drawn_measure_refuses_other_photos(kept: Path, sessions_folder: Path) -> None:
    session = Session.open(shutil.copytree(kept, sessions_folder / "cup"))
    with pytest.raises(
        ConfigError, match=r"^cup: the instance images show no subject of the drawn world\. .*fastdb export cup$"
    ):
        results.evaluate(session, measure="drawn")


def test_photos_that_mini_does_not_know_are_compared_by_clip_with_a_remedy_that_needs_no_network(
    kept: Path, sessions_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session.open(shutil.copytree(kept, sessions_folder / "cup"))
    record = session.record.base_model.model_copy(update={"folder": "mini"})
    write_record(session.path, session.record.model_copy(update={"base_model": record}))
    with pytest.raises(ModelError) as caught:
        interactive.evaluate(session, clip=str(sessions_folder / "clip"))
    line = str(caught.value)
    assert line.startswith(f"{sessions_folder / 'clip'}: the folder does not exist. Pass --clip the folder of a saved")
    assert line.endswith("or export without an evaluation: fastdb export cup")
    assert "--measure" not in line
    assert "show no subject of mini's drawn world; they are compared by CLIP" in capsys.readouterr().out
    assert len(interactive.export(session, formats=["ckpt"])) == 1


def test_more_pictures_decide(drawn: Path, sessions_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both checkpoints are hardly trained and equally good; a few pictures do not show that."""
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

    interactive.evaluate(session, **asked, until_decided=True, at_most=45)  # type: ignore[arg-type]
    output = capsys.readouterr().out
    assert "Undecided between step 4, step 8. Drawing up to 40 pictures," in output
    more = "fastdb evaluate mug --seeds 1 --until-decided --at-most 90 --steps 1"
    assert f"45 pictures of each do not tell them apart. To draw more: {more}\n" in output
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
