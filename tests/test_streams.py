"""Standard streams that are closed, full or read by somebody who ends."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from fastdb.console.streams import ForgivingStream

FULL = Path("/dev/full")


def shell(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which $F is the command line."""
    return subprocess.run(
        ["bash", "-c", f"F='{sys.executable} -m fastdb'; {script}"], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_full_standard_output_is_told_and_the_verb_ends_as_it_would() -> None:
    done = shell("$F sessions > /dev/full")
    assert done.returncode == 0
    assert done.stderr == "warning: some of the output could not be written: No space left on device\n"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("$F sessions >&- 2>&- <&-", 0),
        ("$F show nothing 2>&-", 2),
        ("$F --help | head -c 1 > /dev/null; exit ${PIPESTATUS[0]}", 0),
        pytest.param("$F show nothing 2> /dev/full", 2, marks=pytest.mark.full),
        pytest.param("$F --help > /dev/full 2>&1", 0, marks=pytest.mark.full),
        pytest.param("$F doctor | head -c 1 > /dev/null; exit ${PIPESTATUS[0]}", 0, marks=pytest.mark.full),
    ],
)
def test_closed_streams_end_nothing(script: str, code: int) -> None:
    done = shell(script)
    assert (done.returncode, done.stderr) == (code, "")


def test_a_closed_stream_is_not_the_next_file(tmp_path: Path) -> None:
    """The first file that is opened would get the number of the closed stream, and libraries would write into it."""
    path = tmp_path / "opened"
    code = (
        "import os, sys\nfrom fastdb.console.streams import forgiving_streams\n"
        f"with forgiving_streams(), open({str(path)!r}, 'w') as file:\n"
        "    os.write(2, b'noise')\n    print('noise')\n    file.write(str(file.fileno() > 2))\n"
    )
    subprocess.run(["bash", "-c", '"$0" -c "$1" >&- 2>&- <&-', sys.executable, code], check=True)
    assert path.read_text() == "True"


def test_text_that_a_stream_cannot_encode_is_escaped() -> None:
    raw = io.BytesIO()
    stream = ForgivingStream(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("caf\u00e9 \udcff\n")
    stream.flush()
    assert raw.getvalue() == b"caf\\xe9 \\udcff\n"
    assert stream.lost == ""


def test_the_reason_of_lost_output_is_kept_unless_its_reader_ended() -> None:
    for error, lost in (
        (OSError(28, "No space left on device"), "No space left on device"),
        (BrokenPipeError(32, "x"), ""),
    ):

        class Broken(io.StringIO):
            def write(self, text: str, error: OSError = error) -> int:
                raise error

        stream = ForgivingStream(Broken())
        assert stream.write("text") == 4
        assert stream.lost == lost
    closed = ForgivingStream(io.StringIO())
    closed.close()
    closed.writelines(["text"])
    assert closed.lost == "I/O operation on closed file"
