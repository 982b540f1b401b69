"""Measure the notebook's set-up on a host like Colab: first, without network, and with nothing to do, beside pip.

    python benchmarks/set_up.py HOST WHEEL

HOST is a virtual environment that has what Colab has, compiled with `compileall` as there. It is copied by hard
links, and left as it was. If it has no torch, the copy gets a stand-in, because only the metadata of torch matters
here. WHEEL is the wheel of `make wheel`. `uv` has to be on the PATH. Each figure is CPU seconds (of all processes)
and wall seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.wheels.conftest import Environment, make_wheel
from tests.wheels.test_set_up import cell

PART = """
import resource, sys, time
began, cpu = time.perf_counter(), lambda: sum(sum(resource.getrusage(who)[:2]) for who in (0, -1))
before = cpu()
{code}
print(f"measured {{cpu() - before:.2f}} {{time.perf_counter() - began:.2f}}")
"""


def linked(environment: Environment, folder: Path) -> Environment:
    """Return a copy of an environment that shares its files; pip and uv replace files and never change them."""
    shutil.copytree(environment.folder, folder, symlinks=True, copy_function=os.link)
    return Environment(folder)


def measured(environment: Environment, code: str, machine: Path, path: Path, **variables: str) -> str:
    """Run code as a notebook's cell; return its CPU and wall seconds."""
    done = environment.run(PART.format(code=code), machine, path, **variables)
    if done.returncode:
        sys.exit(done.stderr)
    line = next(line for line in done.stdout.splitlines() if line.startswith("measured"))
    cpu, wall = line.split()[1:]
    return f"{cpu} CPU s, {wall} s"


def pip(environment: Environment, *arguments: str | Path, **variables: str) -> str:
    """Run pip; return its CPU and wall seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [environment.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, env=os.environ | variables)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{cpu:.2f} CPU s, {time.perf_counter() - began:.2f} s"


def main() -> None:
    """Print a line for each way to set up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("host", type=Path)
    parser.add_argument("wheel", type=Path)
    given = parser.parse_args()
    uv = shutil.which("uv") or sys.exit("needs uv on the PATH")
    with TemporaryDirectory() as place:
        machine = Path(place)
        host = linked(Environment(given.host.absolute()), machine / "host")
        torch = make_wheel(machine, "torch", "2.11.0+cu128", {"torch/__init__.py": ""})
        if not list(host.packages.glob("torch-*.dist-info")):
            host.pip("install", "--no-deps", "--no-index", torch)
        programs, driver = machine / "programs", machine / "driver"
        for folder in (programs, driver):
            folder.mkdir()
        (programs / "uv").symlink_to(uv)
        for folder in (programs, driver):
            (folder / "nvidia-smi").write_text("#!/bin/sh\necho Tesla T4, 15360 MiB\n")
            (folder / "nvidia-smi").chmod(0o755)
        drive = machine / "content" / "drive" / "MyDrive"
        kept = drive / "Fast-Dreambooth" / "wheels"
        kept.mkdir(parents=True)
        shutil.copy(given.wheel, kept)
        colab = (
            "from pathlib import Path; from fastdb.runtime import drive, paths, wheels; "
            f"paths.DRIVES = (Path({str(drive)!r}),); drive.COLAB = Path({place!r})"
        )
        load = 'importlib.import_module("fastdb")'
        code = cell(machine).replace(load, f"{load}; {colab}")
        before = host.times()
        again, beside = linked(host, machine / "again"), linked(host, machine / "beside")
        offline = {"UV_OFFLINE": "1", "PIP_NO_INDEX": "1"}
        print("first set-up:", measured(host, code, machine, programs))
        print("nothing to do:", measured(host, code, machine, programs, **offline))
        check = f"{colab}; wheels.install_missing()"
        print("  of that the look at packages:", measured(host, check, machine, programs, **offline))
        after = host.times()
        print("on another machine, without network:", measured(again, code, machine, programs, **offline))
        print("pip install WHEEL[gpu]:", pip(beside, f"{given.wheel.absolute()}[gpu]"))
        print("pip install WHEEL[gpu], nothing to do:", pip(beside, f"{given.wheel.absolute()}[gpu]"))
        print(
            "files of the host:",
            len(before),
            "unchanged" if all(after.get(name) == before[name] for name in before) else "CHANGED",
        )
        print("kept on Drive:", ", ".join(sorted(path.name for path in kept.iterdir())))


if __name__ == "__main__":
    main()
