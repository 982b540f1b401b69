"""Compare CPU seconds of a UNet training step, start-up and memory with those of diffusers' own script, at one thread.

    python benchmarks/train_step.py SCRIPT FOLDER [--size narrow | sd15] [--resolution 256] [--steps 8] [--rounds 3]

SCRIPT is diffusers' `examples/dreambooth/train_dreambooth.py`. Each round trains both, one after the other, each in a
fresh process: fp32, a batch of 1, AdamW, no checkpointing; ours also with the update fused into the backward pass,
without clipping. A step is the median of the CPU seconds between two updates. Start-up is what the process used before
its first backward pass. The last lines give what the machine can do, products of matrices of 1,024 x 1,024 and copies
in memory, and what a step needs of it. FOLDER takes models and sessions, 1 GB for `narrow`, 25 GB for `sd15`, Stable
Diffusion 1.5 at its full size.
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
from torch.utils.flop_counter import FlopCounterMode

from fastdb.commands import sessions
from fastdb.models.diffusers_folder import read_config
from fastdb.reporting import format_bytes
from fastdb.sessions.session import Session

FUSED = {"optimizer.max_grad_norm": 0, "optimizer.fused_backward_pass": True}


def new_session(folder: Path, base: Path, resolution: int, steps: int, **changed: object) -> Session:
    """Create a session that trains the UNet as the script does, except for changed settings."""
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
        **changed,
    }
    return sessions.new("step", base, photos(folder / "photos"), settings=settings, root=root)


def measure(script: Path, folder: Path, base: Path, resolution: int, steps: int) -> list[Record]:
    """Train ours, ours with a fused update, and the script once, each in a fresh process."""
    records = [folder / f"{name}.record" for name in ("ours", "fused", "script")]
    log = folder / "train_step.log"
    for record, changed in zip(records, ({}, FUSED), strict=False):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        session = new_session(folder, base, resolution, steps, **changed)
        run(log, "ours", session.path, record, gradients=False)
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
    run(log, "script", script, records[2], "--", *arguments, gradients=False)
    return [Record.load(record) for record in records]


def step(record: Record) -> float:
    """Return the median CPU seconds of a step, without the first two, which take memory."""
    return statistics.median(after - before for before, after in zip(record.cpu[1:], record.cpu[2:], strict=False))


def limits() -> tuple[float, float]:
    """Return GFLOP/s of products of matrices and GB/s of copies on this machine, at one thread."""
    torch.set_num_threads(1)
    matrix, block = torch.randn(1024, 1024), torch.randn(1 << 26)
    copy = block.clone()

    def best(work: object, times: int = 5) -> float:
        durations = []
        for _ in range(times):
            began = time.process_time()
            work()  # type: ignore[operator]
            durations.append(time.process_time() - began)
        return min(durations)

    seconds = best(lambda: copy.copy_(block))
    return 2 * 1024**3 / best(lambda: matrix @ matrix) / 1e9, 2 * 4 * block.numel() / seconds / 1e9


def needs(base: Path, resolution: int) -> tuple[float, float]:
    """Return GFLOP of a forward and a backward pass, and GB that pass through the memory at least.

    Of each weight's 4 bytes: both passes read it, its gradient is written, and AdamW reads weight, gradient and two
    moments and writes three of them.
    """
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_config(base / "unet" / "config.json"))
        latents, prompt = (
            torch.empty(1, 4, resolution // 8, resolution // 8),
            torch.empty(1, 77, unet.config.cross_attention_dim),
        )
        step = torch.zeros(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        unet(latents, step, prompt)[0].sum().backward()
    weights = sum(weight.numel() for weight in unet.parameters())
    return counter.get_total_flops() / 1e9, (2 + 1 + 7) * 4 * weights / 1e9


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
        rounds.append(measure(chosen.script.absolute(), folder, base, chosen.resolution, chosen.steps))
    print(f"{chosen.size}, {chosen.resolution} px, {chosen.steps} steps, {chosen.rounds} rounds, medians")
    print(f"{'':16}{'CPU s a step':>14}{'start-up':>10}{'peak':>10}")
    figures = []
    for name, records in zip(("fastdb", "fastdb, fused", "script"), zip(*rounds, strict=True), strict=True):
        seconds = statistics.median(map(step, records))
        start = statistics.median(record.start for record in records)
        peak = statistics.median(record.peak for record in records)
        figures.append((seconds, start, peak))
        print(f"{name:16}{seconds:14.2f}{start:10.1f}{format_bytes(int(peak)):>10}")
    for name, ours in zip(("ratio", "ratio, fused"), figures, strict=False):
        ratios = [theirs / own for own, theirs in zip(ours, figures[2], strict=True)]
        print(f"{name:16}{ratios[0]:14.2f}{ratios[1]:10.2f}{ratios[2]:10.2f}")
    (gemm, bandwidth), (work, traffic) = limits(), needs(base, chosen.resolution)
    print(f"this machine at one thread: {gemm:.1f} GFLOP/s in products of matrices, {bandwidth:.1f} GB/s in copies")
    print(f"a step: {work:.1f} GFLOP, {work / gemm:.2f} s; at least {traffic:.1f} GB, {traffic / bandwidth:.2f} s")


if __name__ == "__main__":
    main()
