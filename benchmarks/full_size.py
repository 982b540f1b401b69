"""Time and memory of training and export for random weights of Stable Diffusion 1.5's full size.

    python benchmarks/full_size.py FOLDER [--optimizer adamw8bit] [--resolution 64] [--steps 3]

FOLDER needs about 25 GB. The script builds the model there once, then a session of three photos that trains both stages
and exports. It prints seconds per step (median), seconds per checkpoint, the trainer's peak resident memory, and sizes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from skimage import data

from fastdb.commands import results, sessions
from fastdb.images.photos import save_png
from fastdb.models.diffusers_folder import read_config, weight_file
from fastdb.models.resolve import resolve_base
from fastdb.reporting import format_bytes
from fastdb.storage.atomic_write import write_json
from fastdb.training import process

WIDTHS: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [320, 640, 1280, 1280],
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "norm_num_groups": 32,
        "sample_size": 64,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "norm_num_groups": 32,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "vocab_size": 49408,
    },
}
"""Configuration values of SD 1.5 that differ from mini's, which has the same topology."""


NARROW: dict[str, dict[str, Any]] = {
    "unet": WIDTHS["unet"] | {"block_out_channels": [64, 128, 256, 256], "cross_attention_dim": 160},
    "vae": WIDTHS["vae"] | {"block_out_channels": [32, 64, 128, 128]},
    "text_encoder": WIDTHS["text_encoder"]
    | {"hidden_size": 160, "intermediate_size": 640, "num_attention_heads": 4, "projection_dim": 160},
}
"""The same at a fifth of the width."""


def build(folder: Path, widths: dict[str, dict[str, Any]] = WIDTHS) -> Path:
    """Write a diffusers folder with SD 1.5's real sizes, or others, random float32 weights and mini's tokenizer."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    index = folder / "model_index.json"
    if index.exists():
        return folder
    mini = resolve_base("mini").folder
    shutil.copytree(mini, folder, dirs_exist_ok=True)
    index.unlink()  # written last, as the mark of a complete folder
    torch.manual_seed(0)
    make: dict[str, Callable[[dict[str, Any]], Any]] = {
        "unet": UNet2DConditionModel.from_config,
        "vae": AutoencoderKL.from_config,
        "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
    }
    for part, values in widths.items():
        config = read_config(mini / part / "config.json") | values
        state = make[part](config).state_dict()
        weights = {name: value for name, value in state.items() if not name.endswith("position_ids")}
        save_file(weights, weight_file(folder, part), {"format": "pt"})
        write_json(folder / part / "config.json", config)
    shutil.copy(mini / index.name, index)
    return folder


def photos(folder: Path) -> list[Path]:
    """Write three real photos."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for name, picture in {"sks cat": data.cat(), "sks woman": data.astronaut(), "sks cup": data.coffee()}.items():
        save_png(Image.fromarray(picture), folder / f"{name}.png")
    return sorted(folder.glob("*.png"))


def follow(running: process.Running) -> tuple[dict[str, list[float]], list[float], float]:
    """Return seconds of each step by stage, seconds of each checkpoint, peak resident bytes of the trainer."""
    steps: dict[str, list[float]] = {}
    saves: list[float] = []
    peak = 0.0
    for event in running.follow():
        status = Path(f"/proc/{running.pid}/status")
        for line in status.read_text().splitlines() if status.exists() else ():
            if line.startswith(("VmHWM", "RssAnon")):
                peak = max(peak, float(line.split()[1]) * 1024)
        if event["event"] == "step":
            steps.setdefault(event["stage"], []).append(event["seconds"])
        if event["event"] == "saved":
            saves.append(event["seconds"])
        if event["event"] == "end" and event["outcome"] != "finished":
            raise SystemExit(event)
    return steps, saves, peak


def main() -> None:
    """Run the benchmark once and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    chosen = parser.parse_args()
    base = build(chosen.folder / "sd15")
    root, name = chosen.folder / "sessions", "full"
    shutil.rmtree(root / name, ignore_errors=True)
    settings = {
        "resolution": chosen.resolution,
        "text_encoder.steps": chosen.steps,
        "unet.steps": chosen.steps,
        "optimizer.name": chosen.optimizer,
    }
    began = time.perf_counter()
    session = sessions.new(name, base, photos(chosen.folder / "photos"), root=root, settings=settings)
    print(f"New session: {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    steps, saves, peak = follow(process.start(session))
    print(f"training in all: {time.perf_counter() - began:.1f} s, peak of the trainer {format_bytes(int(peak))}")
    for stage, seconds in steps.items():
        print(f"{stage}: {statistics.median(seconds):.2f} s a step (median of {len(seconds)}, {os.cpu_count()} cores)")
    for path, seconds in zip(sorted(session.checkpoints.glob("*-0*")), saves, strict=False):
        total = sum(file.stat().st_size for file in path.iterdir())
        print(f"checkpoint {path.name}: {format_bytes(total)}, {seconds:.1f} s written, read back and hashed")
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    files = results.export(session)
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    print(f"export of {', '.join(format_bytes(file.stat().st_size) for file in files)}: {used:.1f} CPU s in all")


if __name__ == "__main__":
    main()
