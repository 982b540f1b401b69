"""DreamBooth on mini, measured: `python benchmarks/likeness.py OUT [--recipes ...] [--subjects ...] [--seeds ...]`.

Each run makes a session of five pictures of a subject, trains it as `fastdb train` does, evaluates its last checkpoint
against the untrained base (`fastdb evaluate`), and adds a line to OUT/results.jsonl; runs that have one are not made
again. `--table` prints the table of what is there. Costs are CPU seconds of all processes of a run, training and
evaluation apart.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fastdb import workflow
from fastdb.images.intake import save_png
from fastdb.world.scene import prompt
from fastdb.world.subjects import SUBJECTS

TUNED_ON = "car"
FIGURES = ("subject", "subject_class", "both", "background", "leak", "coloured_leak", "others", "others_kept")

RECIPES: dict[str, dict[str, Any]] = {
    "recommended": {},
    "no prior": {"prior.class_images": 0},
    "prior: one prompt": {"prior.prompts": "the class"},
    "no captions": {"captions": "none"},
    "some captions": {"captions": "some"},
    "no text encoder": {"text_encoder.steps": 0},
    "joint": {"text_encoder.mode": "joint"},
    "min-SNR 5": {"min_snr_gamma": 5.0},
    "EMA 0.99": {"unet.ema_decay": 0.99},
    "UNet rate x 2": {"unet.learning_rate": 1.2e-3},
    "UNet rate / 2": {"unet.learning_rate": 3e-4},
    "UNet steps x 2": {"unet.steps": 500},
    "text encoder rate / 3": {"text_encoder.learning_rate": 3e-4},
}
"""What each differs by from the settings recommended for mini; each changes one thing."""


def main() -> None:
    """Make the runs that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--subjects", nargs="*", default=[name for name in SUBJECTS if name != TUNED_ON])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--pictures", type=int, default=8, help="pictures of a prompt; the subject's has 4 times as many"
    )
    parser.add_argument("--set", nargs="*", default=[], help="settings over all recipes, to try things out")
    parser.add_argument("--name", default="", help="what a recipe with --set is called")
    parser.add_argument("--keep", action="store_true", help="leave the sessions")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    over = dict(one.split("=", 1) for one in args.set)
    for recipe in [] if args.table else args.recipes:
        for seed in args.seeds:
            for subject in args.subjects:
                name = args.name or recipe
                key = {"recipe": name, "subject": subject, "seed": seed, "pictures": args.pictures}
                if any(key.items() <= row.items() for row in rows_in(results)):
                    continue
                row = key | run(args.out / "sessions", key, RECIPES[recipe] | over, args.keep)
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(table(rows_in(results)))


def run(root: Path, key: dict[str, Any], changes: dict[str, Any], keep: bool) -> dict[str, Any]:
    """One session from its pictures to its figures."""
    subject, settings = SUBJECTS[key["subject"]], {**changes, "seed": key["seed"]}
    folder = root / "-".join(str(part).replace(" ", "_").replace("/", "_").replace(":", "") for part in key.values())
    if folder.exists():
        shutil.rmtree(folder)
    captioned = settings.pop("captions", "all")
    if settings.get("prior.prompts") == "the class":
        settings["prior.prompts"] = [prompt(subject.shape)]
    photos = root / f"{folder.name}-photos"
    photos.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(subject.photos(), start=1):
        save_png(photo, photos / f"{subject.name} ({number}).png")
    settings["captions.instance_prompt"] = prompt(f"sks {subject.shape}")
    session = workflow.new(
        folder.name, "mini", [photos], token="sks", class_word=subject.shape, root=root, settings=settings
    )
    if captioned != "none":
        said = subject.captions() if captioned == "some" else subject.captions(every=True)
        for caption, path in zip(said, sorted(session.instance_images.glob("*.png")), strict=True):
            if caption:
                (session.captions / f"{path.stem}.txt").write_text(caption)
    began, before = time.monotonic(), cpu()
    workflow.train(session)
    trained, wall = cpu(), time.monotonic() - began
    # The untrained base draws the same for every session of a subject: once is enough.
    pictures, kept = session.path / "evaluation" / "pictures", root / "step-0" / f"{subject.name}-{key['pictures']}"
    if kept.exists():
        shutil.copytree(kept, pictures)
    report = workflow.evaluate(session.path, seeds=key["pictures"], checkpoints=[session.config.unet.steps])
    for folder_of_base in pictures.glob("step_0-*"):
        shutil.copytree(folder_of_base, kept / folder_of_base.name, dirs_exist_ok=True)
    last = report.measured[-1].values
    if not keep:
        shutil.rmtree(folder)
        shutil.rmtree(photos)
    return {
        **{name: round(last[name].mean, 4) for name in FIGURES if name in last},
        "train_cpu_s": round(trained - before),
        "train_wall_s": round(wall),
        "evaluate_cpu_s": round(cpu() - trained),
    }


def cpu() -> float:
    """CPU seconds of this process and of its children that ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def rows_in(results: Path) -> list[dict[str, Any]]:
    """The runs made so far."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Each recipe's mean over subjects and seeds, with the spread (standard deviation) between runs."""
    rows, names = list(rows), (*FIGURES, "train_cpu_s")
    lines = ["| recipe | runs | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        of_it = [row for row in rows if row["recipe"] == recipe]
        cells = []
        for name in names:
            values = [row[name] for row in of_it if name in row]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            digits = 0 if name == "train_cpu_s" else 2
            cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}" if values else "")
        lines.append(f"| {recipe} | {len(of_it)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
