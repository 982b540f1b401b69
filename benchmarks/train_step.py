"""Compare CPU seconds of a UNet training step, start-up and memory with those of diffusers' own script, at one thread.

    python benchmarks/train_step.py SCRIPT FOLDER [--size narrow | sd15] [--resolution 256] [--steps 8] [--rounds 3]

SCRIPT is diffusers' `examples/dreambooth/train_dreambooth.py`. Each round trains both, one after the other, each in a
fresh process: fp32, a batch of 1, AdamW, no checkpointing. A step is the median of the CPU seconds between two updates.
Start-up is what the process used before its first step. The last lines give what the machine can do: products of
matrices of 1,024 x 1,024, and copies in memory. FOLDER takes models and sessions, 1 GB for `narrow`, 25 GB for `sd15`,
Stable Diffusion 1.5 at its full size.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path

import torch
from against_diffusers import PROMPTS, RATE, images, run
from full_size import NARROW, WIDTHS, build, photos
from recorded import Record

from fastdb.commands import sessions
from fastdb.reporting import format_bytes
from fastdb.sessions.session import Session


def new_session(folder: Path, base: Path, resolution: int, steps: int) -> Session:
    """Create a session that trains the UNet as the script does."""
    root = folder / "sessions"
    shutil.rmtree(root, ignore_errors=True)
    settings = {
        "resolution": resolution,
        "batch_size": 1,
        "precision": "fp32",
        "text_encoder.steps": 0,
        "unet.steps": steps,
        "unet.learning_rate": RATE,
        "prior.class_images": 0,
        "captions.instance_prompt": PROMPTS[0],
        "captions.caption_files": False,
        "optimizer.name": "adamw",
        "checkpoints.every_steps": 10_000,
        "checkpoints.every_minutes": 1440,
    }
    return sessions.new("step", base, photos(folder / "photos"), settings=settings, root=root)


def measure(script: Path, folder: Path, base: Path, resolution: int, steps: int) -> tuple[Record, Record]:
    """Train both once, in fresh processes."""
    session = new_session(folder, base, resolution, steps)
    records = folder / "ours.record", folder / "script.record"
    log = folder / "train_step.log"
    run(log, "ours", session.path, records[0], gradients=False)
    arguments = [
        f"--pretrained_model_name_or_path={base}",
        f"--instance_data_dir={images(session.instance_images, folder / 'instance')}",
        f"--instance_prompt={PROMPTS[0]}",
        f"--output_dir={folder / 'output'}",
        f"--max_train_steps={steps}",
        f"--learning_rate={RATE}",
        f"--resolution={resolution}",
        "--center_crop",
        "--train_batch_size=1",
        "--lr_scheduler=linear",
        "--lr_warmup_steps=0",
        "--checkpointing_steps=100000",
    ]
    run(log, "script", script, records[1], "--", *arguments, gradients=False)
    return Record.load(records[0]), Record.load(records[1])


def step(record: Record) -> float:
    """Return the median CPU seconds of a step, without the first two, which take memory."""
    return statistics.median(after - before for before, after in zip(record.cpu[1:], record.cpu[2:], strict=False))


def limits() -> tuple[float, float]:
    """Return GFLOP/s of products of matrices and GB/s of copies on this machine, at one thread."""
    torch.set_num_threads(1)
    matrix, block = torch.randn(1024, 1024), torch.randn(1 << 26)

    def best(work: object, times: int = 5) -> float:
        durations = []
        for _ in range(times):
            began = time.process_time()
            work()  # type: ignore[operator]
            durations.append(time.process_time() - began)
        return min(durations)

    return 2 * 1024**3 / best(lambda: matrix @ matrix) / 1e9, 2 * 4 * block.numel() / best(lambda: block.clone()) / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=["narrow", "sd15"], default="narrow")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["FASTDB_CACHE"] = str(folder / "cache")
    base = build(folder / chosen.size, {"narrow": NARROW, "sd15": WIDTHS}[chosen.size])
    rounds = []
    for _ in range(chosen.rounds):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        rounds.append(measure(chosen.script.absolute(), folder, base, chosen.resolution, chosen.steps))
    print(f"{chosen.size}, {chosen.resolution} px, {chosen.steps} steps, {chosen.rounds} rounds, medians")
    print(f"{'':10}{'CPU s a step':>14}{'start-up':>10}{'peak':>10}")
    figures = []
    for name, records in zip(("fastdb", "script"), zip(*rounds, strict=True), strict=True):
        seconds = statistics.median(map(step, records))
        start = statistics.median(record.cpu[0] - step(record) for record in records)
        peak = statistics.median(record.peak for record in records)
        figures.append((seconds, start, peak))
        print(f"{name:10}{seconds:14.2f}{start:10.1f}{format_bytes(int(peak)):>10}")
    ratios = [theirs / ours for ours, theirs in zip(*figures, strict=True)]
    print(f"{'ratio':10}{ratios[0]:14.2f}{ratios[1]:10.2f}{ratios[2]:10.2f}")
    gemm, bandwidth = limits()
    print(f"this machine at one thread: {gemm:.1f} GFLOP/s in products of matrices, {bandwidth:.1f} GB/s in copies")


if __name__ == "__main__":
    main()
