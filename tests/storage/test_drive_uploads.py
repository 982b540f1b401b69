"""Upload state as Google Drive's mount reports it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdb.config import Config
from fastdb.interactive import show
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import BaseModelRecord
from fastdb.storage.drive_uploads import waits_for_upload
from tests.checkpoints.test_drive_faults import put
from tests.faultfs.mount import Mount
from tests.faultfs.upload import Slow


def test_what_waits_for_its_upload_is_told_until_it_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Mount(tmp_path, Slow(0, rate=0)) as drive:
        base = BaseModelRecord(folder="mini", fingerprint="0" * 64)
        session = Session.create("cup", base_model=base, config=Config(), root=drive.path)
        for step in range(1, 5):
            put(session.checkpoints, step)
        (session.path / "cup.ckpt").write_bytes(b"export")
        show(session)
        said = " ".join(capsys.readouterr().out.split())
        assert (
            "not uploaded unet-000004, unet-000003, unet-000002 and 3 more: Google Drive has not uploaded them yet"
            in said
        )
        assert waits_for_upload(session.path / "cup.ckpt")
        drive.settle()
        show(session)
        assert "not uploaded" not in capsys.readouterr().out
        assert not waits_for_upload(session.path)


def test_an_ordinary_disk_tells_nothing(tmp_path: Path) -> None:
    put(tmp_path, 1)
    assert not waits_for_upload(tmp_path)
    assert not waits_for_upload(tmp_path / "gone")
