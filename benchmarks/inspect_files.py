"""Measure the inspection of full-size model files, in seconds after imports and peak resident memory.

    python benchmarks/inspect_files.py FOLDER

Writes zeros in the true names and shapes of Stable Diffusion 1.5, fp16, into FOLDER (6.4 GB, deleted afterwards): a
.safetensors, a .ckpt, and a .ckpt in the format of torch.save before 1.6. Each is inspected by a new process, first
with a cold page cache, then again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from fastdb import console
from fastdb.formats.ckpt_writer import write_ckpt
from fastdb.formats.safetensors_file import Entry, write_safetensors
from fastdb.models.layouts.tables import layout_of
from fastdb.reporting import format_bytes

BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
}

MEASURE = """
import json, re, sys, time
from pathlib import Path
from fastdb.models.inspect import inspect
started = time.perf_counter(), time.process_time()
found = inspect(Path(sys.argv[1]))
seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
what = f"{found.what.family} {found.what.role}"
print(json.dumps([what, seconds, cpu, peak, "torch" in sys.modules]))
"""


def entries() -> list[Entry]:
    """Return the tensors of an original Stable Diffusion 1.5 file, in half precision."""
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8),
            "vae": AutoencoderKL(latent_channels=4, layers_per_block=2, **BLOCKS),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
            ),
        }
    shapes = {
        part: {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for part, model in parts.items()
    }
    moves = layout_of("sd1").to_original(shapes)
    return [Entry(move.line.original, torch.float16, move.shapes[0]) for move in moves]


def zeros(plan: list[Entry]) -> Iterator[torch.Tensor]:
    """Yield the tensors of a plan."""
    return (torch.zeros(entry.shape, dtype=entry.dtype) for entry in plan)


def measured(path: Path) -> list[str]:
    """Return a row of the table."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    runs = []
    for _ in range(2):
        command = [sys.executable, "-c", MEASURE, str(path)]
        runs.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    (what, cold, _, peak, loaded), (_, warm, cpu, *_) = runs
    size = format_bytes(path.stat().st_size)
    return [path.name, size, what, f"{cold:.3f}", f"{warm:.3f}", f"{cpu:.3f}", f"{peak:.0f}", "yes" if loaded else "no"]


def main(folder: Path) -> None:
    """Write the files, print the table and delete the files."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = entries()
    files = [folder / "zeros.safetensors", folder / "zeros.ckpt", folder / "zeros-before-1.6.ckpt"]
    try:
        write_safetensors(files[0], plan, zeros(plan), {"format": "pt"})
        write_ckpt(files[1], plan, zeros(plan))
        state = dict(zip((entry.name for entry in plan), zeros(plan), strict=True))
        torch.save({"state_dict": state}, files[2], _use_new_zipfile_serialization=False)
        head = ("file", "size", "is", "cold, s", "warm, s", "warm, CPU s", "peak, MiB", "torch loaded")
        console.table(head, [measured(path) for path in files])
    finally:
        for path in files:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
