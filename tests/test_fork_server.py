"""Forked processes behave like real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests import fork_server

if not fork_server.usable():
    pytest.skip("this system has no pidfd_open", allow_module_level=True)


def run(*words: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", "fastdb", *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", [["--version"], ["show", "zebra"], ["show", "--unknown"], ["new", "a b", "--set"]])
def test_output_and_exit_code_are_those_of_a_real_process(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    forked = run(*words)
    monkeypatch.setattr(fork_server.ForkedPopen, "server", None)
    assert forked == run(*words)


def test_a_forked_process_has_its_own_session_folder_and_signals(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "fastdb.training", "missing", str(tmp_path / "events.jsonl")]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
        assert Path(f"/proc/{process.pid}/cwd").resolve() == tmp_path.resolve()
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        assert process.poll() == -signal.SIGKILL
