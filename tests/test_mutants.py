"""Deliberate breaks of features, each noticed by a test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

REPOSITORY = Path(__file__).resolve().parents[1]

FAULTS = "tests/checkpoints/test_drive_faults.py"
PENDING = "tests/checkpoints/test_publish_pending.py"
PUBLISHING = "tests/checkpoints/test_publish.py"
ADVANCES = "tests/checkpoints/test_publishing_advances.py"

MUTANTS = {
    "an old checkpoint goes before the new one is there": (
        "checkpoints/checkpoint.py",
        "        folder.mkdir(exist_ok=True)\n",
        "        folder.mkdir(exist_ok=True)\n        [remove(one.path) for one in complete(folder, stage)]\n",
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
        """        meant = write(hidden)
        write_json(hidden / STATE, state)
        write_manifest(hidden, meant)
""",
        """        write_manifest(hidden, {})
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
        "checkpoints/pending.py",
        "        return bool(published.state.get(MADE_OF) == raw_hashes(local))",
        "        return True",
        [PENDING],
    ),
    "what is kept for good is not published": (
        "checkpoints/pending.py",
        "    if keep.keeps(checkpoint.stage, checkpoint.step):",
        "    if False:",
        [PENDING],
    ),
    "what is pending leaves this machine": (
        "checkpoints/pending.py",
        "if checkpoint.path not in waiting]",
        "]",
        [PENDING],
    ),
    "a checkpoint is pruned while it is published": (
        "checkpoints/publish.py",
        "with claimed(chosen.path):",
        "if True:",
        [f"{ADVANCES}::test_a_publisher_ten_times_too_slow_always_advances"],
    ),
    "one checkpoint that fails holds up the others": (
        "checkpoints/publish.py",
        "return min(order, key=lambda checkpoint: self._failures[checkpoint.path])",
        "return order[0]",
        [ADVANCES],
    ),
    "it publishes into a session that was taken over": (
        "checkpoints/publish.py",
        "                    self.check_owner()\n",
        "",
        [f"{PUBLISHING}::test_a_session_that_was_taken_over_gets_nothing"],
    ),
    "the optimizer's state is not restored on resume": (
        "training/saver.py",
        "    restore_state(optimizer, moments, numbers)\n",
        "",
        ["tests/training/test_trainer.py", "-k", "sigterm"],
    ),
    "a resumed stage begins with its first batches again": (
        "training/loop.py",
        "self.batches.at(step, number) for",
        "self.batches.at(step - start, number) for",
        ["tests/training/test_trainer.py", "-k", "sigterm"],
    ),
    "a loss that is not finite changes the weights": (
        "training/loop.py",
        "if not math.isfinite(loss):",
        "if False:",
        ["tests/training/test_stages.py", "-k", "finite"],
    ),
    "a gradient that is not finite changes the weights": (
        "training/loop.py",
        "if math.isfinite(float(norm)):",
        "if True:",
        ["tests/training/test_divergence.py", "-k", "neither_taken_nor_saved"],
    ),
    "a checkpoint with NaN is written": (
        "training/saver.py",
        "if tensor := _not_finite(content):",
        "if tensor := str():",
        ["tests/training/test_divergence.py", "-k", "is_not_written"],
    ),
    "a changed rate holds from the first step on": (
        "training/schedules.py",
        "range(segment.start, min(step + 1, segment.end))",
        "range(segment.start, segment.end)",
        ["tests/training/test_schedules.py"],
    ),
    "the weight of the class images is ignored": (
        "training/loop.py",
        "batch.instances, self.config.prior.weight,",
        "batch.instances, 1.0,",
        ["tests/training/test_trainer.py", "-k", "trained_loss"],
    ),
    "each microbatch is a step of the optimizer": (
        "training/stage_run.py",
        "gradient_accumulation_steps=prepared.session.config.gradient_accumulation",
        "gradient_accumulation_steps=1",
        ["tests/training/test_trainer.py", "-k", "one_step_of"],
    ),
    "captions are never dropped": (
        "training/prepare.py",
        "            config.captions.caption_dropout,\n",
        "            0.0,\n",
        ["tests/training/test_trainer.py", "-k", "dropped_in_some"],
    ),
    "an export exchanges two layers of a text encoder": (
        "models/layouts/tables.py",
        '"mlp.fc1": "mlp.c_fc",\n    "mlp.fc2": "mlp.c_proj",',
        '"mlp.fc1": "mlp.c_proj",\n    "mlp.fc2": "mlp.c_fc",',
        ["tests/models/test_layouts.py"],
    ),
    "the noise does not depend on the step": (
        "training/batches.py",
        "self.stage, step, microbatch,",
        "self.stage, 0, microbatch,",
        ["tests/training/test_batches.py"],
    ),
    "the learning rate stays constant": (
        "training/schedules.py",
        "max(0.0, 1.0 - step / steps)",
        "1.0",
        ["tests/training/test_schedules.py"],
    ),
    "the loss of the class images is dropped": (
        "training/loss.py",
        "return instance + prior_weight * prior,",
        "return instance,",
        ["tests/training/test_loss.py"],
    ),
    "the UNet's stage ignores the trained text encoder": (
        "training/stages.py",
        "weights=text_encoder).to(",
        "weights=None).to(",
        ["tests/training/test_stages.py", "-k", "conditioned"],
    ),
    "the average of the weights is not updated": (
        "training/loop.py",
        "            self.stage.average.update()",
        "            pass",
        ["tests/training/test_ema.py"],
    ),
    "an export is not read back": (
        "models/export.py",
        "        read_back(",
        "        (lambda *_: None)(",
        ["tests/models/test_export.py"],
    ),
    "an unpickler lets a global of anything through": (
        "formats/unpickler.py",
        " if full in CALLS or",
        " if True or",
        ["tests/formats/test_hostile_files.py"],
    ),
    "the names of an archive's members are not checked": (
        "sharing/untrusted_zip.py",
        'name_fault(name.removesuffix("/")) or ',
        "",
        ["tests/sharing/test_untrusted_zip.py"],
    ),
    "the lease of another machine is ignored": (
        "sessions/lease.py",
        "if verdict.alive and not take_over:",
        "if False:",
        ["tests/sessions/test_lease.py", "-k", "another_machine"],
    ),
    "the checksum of session.yaml is ignored": (
        "sessions/file_hashes.py",
        "return text != sealed(text) and",
        "return False and",
        ["tests/training/test_bit_rot.py", "-k", "flipped_session_yaml"],
    ),
    "a download resumes a file that has changed": (
        "downloads/download.py",
        "return start == part.done and same and",
        "return start == part.done and",
        ["tests/downloads/test_download.py"],
    ),
    "a token goes to any server": (
        "downloads/tokens.py",
        " if origin(url) == self.origin else {}",
        "",
        ["tests/downloads/test_tokens.py"],
    ),
    "a model that predicts v counts as one that predicts noise": (
        "models/prediction.py",
        '"v_prediction" if mean < PROBE_LIMIT',
        '"epsilon" if mean < PROBE_LIMIT',
        ["tests/models/test_prediction.py"],
    ),
    "guidance is left out of pictures": (
        "inference/engine.py",
        "guidance_scale=request.guidance",
        "guidance_scale=7.5",
        ["tests/inference/test_engine.py"],
    ),
    "a crop ignores the face": (
        "images/crop.py",
        "    low, high = _span(side, length, first, last)",
        "    low, high = 0, 0",
        ["tests/images/test_crop.py"],
    ),
    "the last checkpoint is chosen rather than the earliest that is good enough": (
        "evaluation/choose.py",
        "return possible[0], tuple(",
        "return pool[-1], tuple(",
        ["tests/evaluation/test_choose.py"],
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_each_break_is_one_of_the_code_as_it_is(name: str) -> None:
    """The full suite makes the breaks; this test checks that each still applies."""
    file, honest, broken, tests = MUTANTS[name]
    text = (REPOSITORY / "fastdb" / file).read_text()
    assert text.count(honest) == 1, "the code has changed: break it anew"
    compile(text.replace(honest, broken), file, "exec")
    path, _, test = tests[0].partition("::")
    names = re.findall(r"^def (test_\w+)", (REPOSITORY / path).read_text(), re.MULTILINE)
    assert any(tests[-1] in name if "-k" in tests else test in name for name in names), "its test has another name"


@pytest.mark.full
@pytest.mark.parametrize("name", MUTANTS)
def test_each_break_is_noticed(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file, honest, broken, tests = MUTANTS[name]
    if any(test.startswith(FAULTS) or test.endswith("is_uploaded") for test in tests):
        request.getfixturevalue("fuse")
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
