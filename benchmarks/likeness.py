"""Measure DreamBooth on mini.

    python benchmarks/likeness.py OUT [--recipes ...] [--subjects ...] [--seeds ...] [--guidance ...]

Each run creates a session of five pictures of a subject, trains it like `fastdb train`, evaluates its last checkpoint
against the untrained base (`fastdb evaluate`), and appends a line to OUT/results.jsonl for each guidance; runs with a
line are skipped. `accepted` is the share of 60 true pictures of the subject, after mini's autoencoder, that the reading
accepts: the figures of subjects can hardly be larger.
With `--file` the exported `.safetensors` is evaluated too, with a line of its own. The output of a run goes into a log
beside its session. Costs are CPU seconds of all processes of a run, separate for training and evaluation; `--jobs 2`
makes two runs at a time on a thread each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from reading import there_and_back
from reading_subjects import KEPT_OUT, SEEN, TUNING

from fastdb.checkpoints.progress import steps_of
from fastdb.commands import results, sessions, training
from fastdb.evaluation.report import Evaluation
from fastdb.images.photos import save_png
from fastdb.measures.drawn import autoencoder
from fastdb.models.resolve import resolve_base
from fastdb.sessions.session import Session
from fastdb.world.draw import draw
from fastdb.world.likeness import read_subject
from fastdb.world.scene import BACKGROUNDS, TEXTURES, prompt, random_pose
from fastdb.world.subjects import Subject

SUBJECTS = {marked.name: marked.subject for marked in (*TUNING, *SEEN, *KEPT_OUT)}
TUNED_ON = ("dog", "mug")
"""The subjects that recommended settings were chosen on."""

REPORTED = ("fish", "house", "car", "boat", "heart")
MEASURED = (
    "subject",
    "subject_class",
    "both",
    "background",
    "leak",
    "coloured_leak",
    "others",
    "others_kept",
)
FIGURES = ("accepted", *MEASURED)
COSTS = ("train_cpu_s",)
FROM_FILE = ", from its exported file"

RECIPES: dict[str, dict[str, Any]] = {
    "recommended": {},
    "no prior": {"prior.class_images": 0},
    "prior: one prompt": {"prior.prompts": "the class"},
    "no captions": {"captions": False},
    "captions always": {"captions.caption_dropout": 0},
    "no text encoder": {"text_encoder.steps": 0},
    "joint": {"text_encoder.mode": "joint"},
    "min-SNR 5": {"min_snr_gamma": 5.0},
    "EMA 0.98": {"unet.ema_decay": 0.98},
    "UNet rate x 2": {"unet.learning_rate": 1.2e-3},
    "UNet rate / 2": {"unet.learning_rate": 3e-4},
    "UNet steps / 2": {"unet.steps": 225},
    **{
        f"extended: {schedule}": {
            "unet.steps": 225,
            "unet.extensions": [{"steps": 112, "schedule": schedule, "learning_rate": 3e-4}],
        }
        for schedule in ("hold", "decay", "rewarm")
    },
}
"""Changes of each recipe to the recommended settings of mini."""

Row = dict[str, Any]


def main() -> None:
    """Make the missing runs, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--subjects", nargs="*", default=list(REPORTED), choices=list(SUBJECTS))
    parser.add_argument(
        "--guidance", nargs="*", type=float, default=[], help="by default that of the session's samples"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--pictures", type=int, default=8, help="pictures per prompt; the subject prompt gets 4 times as many"
    )
    parser.add_argument("--set", nargs="*", default=[], help="settings for all recipes")
    parser.add_argument("--name", default="", help="prefix of the recipes' names with --set")
    parser.add_argument("--file", action="store_true", help="evaluate the exported .safetensors as well")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--keep", action="store_true", help="keep the sessions")
    parser.add_argument("--table", action="store_true", help="only print the existing results")
    args = parser.parse_args()
    root, results = args.out.absolute() / "sessions", args.out / "results.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    overrides = dict(setting.split("=", 1) for setting in args.set)
    keys = [
        {"recipe": f"{args.name} {recipe}".strip(), "taught": subject, "seed": seed, "pictures": args.pictures}
        for recipe in args.recipes
        for seed in args.seeds
        for subject in args.subjects
    ]
    made = rows_in(results)
    wanted = [] if args.table else [key for key in keys if not any(key.items() <= row.items() for row in made)]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        changes = [RECIPES[key["recipe"].removeprefix(args.name).strip()] | overrides for key in wanted]
        jobs = [
            pool.submit(run, root, key, change, args.guidance or [None], args.file, args.keep)
            for key, change in zip(wanted, changes, strict=True)
        ]
        for job in jobs:
            for row in job.result():
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    print(
        table(rows_in(results), ("recipe", "guidance")),
        table(rows_in(results), ("recipe", "guidance", "taught")),
        sep="\n\n",
    )


def run(root: Path, key: Row, changes: Row, guidances: list[float | None], from_file: bool, keep: bool) -> list[Row]:
    """Train and evaluate a session and return its figures and those of its exported file, with a log."""
    name = "-".join("".join(letter if letter.isalnum() else "_" for letter in str(part)) for part in key.values())
    with (root / f"{name}.log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        session = make(root, name, key, changes)
        share = root / "shared"
        began, before = time.monotonic(), cpu()
        with shared(session.class_images, share / f"class-{_digest(session)}"):
            training.train(session)
        costs = {"train_cpu_s": round(cpu() - before), "train_wall_s": round(time.monotonic() - began)}
        key = key | {"accepted": accepted(SUBJECTS[key["taught"]])}
        rows = []
        for guidance in guidances:
            trained, pictures = cpu(), session.path / "evaluation" / "pictures"
            shutil.rmtree(pictures, ignore_errors=True)
            drawn = session.config.samples.guidance if guidance is None else guidance
            options: Row = {"seeds": key["pictures"], "guidance": drawn}
            # The untrained base draws the same pictures for every session of a subject.
            place = share / f"step-0-{key['taught']}-{key['pictures']}-{drawn:g}"
            with shared(pictures, place, only="step_0-*"):
                evaluation = results.evaluate(session, checkpoints=[steps_of(session, "unet")], **options)
            row = key | figures(evaluation) | costs | {"guidance": drawn}
            rows.append(row | {"evaluate_cpu_s": round(cpu() - trained)})
            if from_file:
                (file,) = results.export(session, formats=["safetensors"])
                of_file = figures(results.evaluate(session, file=file, **options))
                rows.append(key | of_file | {"recipe": key["recipe"] + FROM_FILE, "guidance": drawn})
    if not keep:
        shutil.rmtree(session.path)
    return rows


def accepted(subject: Subject, count: int = 60) -> float:
    """Return the share of true pictures that the reading accepts after mini's autoencoder."""
    numbers, round_trip = random.Random(subject.name), autoencoder(resolve_base("mini").folder)
    places = ((numbers.choice(list(BACKGROUNDS)), numbers.choice(TEXTURES), random_pose(numbers)) for _ in range(count))
    pictures = there_and_back([draw(subject.scene(*place)) for place in places], round_trip)
    reading = read_subject(subject.photos(), round_trip)
    assert reading is not None
    return round(sum(likeness.present for likeness in reading.find(pictures)) / count, 4)


def make(root: Path, name: str, key: Row, changes: Row) -> Session:
    """Create a session of five pictures, with captions of their backgrounds unless the recipe has none."""
    if (root / name).exists():
        shutil.rmtree(root / name)
    subject, settings = SUBJECTS[key["taught"]], {**changes, "seed": key["seed"]}
    captioned = settings.pop("captions", True)
    if settings.get("prior.prompts") == "the class":
        settings["prior.prompts"] = [prompt(subject.shape)]
    photos = root / f"{name}-photos"
    photos.mkdir(exist_ok=True)
    for number, photo in enumerate(subject.photos(), start=1):
        save_png(photo, photos / f"{subject.name} ({number}).png")
        if captioned:
            (photos / f"{subject.name} ({number}).txt").write_text(subject.captions()[number - 1])
    settings["captions.instance_prompt"] = prompt(f"sks {subject.shape}")
    session = sessions.new(name, "mini", [photos], token="sks", class_word=subject.shape, root=root, settings=settings)
    shutil.rmtree(photos)
    return session


@contextmanager
def shared(folder: Path, place: Path, only: str = "*") -> Iterator[None]:
    """Copy the files of earlier runs from `place` into `folder`, and keep new files in `place` for later runs."""
    if place.exists():
        shutil.copytree(place, folder, dirs_exist_ok=True)
    yield
    if not place.exists() and folder.exists():
        new = place.with_name(f"{place.name}-{os.getpid()}")
        new.mkdir(parents=True)
        for path in folder.glob(only):
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, new / path.name)
        if place.exists():
            shutil.rmtree(new)
        else:
            new.rename(place)


def _digest(session: Session) -> str:
    """Return a hash of all inputs of class images."""
    inputs = json.dumps([session.config.prior.model_dump(mode="json"), session.config.seed, session.class_prompts])
    return hashlib.sha256(inputs.encode()).hexdigest()[:12]


def figures(evaluation: Evaluation) -> Row:
    """Return the last candidate's figures."""
    last = evaluation.measured[-1].values
    return {name: round(last[name].mean, 4) for name in MEASURED if name in last}


def cpu() -> float:
    """Return the CPU seconds of this process and its finished children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def rows_in(results: Path) -> list[Row]:
    """Read the existing results."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def table(rows: Iterable[Row], by: tuple[str, ...]) -> str:
    """Return a table of the mean and standard deviation of each group of runs."""
    rows, names = list(rows), (*FIGURES, *COSTS)
    lines = ["| " + " | ".join((*by, "runs", *names)) + " |", "|---" * (len(by) + 1 + len(names)) + "|"]
    for group in dict.fromkeys(tuple(row[name] for name in by) for row in rows):
        of_it = [row for row in rows if tuple(row[name] for name in by) == group]
        cells = []
        for name in names:
            values = [row[name] for row in of_it if name in row]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            digits = 0 if name in COSTS else 2
            cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}" if values else "")
        lines.append("| " + " | ".join((*map(str, group), str(len(of_it)), *cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
