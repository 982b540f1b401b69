"""Saving, loading and publishing broken on purpose: each break is noticed by a test that is there anyway."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.requires import requires_fuse

REPOSITORY = Path(__file__).resolve().parents[1]

FAULTS = "tests/checkpoints/test_drive_faults.py"
PENDING = "tests/checkpoints/test_pending.py"
PUBLISHING = "tests/checkpoints/test_publish.py"

MUTANTS = {
    "an old checkpoint goes before the new one is there": (
        "checkpoints/checkpoint.py",
        "        remove(hidden)\n        hidden.mkdir()",
        "        remove(hidden)\n        [remove(one.path) for one in complete(folder, stage)]\n        hidden.mkdir()",
        [f"{FAULTS}::test_an_error_at_any_operation_leaves_a_good_checkpoint"],
    ),
    "a checkpoint has its name while it is written": (
        "checkpoints/checkpoint.py",
        '    hidden = folder / f"{UNFINISHED}{final.name}"',
        "    hidden = final",
        [f"{FAULTS}::test_an_error_at_any_operation_leaves_a_good_checkpoint"],
    ),
    "the manifest comes before the files": (
        "checkpoints/checkpoint.py",
        """            meant = write(hidden)
            write_json(hidden / STATE, state)
            write_manifest(hidden, meant)
""",
        """            write_manifest(hidden, {})
            write(hidden)
            write_json(hidden / STATE, state)
""",
        ["tests/checkpoints/test_checkpoint.py"],
    ),
    "reading skips the hash": (
        "storage/manifest.py",
        "if digest and sha256(path) != digest:",
        "if False:",
        ["tests/checkpoints/test_checkpoint.py"],
    ),
    "what was read back is not held against what was meant": (
        "storage/manifest.py",
        "    for name, digest in (meant or {}).items():",
        "    for name, digest in ():",
        ["tests/checkpoints/test_checkpoint.py"],
    ),
    "an old one goes though the newer ones are not uploaded": (
        "checkpoints/retention.py",
        "        elif waits_for_upload(checkpoint.path):",
        "        elif False:",
        [f"{FAULTS}::test_checkpoints_that_wait_for_their_upload_are_told_and_do_not_count"],
    ),
    "the next is published though the one before is not uploaded": (
        "checkpoints/publish.py",
        "if due and (hurry or self._settled()):",
        "if due:",
        [f"{PUBLISHING}::test_the_next_waits_until_the_one_before_is_uploaded"],
    ),
    "one that rotted on this machine is published": (
        "checkpoints/publish.py",
        "        if reasons := faults(local.path):",
        "        if reasons := list[str]():",
        [f"{PUBLISHING}::test_a_damaged_one_on_this_machine_is_never_published"],
    ),
    "whatever has the name counts as published": (
        "checkpoints/publish.py",
        "        return bool(published.state.get(MADE_OF) == _raw_hashes(local))",
        "        return True",
        [PENDING],
    ),
    "what is kept for good is not published": (
        "checkpoints/publish.py",
        "    if keep.keeps(checkpoint.stage, checkpoint.step):",
        "    if False:",
        [PENDING],
    ),
    "what is pending leaves this machine": (
        "checkpoints/publish.py",
        "if checkpoint.path not in waiting]",
        "]",
        [PENDING],
    ),
    "it publishes into a session that was taken over": (
        "checkpoints/publish.py",
        "                    self.check_owner()\n",
        "",
        [f"{PUBLISHING}::test_a_session_that_was_taken_over_gets_nothing"],
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_each_break_is_one_of_the_code_as_it_is(name: str) -> None:
    """They are made in the full suite; that they can be is held here."""
    file, honest, broken, _ = MUTANTS[name]
    text = (REPOSITORY / "fastdb" / file).read_text()
    assert text.count(honest) == 1, "the code has changed: break it anew"
    compile(text.replace(honest, broken), file, "exec")


@pytest.mark.full
@requires_fuse
@pytest.mark.parametrize("name", MUTANTS)
def test_each_break_is_noticed(name: str, tmp_path: Path) -> None:
    file, honest, broken, tests = MUTANTS[name]
    copy = tmp_path / "repository"
    shutil.copytree(
        REPOSITORY,
        copy,
        ignore=shutil.ignore_patterns(".git", ".venv*", "*.egg-info", "__pycache__", ".*_cache", "benchmarks"),
    )
    path = copy / "fastdb" / file
    text = path.read_text()
    assert text.count(honest) == 1, "the code has changed: break it anew"
    path.write_text(text.replace(honest, broken))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=copy,
        env={name: value for name, value in os.environ.items() if "PYTEST" not in name} | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout[-2000:]
    # With a break that nothing can be saved with, what the test begins with fails already.
    assert re.search(r"\d (failed|error)", ran.stdout), ran.stdout[-2000:]
