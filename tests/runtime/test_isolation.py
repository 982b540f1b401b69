"""Environment variables and packages of isolated processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastdb
from fastdb.commands import sessions
from fastdb.errors import TrainingError
from fastdb.runtime import isolation
from fastdb.runtime.isolation import environment, start_module

INHERITED = {
    "PATH": "/bin:/usr/bin",
    "HOME": "/home/me",
    "USER": "me",
    "LANG": "de_DE.UTF-8",
    "LC_ALL": "C",
    "TZ": "UTC",
    "TMPDIR": "/scratch",
    "LD_LIBRARY_PATH": "/usr/lib64-nvidia",
    "CUDA_VISIBLE_DEVICES": "1",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0.5",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_TOKEN": "secret",
    "FASTDB_ROOT": "/sessions",
    "https_proxy": "http://proxy:1",
    "ALL_PROXY": "http://proxy:2",
    "SSL_CERT_FILE": "/etc/cert.pem",
    "CIVITAI_TOKEN": "secret",
    "WANDB_MODE": "offline",
    "COLAB_GPU": "1",
    "KAGGLE_KERNEL_RUN_TYPE": "Batch",
}
DROPPED = (
    *("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_MIXED_PRECISION", "FSDP_OFFLOAD_PARAMS", "WORLD_SIZE"),
    *("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_LOGS", "NVIDIA_TF32_OVERRIDE", "DIFFUSERS_ATTN_BACKEND"),
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS"),
    *("TRANSFORMERS_VERBOSITY", "USE_TORCH", "LD_PRELOAD", "BASH_ENV", "XPATH", "CUDA", "PROXY_X"),
    *("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHASHSEED", "PYTHONHOME", "PYTHONINSPECT", "PYTHONOPTIMIZE"),
)


def test_only_variables_of_the_list_are_inherited() -> None:
    found = environment({**INHERITED, **dict.fromkeys(DROPPED, "7")})
    assert {name: found[name] for name in INHERITED} == INHERITED
    added = {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTORCH_ALLOC_CONF", "OMP_WAIT_POLICY", "CUBLAS_WORKSPACE_CONFIG"}
    assert set(found) - set(INHERITED) <= added
    assert "7" not in found.values()


def test_environment_pass_adds_variables() -> None:
    variables = {"ACCELERATE_LOG_LEVEL": "info", "LD_PRELOAD": "x.so", "PYTHONPATH": "/libs"}
    found = environment(variables, passed=["ACCELERATE_LOG_LEVEL", "PYTHONPATH", "MISSING"])
    assert found["ACCELERATE_LOG_LEVEL"] == "info"
    assert found["PYTHONPATH"].split(os.pathsep)[-1] == "/libs"
    assert not {"LD_PRELOAD", "MISSING"} & set(found)


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = {
        "PATH": "bin::/usr/bin:.",
        "FASTDB_CACHE": "cache",
        "HF_HOME": "hub",
        "TMPDIR": "tmp",
        "HF_TOKEN": "abc",
    }
    found = environment({**relative, "FASTDB_ROOT": "~/x", "LD_LIBRARY_PATH": ""})
    assert found["PATH"] == f"{tmp_path}/bin:/usr/bin:{tmp_path}"
    assert [found[name] for name in ("FASTDB_CACHE", "HF_HOME", "TMPDIR")] == [
        str(tmp_path / name) for name in ("cache", "hub", "tmp")
    ]
    assert (found["HF_TOKEN"], found["FASTDB_ROOT"], found["LD_LIBRARY_PATH"]) == ("abc", "~/x", "")


@pytest.mark.parametrize("value", [":4096:8", ":16:8", "", ":0:0"])
def test_cublas_gets_a_workspace_with_which_it_is_deterministic(value: str) -> None:
    found = environment({"CUBLAS_WORKSPACE_CONFIG": value})["CUBLAS_WORKSPACE_CONFIG"]
    assert found == (value if value in (":4096:8", ":16:8") else ":4096:8")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64,expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64,expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, "expandable_segments:False"),
    ],
)
def test_the_allocator_grows_its_segments(given: dict[str, str], found: str) -> None:
    variables = environment(given)
    assert (variables["PYTORCH_ALLOC_CONF"], "PYTORCH_CUDA_ALLOC_CONF" in variables) == (found, False)


def test_this_package_is_imported_and_no_other_module_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source tree may be the current folder, and contain a `random.py`."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "fastdb").symlink_to(Path(fastdb.__file__).parent)
    (tree / "random.py").write_text("raise SystemExit('a module of the current folder was imported')")
    monkeypatch.setattr(isolation, "_PACKAGE", tree / "fastdb")
    monkeypatch.chdir(tree)
    with open(tmp_path / "out", "w", encoding="utf-8") as output:
        assert start_module("fastdb.version", [], tmp_path / "a" / "b", output).wait() == 0
    assert [path.name for path in Path(environment({})["PYTHONPATH"]).iterdir()] == ["fastdb"]


def test_a_deleted_current_folder_is_no_obstacle(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from fastdb.runtime.isolation import start_module\n"
        "os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])\n"
        "process = start_module('json.tool', ['--help'], pathlib.Path(sys.argv[2]), sys.stderr)\n"
        "sys.exit(process.wait())"
    )
    gone = tmp_path / "gone"
    gone.mkdir()
    assert subprocess.run([sys.executable, "-c", code, str(gone), str(tmp_path / "work")], check=False).returncode == 0


def test_a_package_on_pythonpath_only_is_reported_and_can_be_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "accelerate.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(TrainingError) as caught:
        environment({"PYTHONPATH": str(tmp_path)})
    assert str(caught.value) == (
        "package accelerate is only in a folder of PYTHONPATH, which training does not use. "
        "Allow the variable with --set environment.pass=[PYTHONPATH], or install the package."
    )
    assert str(tmp_path) in environment({"PYTHONPATH": str(tmp_path)}, ["PYTHONPATH"])["PYTHONPATH"]


def test_the_environment_of_a_process_is_the_one_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "show.py").write_text("import json, os; print(json.dumps([os.getcwd(), dict(os.environ)]))")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with open(tmp_path / "out", "w", encoding="utf-8") as output:
        assert start_module("show", [], tmp_path / "work", output, ["PYTHONPATH"]).wait() == 0
    folder, variables = json.loads((tmp_path / "out").read_text(encoding="utf-8"))
    assert folder == str((tmp_path / "work").resolve())
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in variables


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "cup"], "mug"),
        (["adopt", "./folder"], "error: the current folder was deleted. Change to another folder and run the"),
    ],
)
def test_the_command_line_in_a_deleted_folder(words: list[str], said: str, tmp_path: Path) -> None:
    """Sessions are found by their names; a path that is relative to the folder is an error in a sentence."""
    sessions.new("cup", "mini", token="sks", class_word="mug")
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        "import os, sys; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])\n"
        "from fastdb.commands.sessions import Session\nfrom fastdb.models.resolve import ensure_base\n"
        "ensure_base(Session.open('cup'))\n"
        "sys.argv[1:] = sys.argv[2:]\nfrom fastdb.cli import main; main()"
    )
    command = [sys.executable, "-P", "-c", code, str(gone), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said in done.stdout + done.stderr
    assert done.returncode == (2 if said.startswith("error") else 0), done.stderr
