"""The verb `doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from typer.testing import CliRunner

from fastdb.cli import app
from fastdb.commands import doctor as room
from fastdb.commands.doctor import doctor


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))


def test_every_part_is_tried_on_request(tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor(verify=True, root=tmp_path / "root").checks}
    assert list(checks) == ["device", "8-bit optimizer", "faces", "sessions folder", "picture"]
    assert [check.reason for check in checks.values()] == [""] * 5
    assert checks["picture"].outcome == "mini generates pictures of 64 x 64 pixels"
    assert list((tmp_path / "root").iterdir()) == []


def test_a_part_that_fails_is_named_and_the_exit_code_is_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> str:
        raise RuntimeError("no kernel image\nis available")

    for name in ("_optimize", "_detect", "_generate"):
        monkeypatch.setattr(room, name, lambda: "fine")
    monkeypatch.setattr(room, "_compute", fails)
    (tmp_path / "root").touch()
    done = CliRunner().invoke(app, ["doctor", "--verify", "--root", str(tmp_path / "root")])
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert any(" ".join(line.split()) == "device failed: no kernel image is available" for line in lines)
    assert any(line.startswith("sessions folder") and "is not a folder" in line for line in lines)
    assert "No problems found" not in done.output


def test_nothing_is_tried_or_written_without_the_request(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--root", str(tmp_path / "root")])
    assert not any(line.startswith("tried") for line in done.output.splitlines())
    assert not (tmp_path / "root").exists()
    assert "yunet_n_640_640.onnx: missing" in done.output
