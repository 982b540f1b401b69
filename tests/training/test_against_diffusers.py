"""Losses and gradients beside diffusers' own script, where it can be had: DREAMBOOTH_SCRIPT names its file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = os.environ.get("DREAMBOOTH_SCRIPT", "")
LORA_SCRIPT = os.environ.get("DREAMBOOTH_LORA_SCRIPT", "")
PROGRAM = Path(__file__).parents[2] / "benchmarks" / "against_diffusers.py"


@pytest.mark.skipif(not SCRIPT, reason="DREAMBOOTH_SCRIPT does not name diffusers' train_dreambooth.py")
def test_losses_and_gradients_are_those_of_diffusers_script(tmp_path: Path) -> None:
    cases = ["v, prior", "text encoder", "accumulation"]
    command = [sys.executable, PROGRAM, SCRIPT, tmp_path, "--bases", "mini", "--steps", "2", "--only", *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("mini") == len(cases)


@pytest.mark.skipif(not LORA_SCRIPT, reason="DREAMBOOTH_LORA_SCRIPT does not name diffusers' train_dreambooth_lora.py")
def test_losses_and_gradients_of_adapters_are_those_of_diffusers_script(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    cases = ["LoRA v, prior", "LoRA text encoder", "LoRA joint"]
    command = [sys.executable, PROGRAM, LORA_SCRIPT, tmp_path, "--bases", "mini", "--steps", "2", "--only", *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("mini") == len(cases)
