"""Output to the terminal."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastdb import console
from fastdb.console import terminal
from fastdb.errors import ImageError
from fastdb.reporting import format_bytes


def test_a_fault_becomes_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, console.boundary():
        raise ImageError("is damaged", subject=Path("two\nlines.jpg"), fix="Copy it\r\nagain.")
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "error: two lines.jpg is damaged. Copy it again.\n")


def test_an_interruption_is_said_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, console.boundary():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), console.boundary():
        _ = 1 / 0
    assert capsys.readouterr() == ("", "")


def test_nothing_wrong_nothing_said(capsys: pytest.CaptureFixture[str]) -> None:
    with console.boundary():
        console.say("fine")
    assert capsys.readouterr() == ("fine\n", "")


def test_tables_are_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("name", "training"), [("dog", "unet 4/4"), ("a" * 100, "none"), ("", "")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "name" + " " * 98 + "training"
    assert lines[1] == "dog" + " " * 99 + "unet 4/4"
    assert lines[2] == "a" * 100 + "  none"
    assert lines[3] == ""
    console.table(("name", "training"), [])
    assert capsys.readouterr().out == "name  training\n"


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (100_000, "100 kB"),
        (7_513_478, "7.5 MB"),
        (217_000_000, "217 MB"),
        (3_438_000_000, "3.4 GB"),
        (12_000_000_000_000, "12000 GB"),
    ],
)
def test_sizes_are_for_people(count: int, said: str) -> None:
    assert format_bytes(count) == said


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("tqdm", [False, True])
def test_a_sign_the_terminal_lacks_is_no_reason_to_fail(encoding: str, tqdm: bool) -> None:
    script = "import fastdb.console as c\n" + "import tqdm\n" * tqdm + r"c.say('caf\u00e9 \u72ac \udcff')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": encoding, "PATH": "/usr/bin:/bin"},
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.stderr == b""
    expected = "café 犬 \udcff\n".encode(encoding, "backslashreplace")
    assert done.stdout.replace(b"\r\n", b"\n") == expected


RECORDED: list[dict[str, Any]] = [
    {"event": "plan", "lines": ["text_encoder stage: 2 steps", "images: 3 at 64 px"], "begins": "x", "stages": {}},
    {"event": "progress", "task": "latents", "done": 1, "total": 2},
    {"event": "progress", "task": "latents", "done": 2, "total": 2},
    {"event": "stage", "stage": "text_encoder", "step": 0, "steps": 2},
    {"event": "step", "stage": "text_encoder", "step": 1, "steps": 2, "loss": 1.0, "learning_rate": 1e-6},
    {"event": "step", "stage": "text_encoder", "step": 2, "steps": 2, "loss": 3.0, "learning_rate": 5e-7},
    {"event": "saved", "stage": "text_encoder", "step": 2, "path": "/s/text_encoder-000002", "seconds": 0.25},
    {"event": "stage", "stage": "unet", "step": 5, "steps": 7},
    {"event": "warning", "message": "the weather is bad"},
    {"event": "note", "kind": "checkpoint skipped", "subject": "unet-000009", "reason": "unet.packed is missing"},
    {"event": "note", "kind": "memory predicted", "subject": "unet", "reason": "weights 3.4 GB", "shares": {}},
    {"event": "note", "kind": "of a later version", "subject": "a", "reason": "b"},
    {"event": "step", "stage": "unet", "step": 6, "steps": 7, "loss": 0.5, "learning_rate": 2e-6},
    {"event": "sample", "stage": "unet", "step": 6, "path": "/s/samples/unet-000006-1.png"},
    {"event": "step", "stage": "unet", "step": 7, "steps": 7, "loss": 0.5, "learning_rate": 1e-6},
    {"event": "end", "outcome": "finished"},
]


PLAN: dict[str, Any] = {
    "event": "plan",
    "begins": "unet step 3",
    "stages": {
        "text_encoder": {"steps": 40, "done": 0, "own_steps": 40, "learning_rate": 0.001, "extensions": []},
        "unet": {
            "steps": 9,
            "done": 3,
            "own_steps": 4,
            "learning_rate": 0.0005,
            "extensions": ["5 steps, hold at 0.0001"],
        },
    },
    "joint_steps": 0,
    "joint_learning_rate": 0.001,
    "ema_decay": 0.99,
    "photos": 5,
    "resolution": 64,
    "class_images": 8,
    "class_prompts": 64,
    "captions_dropped": 0.3,
    "prompts_dropped": 0.1,
    "min_snr_gamma": 5.0,
    "device": "cpu",
    "precision": "fp32",
    "precision_reason": "as asked",
    "optimizer": "adamw",
    "optimizer_reason": "as asked",
    "save_every_steps": 50,
    "save_every_minutes": 5.0,
    "keep_every": 100,
}


def test_a_plan_is_shown_in_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    stages = PLAN["stages"]
    rest = {"steps": 0, "done": 0, "own_steps": 0, "learning_rate": 0.001, "extensions": []}
    view = console.TrainingView()
    view.show(PLAN)
    assert capsys.readouterr().out.splitlines() == [
        "Text encoder: 40 steps, learning rate 0.001 falling to 0",
        "UNet: 4 steps, learning rate 0.0005 falling to 0, then 5 steps, hold at 0.0001, resuming after step 3",
        "Result: running average of the UNet's weights (EMA), decay 0.99",
        "5 photos at 64 px, 8 class images for prior preservation from 64 prompts",
        "Captions dropped 30% of the time",
        "Prompts dropped 10% of the time",
        "Loss: Min-SNR weights, gamma 5",
        "Device: cpu in fp32 (as asked)",
        "Optimizer: adamw (as asked)",
        "Checkpoints: every 50 steps or 5 minutes, and when stopped; those at multiples of 100 are kept",
    ]
    for change, line in (
        ({"joint_steps": 4}, "Text encoder: trained with the UNet until step 4, learning rate 0.001 falling to 0"),
        ({"stages": {**stages, "text_encoder": rest}}, "Text encoder: not trained, 0 steps"),
        ({"stages": {"unet": {**stages["unet"], "done": 9}}}, "UNet: done, 9 steps"),
    ):
        view.show({**PLAN, **change})
        assert capsys.readouterr().out.splitlines()[0] == line


def test_a_training_is_shown_from_its_events(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tqdm")
    for name in ("COLUMNS", "LINES"):  # where tqdm cuts a bar
        monkeypatch.setenv(name, "200")
    view = console.TrainingView()
    for event in RECORDED:
        view.show(event)
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "text_encoder stage: 2 steps",
        "images: 3 at 64 px",
        "Saved text_encoder-000002 on this machine in 0.2 s",
        "warning: the weather is bad",
        "warning: Skipping checkpoint unet-000009: unet.packed is missing",
        "Memory of the unet stage, about: weights 3.4 GB",
        "warning: of a later version: a b",
        "Sample: /s/samples/unet-000006-1.png",
    ]
    bars = [part.strip() for part in told.err.replace("\n", "\r").split("\r") if part.strip()]
    last = {
        name: [bar for bar in bars if bar.startswith(f"{name}:")][-1] for name in ("latents", "text_encoder", "unet")
    }
    assert "2/2" in last["latents"]
    assert "2/2" in last["text_encoder"]
    assert "loss 1.1000, lr 5.00e-07" in last["text_encoder"], "a running mean, not the last step's luck"
    assert "7/7" in last["unet"]
    assert "loss 0.5000" in last["unet"], "the mean begins anew with each stage"
    assert any("5/7" in bar for bar in bars), "a stage that goes on begins where it was"
    view.show(RECORDED[4])
    view.close()
    view.close()


def test_every_kind_of_note_has_a_sentence() -> None:
    missing = []
    for path in Path(console.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Note":
                kind = node.args[0]
                if isinstance(kind, ast.Constant) and kind.value not in console.SENTENCES:
                    missing.append(f"{path.name}:{node.lineno} {kind.value}")
    assert missing == []


@pytest.mark.parametrize("kind", ["", "later", "open", "task", "bar", "smooth", "_init__", "show", "close"])
def test_kinds_of_later_versions_are_passed_over(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`open` and `task` once ran into the view's own insides."""
    view = console.TrainingView()
    view.show({"event": kind, "time": 1.0, "what": "ever"})
    for event in RECORDED[:2]:
        view.show(event)
    view.close()
    assert capsys.readouterr().out.startswith("text_encoder stage")


def test_a_bar_counts_to_its_total(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with console.bar("crop", "photo") as update:
        for done in (1, 2, 5):
            update(done, 5)
    assert "crop: 100%" in screen.getvalue()
    assert "5/5" in screen.getvalue()


def test_a_notebook_gets_a_line_that_is_rewritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bars of tqdm flood a browser that reconnects; it gets at most one message in two seconds."""
    clock = [0.0]
    monkeypatch.setattr(terminal, "notebook_kernel", object)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with console.bar("download", "B") as update:
        for tenth in range(1, 101):
            clock[0] = tenth / 10
            update(tenth * 1_000_000, 100_000_000)
            if tenth == 50:
                console.say("a line above")
    out = capsys.readouterr().out
    assert out.count("\rdownload: ") == 6
    lines = [line.split("\r")[-1].strip() for line in out.split("\n") if line]
    assert lines == ["a line above", "download: 100 MB of 100 MB"]


# tqdm's own finalizer stumbles over the bar that was never finished.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_while_a_bar_is_made_leaves_the_console_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stop button pressed while a widget was being made once left a bar that no later line could be written over."""
    from tqdm import tqdm

    from fastdb.console import TrainingView, say

    view, honest = TrainingView(), tqdm.refresh

    def interrupted(self: object, *_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tqdm, "refresh", interrupted)
    with pytest.raises(KeyboardInterrupt):
        view.show({"event": "stage", "stage": "unet", "step": 0, "steps": 5})
    say("Stopping: saving a checkpoint first")
    monkeypatch.setattr(tqdm, "refresh", honest)
    view.show({"event": "step", "stage": "unet", "step": 1, "steps": 5, "loss": 1.0, "learning_rate": 1e-6})
    view.close()
    said = capsys.readouterr()
    assert "Stopping: saving a checkpoint first\n" in said.out
    assert "1/5" in said.err


def test_a_progress_of_bytes_is_shown_in_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    view = console.TrainingView()
    for done in (0, 250_000_000, 500_000_000):
        view.show({"event": "progress", "task": "publish unet-000004", "done": done, "total": 500_000_000, "unit": "B"})
    view.close()
    bar = capsys.readouterr().err
    assert "500M/500M" in bar
    assert "B/s" in bar
    assert "it/s" not in bar


def test_a_plan_of_a_version_with_and_without_sentences_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    view = console.TrainingView()
    view.show(PLAN)
    typed = capsys.readouterr().out
    view.show({**PLAN, "lines": ["unet: 3 of 9 steps done"]})
    assert capsys.readouterr().out == typed
    view.show({"event": "plan", "lines": ["UNet: 9 steps"], "begins": "x", "stages": {"unet": {"steps": 9}}})
    assert capsys.readouterr().out == "UNet: 9 steps\n"
