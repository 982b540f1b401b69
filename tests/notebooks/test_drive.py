"""Mounting of Google Drive and its errors."""

from __future__ import annotations

import os
import re

import pytest

from fastdb.errors import StorageError
from fastdb.notebook import open_drive
from fastdb.runtime import drive
from fastdb.runtime.paths import sessions_root


def test_elsewhere_there_is_no_drive_and_that_is_no_error(monkeypatch):
    monkeypatch.setattr(drive.paths, "DRIVES", ())
    assert drive.mount_drive() is None
    assert drive.leave_drive() is False


def test_drive_is_mounted_and_sessions_live_there(colab, capsys):
    assert drive.mount_drive() == colab.mountpoint / "MyDrive"
    assert colab.asked == [f"consent for {colab.mountpoint}"]
    assert sessions_root() == colab.mountpoint / "MyDrive" / "Fast-Dreambooth" / "Sessions"
    open_drive()
    said = capsys.readouterr().out
    *lines, free = said.splitlines()
    assert lines == [f"Google Drive: {colab.mountpoint / 'MyDrive'}", f"No sessions in {sessions_root()}"]
    assert re.fullmatch(rf".+ of .+ free on the disk of {re.escape(str(sessions_root()))}", free)


def test_a_drive_that_is_mounted_asks_for_no_consent_again(colab):
    (colab.mountpoint / "MyDrive").mkdir(parents=True)
    assert drive.mount_drive() == colab.mountpoint / "MyDrive"
    assert colab.asked == []


def test_the_classic_mount_counts_too(colab):
    classic = drive.paths.DRIVES[1]
    classic.mkdir(parents=True)
    assert drive.mount_drive() == classic
    assert colab.asked == []


def test_a_mount_whose_other_end_died_is_mounted_again(colab, monkeypatch):
    """Errno 107: the folder is there, and looking at it fails."""
    real = os.stat
    dead = [True]

    def stat(path, *arguments, **named):
        if dead[0] and str(path).endswith("MyDrive"):
            dead[0] = False
            raise OSError(107, "Transport endpoint is not connected")
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "stat", stat)
    assert drive.mount_drive() == colab.mountpoint / "MyDrive"
    assert len(colab.asked) == 1


def test_a_refusal_is_one_line_with_what_to_do(colab):
    colab.refuse()
    with pytest.raises(StorageError) as caught:
        drive.mount_drive()
    assert str(caught.value) == (
        f"{colab.mountpoint}: Google Drive could not be mounted (MessageError: Error: credential propagation was "
        "unsuccessful). Run this cell again and grant access; without Drive all files are lost when Colab ends "
        "the session."
    )


def test_a_failed_mount_is_one_line(colab):
    colab.fails_with = ValueError("mount failed: timeout during initial read of root folder;\nfor more info …")
    with pytest.raises(StorageError, match=r"mounted \(ValueError: mount failed: timeout .* folder;\)"):
        drive.mount_drive()


def test_a_mount_that_says_yes_and_shows_nothing_is_not_believed(colab):
    colab.appears = False
    with pytest.raises(StorageError, match="My Drive is missing"):
        drive.mount_drive()


@pytest.mark.parametrize("name", drive.ELSEWHERE)
def test_other_hosts_that_ship_google_colab_are_not_colab(colab, monkeypatch, name):
    monkeypatch.setenv(name, "Interactive")
    assert drive.mount_drive() is None
    assert colab.asked == []


def test_the_package_alone_is_not_colab(colab, monkeypatch, tmp_path):
    monkeypatch.setattr(drive, "COLAB", tmp_path / "not there")
    assert drive.colab("drive") is None


def test_leaving_waits_for_the_upload(colab):
    drive.mount_drive()
    assert drive.leave_drive() is True
    assert colab.asked[-1] == "flush"
    colab.fails_with = ValueError("flush_and_unmount failed")
    with pytest.raises(StorageError, match=r"could not be uploaded .*flush_and_unmount failed.*Keep this machine"):
        drive.leave_drive()
