"""Measure export and conversion at full size, beside the conversion script of diffusers.

    python benchmarks/export_full_size.py FOLDER [--script convert_diffusers_to_original_stable_diffusion.py]

FOLDER needs about 20 GB for SD 1.5 with random weights, built once; SDXL is a sparse file of zeros. Each row is a
process with one thread: its CPU seconds (user and system) and its peak resident memory, which includes mapped files.
Unlike the script, fastdb checks for NaN, hashes and reads back.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from math import prod
from pathlib import Path

from full_size import build

from fastdb import console
from fastdb.models.layouts.tables import layout_of

OURS = """
import sys
from pathlib import Path
from fastdb.models.export import export_model
from fastdb.models.diffusers_folder import weight_file
from fastdb.models.layouts.tables import layout_of
folder, target, dtype, family = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
parts = {part: weight_file(folder, part) for part in layout_of(family).parts}
done = export_model(parts, target, dtype=dtype, metadata={}, family=family)
"""
CONVERT = """
import sys
from pathlib import Path
from fastdb.models.convert import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), dtype=None if sys.argv[3] == "-" else sys.argv[3], like=Path(sys.argv[4]))
"""
NOTHING = "import torch, safetensors.torch, fastdb.models.export"


RUN = """
import os, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__") if sys.argv[0] != "-c" else exec(sys.argv.pop(1), {})
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    open(os.environ["PEAK"], "w").write(peak.split()[1])
"""
"""Runs a command and writes its peak to a file. The peak in `wait4` includes the memory of the parent."""


def measured(*command: str | Path) -> tuple[float, float]:
    """Run a process and return its CPU seconds and peak resident gigabytes.

    Raises:
        RuntimeError: the process failed.
    """
    with tempfile.NamedTemporaryFile() as note:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PEAK": note.name}
        arguments = [sys.executable, "-c", RUN, *map(str, command)]
        _, status, used = os.wait4(os.posix_spawn(sys.executable, arguments, environment), 0)
        if status:
            raise RuntimeError(f"{command} ended with {status}")
        return used.ru_utime + used.ru_stime, int(Path(note.name).read_text()) / 1e6


def zeros(folder: Path, family: str) -> Path:
    """Write the parts of a family at full size, fp16, as sparse files behind their headers."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))
    import real_models
    import torch

    with torch.device("meta"):
        parts = real_models.build(family)
    for part, module in parts.items():
        place, header = 0, {}
        for name, tensor in module.state_dict().items():
            if not name.endswith("position_ids"):
                size = 2 * prod(tensor.shape)
                header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [place, place + size]}
                place += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        name = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        (folder / part).mkdir(parents=True, exist_ok=True)
        with (folder / part / f"{name}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + place)
    assert set(parts) == set(layout_of(family).parts)
    return folder


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--script", type=Path, help="the stock conversion script of diffusers")
    args = parser.parse_args()
    model, out = build(args.folder / "sd15"), args.folder / "out"
    out.mkdir(exist_ok=True)
    rows = [("imports alone", *measured("-c", NOTHING))]
    for dtype, kind in (("fp32", "ckpt"), ("fp16", "ckpt"), ("fp16", "safetensors")):
        target = out / f"{dtype}.{kind}"
        rows.append((f"ours, {dtype} .{kind}", *measured("-c", OURS, model, target, dtype, "sd1")))
        if args.script:
            options = ["--half"] * (dtype == "fp16") + ["--use_safetensors"] * (kind == "safetensors")
            command = [args.script, "--model_path", model, "--checkpoint_path", out / f"theirs.{kind}", *options]
            rows.append((f"diffusers' script, {dtype} .{kind}", *measured(*command)))
            (out / f"theirs.{kind}").unlink()
    for source, target, dtype in (("fp32.ckpt", "a.safetensors", "fp16"), ("fp16.safetensors", "folder", "-")):
        rows.append(
            (f"convert {source} to {target}", *measured("-c", CONVERT, out / source, out / target, dtype, model))
        )
    xl = zeros(args.folder / "sdxl", "sdxl")
    for kind in ("safetensors", "ckpt"):
        rows.append((f"ours, SDXL, fp16 .{kind}", *measured("-c", OURS, xl, out / f"xl.{kind}", "fp16", "sdxl")))
        (out / f"xl.{kind}").unlink()
    console.table(("what", "CPU s", "peak RSS, GB"), [(name, f"{cpu:.1f}", f"{peak:.2f}") for name, cpu, peak in rows])


if __name__ == "__main__":
    main()
