"""Hostile and damaged files run no code, give a clear error, and cost little time and memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastdb.errors import ModelError
from fastdb.formats.reader import open_tensors

sys.path.insert(0, str(Path(__file__).parent))
import hostile

EVERY = """
import json, os, re, sys, time
from pathlib import Path
from fastdb.errors import ModelError
from fastdb.commands.inspection_rows import inspection_rows
from fastdb.models.inspect import inspect

def peak():
    # MB; not ru_maxrss, which a process inherits from its parent.
    return int(re.search("VmHWM:[^0-9]+([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1024

print(json.dumps({"name": "nothing", "peak": peak()}))
for path in sorted(Path(sys.argv[1]).iterdir()):
    started, result = time.process_time(), {"name": path.stem}
    try:
        inspection = inspect(path)
        result |= {"inert": list(inspection.neutralised), "rows": inspection_rows(inspection)}
    except ModelError as error:
        result["error"] = str(error)
    except BaseException as error:
        result["bug"] = repr(error)
    seconds = time.process_time() - started
    result |= {"seconds": seconds, "peak": peak(), "environment": "FASTDB_CANARY" in os.environ}
    print(json.dumps(result), flush=True)
print(json.dumps({"name": "torch", "loaded": "torch" in sys.modules or "numpy" in sys.modules}))
"""


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cage") / "canary"


@pytest.fixture(scope="module")
def cases(canary: Path) -> list[hostile.Case]:
    return hostile.corpus(str(canary))


@pytest.fixture(scope="module")
def results(
    canary: Path, cases: list[hostile.Case], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Results of a process that inspects all files in turn."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, case in enumerate(cases):
        (folder / f"{number:03d}.ckpt").write_bytes(case.data)
    done = subprocess.run([sys.executable, "-c", EVERY, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


def test_the_corpus_has_the_expected_size(cases: list[hostile.Case], results: dict[str, Any]) -> None:
    kinds = [case.name.split(":")[0] for case in cases]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    assert counts == {"program": 49, "pickle": 27, "tensor": 23, "zip": 31, "safetensors": 36, "stranger": 20}
    assert len({case.name for case in cases}) == len(cases) == len(results) - 2 >= 40


def test_the_programs_run_in_pythons_own_unpickler(cases: list[hostile.Case], canary: Path) -> None:
    """Without this, the next test could not fail."""
    live = [case for case in cases if case.live]
    touched = []
    for case in live:
        code = "import pickle, sys; pickle.loads(bytes.fromhex(sys.stdin.read()))"
        subprocess.run([sys.executable, "-c", code], input=case.live.hex(), capture_output=True, text=True, check=False)
        if canary.exists():
            touched.append(case.name)
            canary.unlink()
    assert touched == [case.name for case in live]
    assert len(live) == 22


def test_no_program_runs(cases: list[hostile.Case], results: dict[str, Any], canary: Path) -> None:
    assert not canary.exists()
    assert not any(line.get("environment") for line in results.values())
    programs = [line for case, line in zip(cases, _lines(cases, results), strict=True) if case.live]
    assert all("error" in line or line["inert"] for line in programs), "each name in a program is reported"


def test_each_file_gets_its_error(cases: list[hostile.Case], results: dict[str, Any]) -> None:
    wrong = []
    for case, line in zip(cases, _lines(cases, results), strict=True):
        error, inert = line.get("error", ""), line.get("inert", [])
        fits = bool(error) if case.error else "rows" in line or bool(error)
        fits = fits and (not case.error or re.search(case.error, error) is not None)
        fits = fits and (not case.inert or any(case.inert in name for name in inert))
        if "bug" in line or not fits or "\n" in error or len(error) > 600:
            wrong.append((case.name, case.error or case.inert, line))
    assert wrong == []


def test_no_file_costs_much_time_or_memory(cases: list[hostile.Case], results: dict[str, Any]) -> None:
    lines = _lines(cases, results)
    slowest = max(zip(lines, cases, strict=True), key=lambda pair: pair[0]["seconds"])
    assert slowest[0]["seconds"] < 5, slowest[1].name
    assert max(line["peak"] for line in lines) < 500
    assert results["torch"]["loaded"] is False


def _lines(cases: list[hostile.Case], results: dict[str, Any]) -> list[dict[str, Any]]:
    return [results[f"{number:03d}"] for number in range(len(cases))]


def test_a_path_without_a_regular_file_gets_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        open_tensors(tmp_path / "gone.ckpt")
    with pytest.raises(ModelError, match="path is a folder"):
        open_tensors(tmp_path)
    os.mkfifo(tmp_path / "pipe.ckpt")
    with pytest.raises(ModelError, match="the path is not a regular file"):
        open_tensors(tmp_path / "pipe.ckpt")


@pytest.mark.parametrize(
    ("kind", "named"),
    [("JPEG", "JPEG picture"), ("PNG", "PNG picture"), ("GIF", "GIF"), ("TIFF", "TIFF"), ("WEBP", "WebP")],
)
def test_a_picture_is_named_as_one(tmp_path: Path, kind: str, named: str) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "some", format=kind)
    with pytest.raises(ModelError, match=rf"some: the file is a {named}.*, not a model\. Give a \.safetensors"):
        open_tensors(tmp_path / "some")


def test_a_truncated_ckpt_is_described_without_its_inner_format(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "whole.ckpt")
    data = (tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"its end is missing, so it is truncated or not a zip\. Download it again"):
        open_tensors(tmp_path / "cut.ckpt")
