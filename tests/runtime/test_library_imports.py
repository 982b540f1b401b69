"""Models are imported without the packages that training never calls, and these still work afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")

PROGRAM = """
import sys
from fastdb.runtime.library_imports import import_model_classes

import_model_classes()
loaded = {name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"}
assert not loaded, loaded
assert "scipy.stats._stats_py" not in sys.modules
from diffusers import DPMSolverMultistepScheduler, LMSDiscreteScheduler

scheduler = DPMSolverMultistepScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(4)
assert scheduler.timesteps.tolist() == [999, 966, 862, 0], scheduler.timesteps
scheduler = LMSDiscreteScheduler()
scheduler.set_timesteps(2)
assert abs(scheduler.get_lms_coefficient(1, 0, 0)) > 0
import scipy.stats
from scipy.stats._stats_py import gmean

assert scipy.stats.norm.cdf(0) == 0.5
"""


def test_optional_packages_are_imported_where_they_are_used() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
