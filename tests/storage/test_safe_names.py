"""Names that Windows reserves are refused or changed by every part that names files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from fastdb.commands import sessions, sharing
from fastdb.downloads.http_client import safe_name
from fastdb.errors import SessionError
from fastdb.sessions.session import Session, near_name
from fastdb.storage.safe_names import fit_stem, name_fault, reserved_on_windows

DEVICES = ["con", "PRN", "aux", "Nul", "com1", "COM9", "com\N{SUPERSCRIPT ONE}", "lpt\N{SUPERSCRIPT THREE}", "CONIN$"]
RESERVED = [*DEVICES, *(f"{name}.txt" for name in DEVICES), "nul.tar.gz", "aux .txt", "com1\u00b9.", "dot.", "space "]
FREE = ["console", "com", "com10", "com\N{ARABIC-INDIC DIGIT ONE}", "lpt", "nul_", "a.con", "null", "auxiliary.txt"]


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_name_is_found(name: str) -> None:
    assert reserved_on_windows(name)
    for path in (name, f"captions/{name}", f"{name}/photo.png"):
        assert name_fault(path) == "has a name that Windows or Google Drive does not accept"


@pytest.mark.parametrize("name", FREE)
def test_a_name_like_a_reserved_name_is_free(name: str) -> None:
    assert not reserved_on_windows(name)
    assert name_fault(name) == ""


@pytest.mark.parametrize("name", DEVICES)
def test_a_reserved_name_is_changed_for_photos_and_downloads(name: str) -> None:
    assert fit_stem(name) == f"{name}_"
    assert safe_name(f"{name}.ckpt") == f"_{name}.ckpt"


@pytest.mark.parametrize("name", [name for name in RESERVED if name.isalnum()])
def test_a_reserved_name_is_refused_for_a_session_with_a_name_near_it(name: str, sessions_folder: Path) -> None:
    with pytest.raises(SessionError, match=rf"^'{name}' cannot be .*Windows.*\. Use {name}_, for example\.$"):
        sessions.new(name, "mini")
    assert near_name(name) == f"{name}_"
    assert sessions.new(f"{name}_", "mini").path == sessions_folder / f"{name}_"


def test_a_session_of_an_earlier_version_with_a_reserved_name_stays_usable(
    sessions_folder: Path, tmp_path: Path
) -> None:
    name = "com\N{SUPERSCRIPT ONE}"
    made = sessions.new("cup", "mini", token="sks")
    shutil.move(made.path, sessions_folder / name)
    assert Session.open(name).record.subject.token == "sks"
    sessions.show(name)
    adopted = sharing.adopt(sharing.share(name, tmp_path / "cup.zip"))
    assert adopted.name == f"{name}_"
    assert sharing.duplicate(name, "cup").record.subject.token == "sks"
    with pytest.raises(SessionError, match=re.escape(f"Use {name}_, for example")):
        sharing.duplicate("cup", name)
