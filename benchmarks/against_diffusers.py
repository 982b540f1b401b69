"""Compare losses and gradients of every step with those of diffusers' own script, fed with our draws.

    python benchmarks/against_diffusers.py SCRIPT FOLDER [--bases mini narrow] [--only NAME ...] [--steps 4]

SCRIPT is diffusers' `examples/dreambooth/train_dreambooth.py` or `train_dreambooth_lora.py`, which needs peft; see
`recorded.py` for how it is started. FOLDER takes
sessions and models, 1 GB. `narrow` has Stable Diffusion 1.5's topology at a fifth of its width and random weights.

Loss: the largest difference of a microbatch, relative. Gradient: the largest relative L2 difference of a step. Steps
follow each other with AdamW at a rate of 1e-5, so the comparison includes optimizer and schedule. The script trains no
text encoder alone: that stage is compared with its joint training at a rate of 0. The combination of min-SNR with prior
preservation is left out, because the script broadcasts the weights of both halves over one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from full_size import NARROW, build
from recorded import Record

from fastdb.commands import sessions
from fastdb.commands.trial import trial_photos
from fastdb.models.resolve import resolve_base
from fastdb.sessions.session import Session
from fastdb.storage.atomic_write import write_json

LOSS, GRADIENT = 1e-6, 2e-5
"""Limits."""
PROMPTS = ("a photo of sks mug", "a photo of a mug")
"""Of the instance and the class images."""
RATE = 1e-5


@dataclass(frozen=True)
class Case:
    """A way to train, as settings of ours and as arguments of the script."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    v: bool = False
    """Whether the base model predicts the velocity."""


_JOINT = {"text_encoder.mode": "joint", "text_encoder.learning_rate": RATE}
_PRIOR = {"prior.class_images": 6, "prior.weight": 0.7, "prior.batch_size": 0}
CASES = {
    "epsilon": Case(),
    "epsilon, batch of 3": Case({"batch_size": 3}, ["--train_batch_size=3"]),
    "v": Case(v=True),
    "prior": Case(_PRIOR, ["--with_prior_preservation", "--prior_loss_weight=0.7"]),
    "prior, batch of 2": Case(
        {**_PRIOR, "batch_size": 2}, ["--with_prior_preservation", "--prior_loss_weight=0.7", "--train_batch_size=2"]
    ),
    "v, prior": Case(_PRIOR, ["--with_prior_preservation", "--prior_loss_weight=0.7"], v=True),
    "min-SNR": Case({"min_snr_gamma": 5.0, "batch_size": 2}, ["--snr_gamma=5", "--train_batch_size=2"]),
    "v, min-SNR": Case({"min_snr_gamma": 5.0, "batch_size": 2}, ["--snr_gamma=5", "--train_batch_size=2"], v=True),
    "accumulation": Case({"gradient_accumulation": 3}, ["--gradient_accumulation_steps=3"]),
    "text encoder": Case(
        {"text_encoder.mode": "first", "text_encoder.learning_rate": 1e-9},
        ["--train_text_encoder", "--learning_rate=0"],
    ),
    "joint": Case(_JOINT, ["--train_text_encoder"]),
    "joint, prior": Case(
        {**_JOINT, **_PRIOR}, ["--train_text_encoder", "--with_prior_preservation", "--prior_loss_weight=0.7"]
    ),
    "checkpointing": Case({"gradient_checkpointing": True}, ["--gradient_checkpointing"]),
    "8-bit": Case({"optimizer.name": "adamw8bit"}, ["--use_8bit_adam"]),
}


_LORA = {"method": "lora", "lora.rank": 4, "lora.targets": "attention", "lora.init": "gaussian"}
LORA_CASES = {
    f"LoRA {name}": Case({**case.settings, **_LORA}, [*case.arguments, "--rank=4"], v=case.v)
    for name, case in CASES.items()
    # That script pairs embeddings wrongly in larger batches with prior preservation, and has no min-SNR.
    if name not in ("prior, batch of 2", "min-SNR", "v, min-SNR", "8-bit")
}
CASES |= LORA_CASES
"""Those of `train_dreambooth_lora.py`, with its targets and alpha; see `recorded.py` for the initial values."""


@dataclass(frozen=True)
class Difference:
    """The largest relative differences of a comparison, and how many steps it has."""

    loss: float
    gradient: float
    steps: int

    @property
    def small(self) -> bool:
        """Whether both are within the limits."""
        return self.loss <= LOSS and self.gradient <= GRADIENT


def base_model(folder: Path, name: str, *, v: bool) -> Path:
    """Return the folder of a base model, which is made once."""
    made = folder / f"{name}{'-v' if v else ''}"
    if not made.exists():
        if name == "narrow":
            build(made, NARROW)
        else:
            shutil.copytree(resolve_base("mini").folder, made)
        if v:
            config = made / "scheduler" / "scheduler_config.json"
            write_json(config, json.loads(config.read_text()) | {"prediction_type": "v_prediction"})
    return made


def new_session(folder: Path, base: Path, name: str, case: Case, steps: int) -> Session:
    """Create a session that trains in this way."""
    root = folder / "sessions"
    shutil.rmtree(root / name, ignore_errors=True)
    settings = {
        "resolution": 64,
        "batch_size": 1,
        "precision": "fp32",
        "text_encoder.steps": steps if "text_encoder.mode" in case.settings else 0,
        "unet.steps": steps,
        "unet.learning_rate": RATE,
        "prior.class_images": 0,
        "prior.prompts": [PROMPTS[1]],
        "prior.steps": 2,
        "captions.instance_prompt": PROMPTS[0],
        "captions.caption_files": False,
        "optimizer.name": "adamw",
        "samples.every_steps": 0,
        **case.settings,
    }
    return sessions.new(name, base, trial_photos(), token="sks", class_word="mug", settings=settings, root=root)


def compare(script: Path, folder: Path, base: str, name: str, steps: int) -> Difference:
    """Train both, and return the largest differences.

    Raises:
        subprocess.CalledProcessError: a run failed; its output is in FOLDER.
    """
    case = CASES[name]
    model = base_model(folder, base, v=case.v)
    label = f"{base}-{name.replace(', ', '-').replace(' ', '-')}"
    session = new_session(folder, model, label, case, steps)
    records = folder / f"{label}.ours", folder / f"{label}.script"
    run(folder / f"{label}.log", "ours", session.path, records[0])
    arguments = [
        f"--pretrained_model_name_or_path={model}",
        f"--instance_data_dir={images(session.instance_images, folder / 'instance')}",
        f"--class_data_dir={images(session.class_images, folder / 'class')}",
        f"--instance_prompt={PROMPTS[0]}",
        f"--class_prompt={PROMPTS[1]}",
        f"--num_class_images={case.settings.get('prior.class_images', 0)}",
        f"--output_dir={folder / 'output'}",
        f"--max_train_steps={steps}",
        f"--learning_rate={RATE}",
        "--resolution=64",
        "--center_crop",
        "--train_batch_size=1",
        "--lr_scheduler=linear",
        "--lr_warmup_steps=0",
        *case.arguments,
    ]
    run(folder / f"{label}.log", "script", script, records[1], "--draws", records[0], "--", *arguments)
    ours, theirs = map(Record.load, records)
    for record in records:
        record.unlink()
    if len(ours.losses) != len(theirs.losses) or len(ours.gradients) != len(theirs.gradients) or not ours.gradients:
        raise ValueError(f"{name}: {len(ours.gradients)} steps of ours, {len(theirs.gradients)} of the script")
    return Difference(
        max(abs(a - b) / abs(b) for a, b in zip(ours.losses, theirs.losses, strict=True)),
        max(distance(a, b) for a, b in zip(ours.gradients, theirs.gradients, strict=True)),
        len(ours.gradients),
    )


def images(source: Path, target: Path) -> Path:
    """Copy the images of a session's folder into a folder that has nothing else, and return it."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in source.glob("*.png"):
        shutil.copy(path, target)
    return target


def distance(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Return the relative L2 distance of two gradients; the last tensors of theirs, if ours are fewer."""
    pairs = list(zip(ours, theirs[-len(ours) :], strict=True))
    square = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    whole = sum(float(b.double().square().sum()) for _, b in pairs)
    return (square / whole) ** 0.5


def run(log: Path, *arguments: object, gradients: bool = True) -> None:
    """Run `recorded.py` at one thread."""
    program = Path(__file__).with_name("recorded.py")
    words = [str(word) for word in arguments]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(program.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    with log.open("a", encoding="utf-8") as output:
        command = [sys.executable, str(program), *words[:3], *["--gradients"] * gradients, *words[3:]]
        subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=True, env=environment)


def main() -> None:
    """Print a line for each comparison; exit with code 1 if a difference is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bases", nargs="+", default=["mini", "narrow"], choices=["mini", "narrow"])
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="by default all of the script")
    parser.add_argument("--steps", type=int, default=4)
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["FASTDB_CACHE"] = str(folder / "cache")
    print(f"{'base':8}{'case':27}{'steps':>6}{'loss':>10}{'gradient':>10}")
    own = LORA_CASES if chosen.script.stem.endswith("lora") else CASES.keys() - LORA_CASES.keys()
    small = True
    for base in chosen.bases:
        for name in chosen.only or [name for name in CASES if name in own]:
            worst = compare(chosen.script.absolute(), folder, base, name, chosen.steps)
            small &= worst.small
            print(f"{base:8}{name:27}{worst.steps:6}{worst.loss:10.1e}{worst.gradient:10.1e}", flush=True)
    sys.exit(0 if small else 1)


if __name__ == "__main__":
    main()
