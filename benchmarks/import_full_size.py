"""Importing one original file at full size as live modules: CPU seconds, and peak memory beside the weights' own size.

    python benchmarks/import_full_size.py FOLDER

FOLDER needs about 11 GB. Builds SD 1.5 with random weights there once, and two files of it. Each row is a process of
its own on one thread; its peak resident memory counts what is mapped from files too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from export_full_size import measured
from full_size import build

from fastdb import console
from fastdb.models.convert import Precision, convert
from fastdb.models.layouts.families import layout_of

START = """
import sys
from pathlib import Path
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel
from fastdb.models.diffusers_folder import read_config
from fastdb.models.load_single_file import import_original
"""
OURS = """
file, folder, dtype = Path(sys.argv[1]), Path(sys.argv[2]), getattr(torch, sys.argv[3])
configs = {part: read_config(folder / part / "config.json") for part in ("unet", "vae", "text_encoder")}
parts = import_original(file, configs, dtype=dtype)
"""
THEIRS = """
file, folder, dtype = Path(sys.argv[1]), Path(sys.argv[2]), getattr(torch, sys.argv[3])
StableDiffusionPipeline.from_single_file(
    str(file), config=str(folder), local_files_only=True, torch_dtype=dtype, safety_checker=None
)
"""
BYTES = {"float32": 4, "float16": 2}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    model, files = build(args.folder / "sd15"), {}
    kinds: tuple[tuple[Precision, str], ...] = (("fp32", "ckpt"), ("fp16", "safetensors"))
    for precision, kind in kinds:
        files[precision] = args.folder / f"import.{precision}.{kind}"
        if not files[precision].exists():
            convert(model, files[precision], dtype=precision)
    count = sum(weights(model / part) for part in layout_of("sd1").parts)
    cpu, alone = measured("-c", START)
    rows = [("imports alone", f"{cpu:.1f}", f"{alone:.2f}", "", "")]
    for name, code in (("ours", OURS), ("from_single_file", THEIRS)):
        for precision, dtype in (("fp32", "float32"), ("fp16", "float16"), ("fp16", "float32")):
            cpu, peak = measured("-c", START + code, files[precision], model, dtype)
            held = count * BYTES[dtype] / 1e9
            what = f"{name}, {files[precision].name} to {dtype}"
            rows.append((what, f"{cpu:.1f}", f"{peak:.2f}", f"{peak - held:.2f}", f"{peak - held - alone:.2f}"))
    console.table(("what", "CPU s", "peak RSS, GB", "over the weights", "and over the imports"), rows)


def weights(folder: Path) -> int:
    """How many numbers a part has."""
    from fastdb.formats.reader import open_tensors

    return sum(info.elements for info in open_tensors(next(folder.glob("*.safetensors"))).tensors.values())


if __name__ == "__main__":
    main()
