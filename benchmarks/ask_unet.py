"""Measure a probe of the UNet of a full-size Stable Diffusion 2.x, in seconds and peak memory.

    python benchmarks/ask_unet.py FOLDER

FOLDER needs 2 GB for a file of random weights in fp16, which is written once. Each row is a process with one thread.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from export_full_size import measured
from safetensors.torch import save_file

from fastdb import console
from fastdb.models.layouts.sd2_sizes import UNetSizes
from fastdb.models.layouts.tables import layout_of
from fastdb.reporting import format_bytes

PROBE = """
import sys
from pathlib import Path
from fastdb.formats.reader import open_tensors
from fastdb.models.prediction import probe_unet
probe_unet(open_tensors(Path(sys.argv[1])))
"""
NOTHING = "import diffusers; from diffusers import UNet2DConditionModel; import fastdb.models.prediction"


def build(file: Path) -> Path:
    """Write the UNet of SD 2.x with random weights, in its original names, once."""
    if not file.exists():
        torch.manual_seed(0)
        sizes = UNetSizes(takes=4, gives=4, widths=(320, 640, 1280, 1280), context=1024)
        state = UNet2DConditionModel.from_config(sizes.config()).half().state_dict()
        lines = [line for line in layout_of("sd2").lines.values() if line.part == "unet"]
        save_file({line.original: line.join(state[line.names[0]]) for line in lines}, file)
    return file


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    file = build(parser.parse_args().folder / "unet.safetensors")
    rows = [("imports alone", *measured("-c", NOTHING)), ("probe", *measured("-c", PROBE, file))]
    console.say(f"{sys.version.split()[0]}, torch {torch.__version__}, {format_bytes(file.stat().st_size)}")
    console.table(("what", "CPU s", "peak RSS, GB"), [(name, f"{cpu:.1f}", f"{peak:.2f}") for name, cpu, peak in rows])


if __name__ == "__main__":
    main()
