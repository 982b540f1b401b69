"""Measure the loading of an original file at full size as modules, in CPU seconds and peak memory.

    python benchmarks/import_full_size.py FOLDER

FOLDER needs about 11 GB for SD 1.5 with random weights and two files of it, which are written once. Each row is a
process with one thread; its peak resident memory includes mapped files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from export_full_size import measured
from full_size import build

from fastdb import console
from fastdb.models.convert import convert
from fastdb.models.export import Precision
from fastdb.models.layouts.tables import layout_of

START = """
import sys
from pathlib import Path
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel
from fastdb.models.diffusers_folder import read_config
from fastdb.models.loading import load_single_file
"""
OURS = """
file, folder, dtype = Path(sys.argv[1]), Path(sys.argv[2]), getattr(torch, sys.argv[3])
configs = {part: read_config(folder / part / "config.json") for part in ("unet", "vae", "text_encoder")}
parts = load_single_file(file, configs, dtype=dtype)
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
            size = count * BYTES[dtype] / 1e9
            row = f"{name}, {files[precision].name} to {dtype}"
            rows.append((row, f"{cpu:.1f}", f"{peak:.2f}", f"{peak - size:.2f}", f"{peak - size - alone:.2f}"))
    console.table(("what", "CPU s", "peak RSS, GB", "over the weights", "and over the imports"), rows)


def weights(folder: Path) -> int:
    """Return the number of weights of a part."""
    from fastdb.formats.reader import open_tensors

    return sum(info.elements for info in open_tensors(next(folder.glob("*.safetensors"))).tensors.values())


if __name__ == "__main__":
    main()
