"""Evaluations of compressed checkpoints equal those of raw ones."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from fastdb.commands import results
from fastdb.sessions.session import Session
from tests.evaluation.test_evaluate import ASKED, pictures, saved
from tests.training.test_compressed_checkpoints import twins


@pytest.mark.full
def test_packed_checkpoints_are_measured_as_raw_ones(
    kept: Path, clip: Path, dino: Path, tmp_path: Path, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    raw, packed = twins(Session.open(kept), tmp_path, mini)
    asked = {**ASKED, "seeds": 1, "checkpoints": [8, 16], "clip": str(clip), "dino": str(dino)}
    reports = [results.evaluate(session, **asked) for session in (raw, packed)]
    assert len(pictures(raw)) >= 12
    assert pictures(raw) == pictures(packed)
    assert saved(raw) == saved(packed)
    assert reports[0].measured == reports[1].measured
    before = {path: path.stat().st_mtime_ns for path in (packed.path / "evaluation").rglob("*.png")}
    give_raw(raw, packed)
    results.evaluate(packed, **asked)
    after = {path: path.stat().st_mtime_ns for path in (packed.path / "evaluation" / "pictures").rglob("*.png")}
    assert all(before[path] == changed for path, changed in after.items()), (
        "pictures of the same weights were drawn again"
    )


def give_raw(raw: Session, packed: Session) -> None:
    """Give the packed session the raw checkpoints."""
    packed.checkpoints.rename(packed.path / "packed")
    raw.checkpoints.rename(packed.checkpoints)
