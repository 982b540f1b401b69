"""Measure mini without training.

    python benchmarks/mini.py [--prompts 128] [--words 16] [--model FOLDER] [--sheet FILE]

Draws random prompts of the drawn world with fixed seeds, reads the pictures with the judge, and measures the
autoencoder on held-out pictures. The judge's own accuracy comes first because the other figures depend on it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from fastdb.images.contact_sheet import Cell, Row, contact_sheet
from fastdb.images.photos import save_png
from fastdb.inference.engine import Engine
from fastdb.inference.request import Request
from fastdb.measures.drawn import autoencoder
from fastdb.models.diffusers_folder import open_base_model
from fastdb.models.loading import load_part
from fastdb.models.mini_settings import recommended
from fastdb.models.registry import MINI
from fastdb.models.resolve import resolve_base
from fastdb.world.draw import SIDE, draw
from fastdb.world.likeness import read_subject
from fastdb.world.readings import HEADS, Reading, expected_reading, read, to_tensor
from fastdb.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene, prompt, random_scene
from fastdb.world.subjects import SUBJECTS

SEED = 1_000_003
"""Seed of all pictures here; training pictures have other seeds."""

HELD_OUT = 1000
"""Number of pictures that judge and autoencoder are measured on."""

BATCH = 16
"""Pictures per batch."""

ON_SHEET = 40

UNKNOWN = ("sks", "ohwx", "zwx")
"""Words that mini's captions never contain."""


def main() -> None:
    """Print the figures; save the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder to measure instead of the shipped model")
    parser.add_argument("--prompts", type=int, default=128, help="0 skips the denoiser")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--words", type=int, default=16, help="pictures of each class after each unknown word")
    parser.add_argument("--sheet", type=Path, help=f"where to save the first {ON_SHEET} pictures")
    args = parser.parse_args()
    folder = args.model or resolve_base("mini").folder
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    print(f"weights: {weights / 1e6:.2f} MB in half precision")

    scenes = [random_scene(random.Random(f"{SEED}/held/{number}")) for number in range(HELD_OUT)]
    pictures = [draw(scene) for scene in scenes]
    back = show_autoencoder(folder, pictures)
    show_judge("drawn", scenes, pictures)
    show_judge("round trips", scenes, back)
    show_subjects(folder, scenes, back)
    if args.prompts > 0:
        asked = prompts(args.prompts)
        drawn = show_prompts(folder, asked, args.steps, args.guidance)
        if args.sheet:
            save(args.sheet, asked, drawn)
    if args.words > 0:
        show_unknown_words(folder, args.words)


def show_autoencoder(folder: Path, pictures: list[Image.Image]) -> list[Image.Image]:
    """Print the autoencoder's PSNR on drawn pictures and subjects; return the decoded pictures."""
    back, quality = round_trips(folder, pictures)
    _, of_subjects = round_trips(folder, [photo for subject in SUBJECTS.values() for photo in subject.photos()])
    print(f"autoencoder on {len(pictures)} pictures: PSNR {quality:.2f} dB; on subjects {of_subjects:.2f} dB")
    return back


def show_judge(kind: str, scenes: list[Scene], pictures: list[Image.Image]) -> None:
    """Print the judge's accuracy."""
    print(f"judge on {kind}: " + figures(compared([expected_reading(scene) for scene in scenes], read(pictures))))


def show_subjects(folder: Path, scenes: list[Scene], back: list[Image.Image]) -> None:
    """Print how often each subject is found in its own decoded pictures and in others of its class."""
    round_trip = autoencoder(folder)
    for subject in SUBJECTS.values():
        reading = read_subject(subject.photos(), round_trip)
        assert reading is not None
        again, _ = round_trips(folder, subject.photos())
        others = [picture for picture, scene in zip(back, scenes, strict=True) if scene.shape == subject.shape]
        seen, false = (sum(likeness.present for likeness in reading.find(group)) for group in (again, others))
        print(
            f"subject {subject.name}: found in {seen} of {len(again)} round trips of itself, "
            f"in {false} of {len(others)} of others of its class"
        )


def show_prompts(folder: Path, asked: list[tuple[Reading, str]], steps: int, guidance: float) -> list[Image.Image]:
    """Print the accuracy of pictures and the wrong readings; return the pictures."""
    began = time.process_time()
    drawn = generate(Engine.from_base(open_base_model(folder)), [text for _, text in asked], steps, guidance)
    seconds = (time.process_time() - began) / len(drawn)
    readings = read(drawn)
    rows = compared([wanted for wanted, _ in asked], readings)
    right = sum(all(row) for row in rows) / len(rows)
    print(f"{len(drawn)} prompts, {steps} steps, guidance {guidance:g} ({seconds:.2f} CPU s each):")
    print(f"  {figures(rows)}, all four {right:.3f}")
    for (wanted, text), reading in zip(asked, readings, strict=True):
        if wanted != reading:
            print(f"  {text}: read as {reading.colour} {reading.shape}, {reading.texture} {reading.background}")
    return drawn


def show_unknown_words(folder: Path, count: int) -> None:
    """Print how often the class is drawn after a word that no caption contains, with a session's guidance."""
    engine, guidance = Engine.from_base(open_base_model(folder)), recommended(MINI, "")["samples.guidance"]
    pairs = [(word, shape) for word in UNKNOWN for shape in SHAPES]
    texts = [prompt(f"{word} {shape}") for word, shape in pairs for _ in range(count)]
    readings = read(generate(engine, texts, 20, guidance))
    print(f"class after an unknown word, of {count} pictures, guidance {guidance:g}:")
    print("| word | " + " | ".join(SHAPES) + " | all |")
    print("|---" * (len(SHAPES) + 2) + "|")
    for at, word in enumerate(UNKNOWN):
        of_word = readings[at * count * len(SHAPES) :]
        seen = [
            sum(reading.shape == shape for reading in of_word[number * count : (number + 1) * count])
            for number, shape in enumerate(SHAPES)
        ]
        print(f"| {word} | " + " | ".join(map(str, seen)) + f" | {sum(seen) / count / len(SHAPES):.3f} |")


def prompts(count: int) -> list[tuple[Reading, str]]:
    """Return random prompts with all attributes, each class equally often, and their correct readings."""
    numbers, asked = random.Random(SEED), []
    for number in range(count):
        wanted = Reading(
            SHAPES[number % len(SHAPES)],
            numbers.choice(list(COLOURS)),
            numbers.choice(list(BACKGROUNDS)),
            numbers.choice(TEXTURES),
        )
        asked.append((wanted, prompt(wanted.shape, wanted.colour, wanted.background, wanted.texture)))
    return asked


def generate(engine: Engine, texts: list[str], steps: int, guidance: float) -> list[Image.Image]:
    """Draw a picture for each prompt, with seeds from `SEED` on."""
    requests = [
        Request(text, seed=SEED + number, steps=steps, guidance=guidance, width=SIDE, height=SIDE)
        for number, text in enumerate(texts)
    ]
    groups = (requests[at : at + BATCH] for at in range(0, len(requests), BATCH))
    return [picture for group in groups for picture in engine.generate_together(group)]


@torch.no_grad()
def round_trips(folder: Path, pictures: list[Image.Image]) -> tuple[list[Image.Image], float]:
    """Encode and decode pictures; return them and the mean of 10 log10(1 / mean squared error) in dB."""
    vae, back, quality = load_part(folder, "vae"), [], []
    for batch in to_tensor(pictures).split(50):
        decoded = vae.decode(vae.encode(batch).latent_dist.mean).sample.clamp(-1, 1)
        quality.append(-10 * torch.log10(((decoded - batch) / 2).square().mean(dim=(1, 2, 3))))
        back += [Image.fromarray(array.numpy()) for array in ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1)]
    return back, float(torch.cat(quality).mean())


def compared(wanted: Sequence[Reading], found: Sequence[Reading]) -> list[tuple[bool, ...]]:
    """Return for each picture which heads are correct."""
    pairs = zip(wanted, found, strict=True)
    return [tuple(getattr(first, head) == getattr(second, head) for head in HEADS) for first, second in pairs]


def figures(rows: Sequence[tuple[bool, ...]]) -> str:
    """Format each head's share of correct readings."""
    return ", ".join(f"{head} {sum(row[at] for row in rows) / len(rows):.3f}" for at, head in enumerate(HEADS))


def save(file: Path, asked: list[tuple[Reading, str]], drawn: list[Image.Image]) -> None:
    """Save the first pictures with their prompts, eight per row."""
    cells = [
        Cell(picture, text.removeprefix("a photo of a ").removesuffix(" background"))
        for picture, (_, text) in zip(drawn[:ON_SHEET], asked, strict=False)
    ]
    rows = [Row("", cells[at : at + 8]) for at in range(0, len(cells), 8)]
    save_png(contact_sheet(rows, title="mini"), file)


if __name__ == "__main__":
    main()
