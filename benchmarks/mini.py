"""What mini can do by itself: `python benchmarks/mini.py [--prompts 128] [--model FOLDER] [--sheet FILE]`.

Draws random prompts of the drawn world with fixed seeds, reads the pictures back with the judge, and measures the
autoencoder on pictures nothing was trained on. The judge's own accuracy comes first, since all else rests on it.
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
from fastdb.inference.engine import Engine, Request
from fastdb.models.diffusers_folder import open_base_model
from fastdb.models.loading import load_part
from fastdb.models.resolve import resolve_base
from fastdb.world.draw import SIDE, draw
from fastdb.world.readings import HEADS, Reading, expected_reading, find_subject, read, to_tensor
from fastdb.world.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene, prompt, random_scene
from fastdb.world.subjects import SUBJECTS

SEED = 1_000_003
"""Of everything drawn here; training's pictures have other seeds."""

HELD = 1000
"""Pictures that judge and autoencoder are measured on."""

TOGETHER = 16
"""Pictures made in one batch."""

ON_SHEET = 40


def main() -> None:
    """Print the figures; save the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder to measure instead of what ships")
    parser.add_argument("--prompts", type=int, default=128, help="0 leaves the denoiser out")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--sheet", type=Path, help=f"where to save the first {ON_SHEET} pictures")
    args = parser.parse_args()
    folder = args.model or resolve_base("mini").folder
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    print(f"weights: {weights / 1e6:.2f} MB in half precision")

    scenes = [random_scene(random.Random(f"{SEED}/held/{number}")) for number in range(HELD)]
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


def show_autoencoder(folder: Path, pictures: list[Image.Image]) -> list[Image.Image]:
    """Print how near the autoencoder comes to drawn pictures and to subjects; return the pictures it gives back."""
    back, quality = round_trips(folder, pictures)
    _, of_subjects = round_trips(folder, [photo for subject in SUBJECTS.values() for photo in subject.photos()])
    print(f"autoencoder on {len(pictures)} pictures: PSNR {quality:.2f} dB; on subjects {of_subjects:.2f} dB")
    return back


def show_judge(kind: str, scenes: list[Scene], pictures: list[Image.Image]) -> None:
    """Print how often the judge is right."""
    print(f"judge on {kind}: " + figures(compared([expected_reading(scene) for scene in scenes], read(pictures))))


def show_subjects(folder: Path, scenes: list[Scene], back: list[Image.Image]) -> None:
    """Print where each subject is found: in its own round trips, and by mistake in those of others of its class."""
    for subject in SUBJECTS.values():
        again, _ = round_trips(folder, subject.photos())
        others = [picture for picture, scene in zip(back, scenes, strict=True) if scene.shape == subject.shape]
        seen, false = (sum(one.present for one in find_subject(some, subject)) for some in (again, others))
        print(
            f"subject {subject.name}: found in {seen} of {len(again)} round trips of itself, "
            f"in {false} of {len(others)} of others of its class"
        )


def show_prompts(folder: Path, asked: list[tuple[Reading, str]], steps: int, guidance: float) -> list[Image.Image]:
    """Print how often pictures show what was asked for, and what is wrong with the others; return the pictures."""
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


def prompts(count: int) -> list[tuple[Reading, str]]:
    """Random prompts that name everything, each class equally often, and what should be read off their pictures."""
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
    """One picture a prompt, seeds from `SEED` on."""
    requests = [
        Request(text, seed=SEED + number, steps=steps, guidance=guidance, width=SIDE, height=SIDE)
        for number, text in enumerate(texts)
    ]
    groups = (requests[at : at + TOGETHER] for at in range(0, len(requests), TOGETHER))
    return [picture for group in groups for picture in engine.generate_together(group)]


@torch.no_grad()
def round_trips(folder: Path, pictures: list[Image.Image]) -> tuple[list[Image.Image], float]:
    """What the autoencoder gives back, and the mean over pictures of 10 log10(1 / mean squared error) in dB."""
    vae, back, quality = load_part(folder, "vae"), [], []
    for some in to_tensor(pictures).split(50):
        decoded = vae.decode(vae.encode(some).latent_dist.mean).sample.clamp(-1, 1)
        quality.append(-10 * torch.log10(((decoded - some) / 2).square().mean(dim=(1, 2, 3))))
        back += [Image.fromarray(one.numpy()) for one in ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1)]
    return back, float(torch.cat(quality).mean())


def compared(wanted: Sequence[Reading], found: Sequence[Reading]) -> list[tuple[bool, ...]]:
    """Whether each head is right, picture by picture."""
    pairs = zip(wanted, found, strict=True)
    return [tuple(getattr(one, head) == getattr(other, head) for head in HEADS) for one, other in pairs]


def figures(rows: Sequence[tuple[bool, ...]]) -> str:
    """Each head's share of right readings."""
    return ", ".join(f"{head} {sum(row[at] for row in rows) / len(rows):.3f}" for at, head in enumerate(HEADS))


def save(file: Path, asked: list[tuple[Reading, str]], drawn: list[Image.Image]) -> None:
    """The first pictures with their prompts, eight in a row."""
    cells = [
        Cell(picture, text.removeprefix("a photo of a ").removesuffix(" background"))
        for picture, (_, text) in zip(drawn[:ON_SHEET], asked, strict=False)
    ]
    rows = [Row("", cells[at : at + 8]) for at in range(0, len(cells), 8)]
    save_png(contact_sheet(rows, title="mini"), file)


if __name__ == "__main__":
    main()
