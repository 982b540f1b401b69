"""Compare the peak memory of trainings on this machine's CPU with the prediction.

    python benchmarks/memory.py FOLDER [--only NAME ...]

Each setting trains 4 steps in a fresh process, which saves after the second. Measured is the peak of its resident
memory above that after the imports; latents are cached before. `narrow` has Stable Diffusion 1.5's topology at a fifth
of its width and random weights. FOLDER takes models and sessions, 2 GB. The last column has the CPU seconds of the
prediction.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.full_size import NARROW, build, photos
from fastdb.models.resolve import resolve_base
from fastdb.runtime.isolation import environment

WITHIN = 0.1
COMMON: dict[str, Any] = {
    "batch_size": 1,
    "text_encoder.steps": 0,
    "unet.steps": 4,
    "prior.class_images": 0,
    "captions.instance_prompt": "a photo of sks mug",
    "optimizer.name": "adamw",
    "checkpoints.every_steps": 2,
    "checkpoints.every_minutes": 1440,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mini, 64 px": ("mini", {"resolution": 64}),
    "mini, 256 px, batch 4, EMA": ("mini", {"resolution": 256, "batch_size": 4, "unet.ema_decay": 0.99}),
    "mini, 512 px, batch 2, checkpointing": (
        "mini",
        {"resolution": 512, "batch_size": 2, "gradient_checkpointing": True},
    ),
    "mini, 512 px, accumulation": ("mini", {"resolution": 512, "gradient_accumulation": 2}),
    "narrow, 64 px, adamw8bit": ("narrow", {"resolution": 64, "optimizer.name": "adamw8bit"}),
    "narrow, 256 px, batch 2, EMA": ("narrow", {"resolution": 256, "batch_size": 2, "unet.ema_decay": 0.99}),
    "narrow, 256 px, joint": (
        "narrow",
        {"resolution": 256, "text_encoder.mode": "joint", "text_encoder.steps": 4},
    ),
    "narrow, 512 px, checkpointing, adamw8bit": (
        "narrow",
        {"resolution": 512, "gradient_checkpointing": True, "optimizer.name": "adamw8bit"},
    ),
}
FRESH: dict[str, tuple[str, dict[str, Any]]] = {
    "narrow, 128 px, batch 4, adamw8bit": (
        "narrow",
        {"resolution": 128, "batch_size": 4, "optimizer.name": "adamw8bit"},
    ),
    "narrow, 384 px": ("narrow", {"resolution": 384}),
    "narrow, 256 px, checkpointing, EMA": (
        "narrow",
        {"resolution": 256, "gradient_checkpointing": True, "unet.ema_decay": 0.99},
    ),
    "mini, 384 px, batch 2, split": ("mini", {"resolution": 384, "batch_size": 2, "split_batches": True}),
    "narrow, 256 px, LoRA": ("narrow", {"resolution": 256, "method": "lora"}),
}
"""Settings on which the constants of the prediction were not fitted."""


def resident(name: str) -> int:
    """Return a figure of this process from the kernel, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def forget_peak() -> None:
    """Let the kernel count the peak of this process from now on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(folder: Path) -> dict[str, Any]:
    """Train a session in this process, and return its peak, the prediction and what that took."""
    with suppress(ImportError):
        import bitsandbytes  # noqa: F401 - the optimizer imports it
    import torch._dynamo  # noqa: F401 - torch imports it in the first step
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from fastdb.sessions.session import Session
    from fastdb.training import stage_run
    from fastdb.training.trainer import Trainer

    assert all((AutoencoderKL, UNet2DConditionModel, CLIPTextModel, CLIPTokenizer))
    built: list[Any] = []
    build_stage = stage_run._build

    def remember(name: str, run: Any) -> Any:
        observers = build_stage(name, run)
        built.append((observers.loop, run))
        return observers

    stage_run._build = remember
    before = resident("VmRSS")
    forget_peak()
    outcome = Trainer(Session.open(folder), lambda *_, **__: None, threading.Event()).run()
    peak = resident("VmHWM") - before
    began = time.process_time()
    shares = stage_run._shares(*built[-1], {})
    seconds = time.process_time() - began
    assert outcome == "finished"
    assert shares
    return {"peak": peak, "shares": shares, "seconds": seconds}


def cache_latents(folder: Path) -> None:
    """Cache the latents of a session."""
    from fastdb.sessions.session import Session
    from fastdb.training.prepare import image_groups, plan_run

    prepared, _, _ = plan_run(Session.open(folder), lambda *_, **__: None)
    image_groups(prepared, (), lambda *_, **__: None)


def run(folder: Path, name: str) -> dict[str, Any]:
    """Create a session and train it in a fresh process with a trainer's environment."""
    from fastdb.commands import sessions

    base, settings = (CASES | FRESH)[name]
    root = folder / "sessions"
    shutil.rmtree(root, ignore_errors=True)
    source = build(folder / "narrow", NARROW) if base == "narrow" else resolve_base("mini").folder
    session = sessions.new("memory", source, photos(folder / "photos"), settings=COMMON | settings, root=root)
    for task in ("cache", "measure"):
        program = [sys.executable, __file__, f"--{task}", str(session.path)]
        done = subprocess.run(program, env=environment(os.environ), capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> int:
    """Measure, print a table, and return 1 if a prediction is wrong by more than a tenth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--only", nargs="+", default=list(CASES | FRESH), choices=list(CASES | FRESH))
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.cache or chosen.measure:
        print(json.dumps(measure(chosen.measure) if chosen.measure else cache_latents(chosen.cache)))
        return 0
    folder = chosen.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["FASTDB_CACHE"] = str(folder / "cache")
    wrong = 0
    print("| setting | predicted, MB | measured, MB | ratio | CPU s |\n|---|---|---|---|---|")
    for name in chosen.only:
        figures = run(folder, name)
        predicted, measured = sum(figures["shares"].values()), figures["peak"]
        wrong += abs(predicted / measured - 1) > WITHIN
        row = (f"{predicted / 1e6:.0f}", f"{measured / 1e6:.0f}", f"{predicted / measured:.2f}")
        print(f"| {name} | {' | '.join(row)} | {figures['seconds']:.1f} |", flush=True)
        print(
            "   " + ", ".join(f"{share} {size / 1e6:.0f}" for share, size in figures["shares"].items()), file=sys.stderr
        )
    print(f"{wrong} of {len(chosen.only)} are wrong by more than {WITHIN:.0%}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
