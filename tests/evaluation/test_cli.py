"""`fastdb evaluate` on the command line, its options and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from fastdb.cli import app
from fastdb.commands import results
from fastdb.sessions.session import Session


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", *map(str, arguments)])
    return int(ended.value.code or 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that the command passes on instead of evaluating."""
    found: list[Any] = []

    def evaluate(*given: Any, report: Any, **named: Any) -> None:
        found.append((given, named))

    monkeypatch.setattr(results, "evaluate", evaluate)
    monkeypatch.setattr("fastdb.cli.results.show_evaluation", lambda evaluation: None)
    return found


def test_every_option_reaches_the_evaluation(asked: list[Any], tmp_path: Path) -> None:
    options = [
        "--checkpoints",
        "500, 1000",
        "--seeds",
        "8",
        "--first-seed",
        "7",
        "--until-decided",
        "--at-most",
        "99",
        "--prompt",
        "a cup",
        "--prompt",
        "a dog",
        "--measure",
        "clip",
    ]
    options += ["--clip", "some/clip", "--dino", "some/dino", "--steps", "12", "--guidance", "3", "--sampler", "DDIM"]
    assert run("cup", *options, "--file", tmp_path / "cup.safetensors") == 2, "a file has no checkpoints"
    assert run("cup", "--file", tmp_path / "cup.safetensors") == 0
    assert asked.pop()[1]["file"] == tmp_path / "cup.safetensors"
    assert run("cup", *options, "--root", tmp_path) == 0
    assert asked == [
        (
            ("cup",),
            {
                "checkpoints": [500, 1000],
                "seeds": 8,
                "first_seed": 7,
                "until_decided": True,
                "at_most": 99,
                "prompts": ["a cup", "a dog"],
                "measure": "clip",
                "clip": "some/clip",
                "dino": "some/dino",
                "steps": 12,
                "guidance": 3.0,
                "sampler": "DDIM",
                "file": None,
                "root": tmp_path,
            },
        )
    ]


def test_omitted_options_have_defaults(asked: list[Any]) -> None:
    assert run("cup") == 0
    assert run("cup", "--checkpoints", "all") == 0
    assert asked[0] == asked[1]
    given = asked[0][1]
    assert (given["checkpoints"], given["seeds"], given["prompts"], given["measure"]) == (None, 4, (), "auto")
    left = {"clip", "dino", "steps", "guidance", "sampler", "file"}
    assert {name for name, value in given.items() if value is None} == left | {"checkpoints"}


@pytest.mark.parametrize("text", ["last", "1.5", "-3", "", "10,x", "¹"])
def test_an_invalid_list_of_steps_is_refused(text: str, asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cup", "--checkpoints", text) == 2
    assert capsys.readouterr().err == (f"error: checkpoints {text!r} is not a list of steps. Write 500,1000 or all.\n")
    assert asked == []


def test_errors_are_a_single_line(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = {
        ("cpu",): "error: cpu: there is no session of this name in ",
        ("cup", "--checkpoints", "15"): "error: cup has no checkpoint of the UNet stage at step 15.",
        ("cup", "--sampler", "Oiler"): "error: sampler 'Oiler': there is no such sampler. Did you mean Euler?",
        ("cup", "--clip", "/nowhere"): "error: /nowhere: the folder does not exist. Pass --clip the folder of a saved",
    }
    for arguments, line in mistakes.items():
        assert run(*arguments) == 2, arguments
        message = capsys.readouterr().err
        assert message.startswith(line), message
        assert len(message.splitlines()) == 1
    assert not (session.path / "evaluation").exists()
