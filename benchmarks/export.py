"""Compare pictures of exported files with pictures of the session's own weights.

    python benchmarks/export.py [SESSION_FOLDER]

Without a session the demo's mug is trained briefly first. Prints a row for each file: its size and tensors, the seconds
to write and verify it, the seconds to load it, and the largest difference of a pixel over all pictures, both of 8-bit
values and of values in 0..1 before rounding to 8 bits.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdb import console, demo
from fastdb.commands import sessions, training
from fastdb.commands.trial import trial_photos
from fastdb.measures.words import words_of
from fastdb.models.registry import MINI
from fastdb.models.resolve import ensure_base
from fastdb.reporting import format_bytes
from fastdb.runtime.library_settings import prepare_libraries
from fastdb.sessions.session import Session

prepare_libraries()

import torch

from fastdb.checkpoints.export_parts import export_metadata, export_parts
from fastdb.inference.engine import Engine
from fastdb.inference.open_model import open_source
from fastdb.inference.request import Request
from fastdb.models.export import Precision, export_model

SETTINGS: dict[str, Any] = {
    "captions.instance_prompt": demo.PROMPT,
    "text_encoder.steps": 8,
    "unet.steps": 40,
    "prior.class_images": 0,
}
"""Changes to the recommended settings of mini; weights then differ from those of the base model."""

SEEDS = (0, 1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Compared:
    """An export and the difference of its pictures from the session's.

    Attributes:
        bits: largest difference of an 8-bit value.
        pixels: share of different 8-bit values.
        values: largest difference of a value in 0..1.
        exported, loaded: seconds.
    """

    path: Path
    precision: str
    bytes: int
    tensors: int
    bits: int
    pixels: float
    values: float
    exported: float
    loaded: float


def requests(session: Session, prompts: Sequence[str], seeds: Sequence[int] = SEEDS) -> list[Request]:
    """Return the pictures to draw from each file."""
    size = session.config.resolution
    guidance = session.config.samples.guidance
    return [
        Request(prompt, seed=seed, guidance=guidance, width=size, height=size) for prompt in prompts for seed in seeds
    ]


def draw(engine: Engine, wanted: Sequence[Request]) -> tuple[np.ndarray, np.ndarray]:
    """Draw pictures as 8-bit values and as float32 values in 0..1, (pictures, height, width, 3) each."""
    processor, values = engine._pipeline.image_processor, []
    postprocess = processor.postprocess

    def keep(image: torch.Tensor, **options: Any) -> Any:
        values.append((image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()[0])
        return postprocess(image, **options)

    processor.postprocess = keep
    try:
        bits = np.stack([np.asarray(engine.generate(request)[0]) for request in wanted]).astype(int)
    finally:
        del processor.postprocess
    return bits, np.stack(values)


def compare(session: Session, folder: Path, prompts: Sequence[str], seeds: Sequence[int] = SEEDS) -> list[Compared]:
    """Export a session in each precision and format into `folder`, and compare each file with the session."""
    base = ensure_base(session)
    parts, stands = export_parts(session, base)
    wanted = requests(session, prompts, seeds)
    own_bits, own_values = draw(open_source(session, None, None).load(), wanted)
    rows = []
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in precisions:
        for kind in ("safetensors", "ckpt"):
            path, began = folder / f"{session.name}-{precision}.{kind}", time.perf_counter()
            done = export_model(parts, path, dtype=precision, metadata=export_metadata(session, base, stands))
            exported, began = time.perf_counter() - began, time.perf_counter()
            engine = open_source(str(path), base.folder, None).load()
            loaded = time.perf_counter() - began
            bits, values = draw(engine, wanted)
            rows.append(
                Compared(
                    path=path,
                    precision=precision,
                    bytes=done.bytes,
                    tensors=done.tensors,
                    bits=int(abs(bits - own_bits).max()),
                    pixels=float((bits != own_bits).mean()),
                    values=float(abs(values - own_values).max()),
                    exported=exported,
                    loaded=loaded,
                )
            )
    return rows


def trained(root: Path) -> Session:
    """Train a small session."""
    session = sessions.new(
        "export",
        MINI,
        trial_photos(),
        token=demo.TOKEN,
        class_word=demo.CLASS_WORD,
        root=root,
        settings=SETTINGS,
    )
    training.train(session)
    return Session.open(session)


def main() -> None:
    """Print the table."""
    with console.boundary(), tempfile.TemporaryDirectory() as folder:
        session = Session.open(sys.argv[1]) if len(sys.argv) > 1 else trained(Path(folder))
        prompts = words_of(session).instance_prompts
        rows = compare(session, Path(folder), prompts)
        stands = export_parts(session, ensure_base(session))[1]
        print(f"\n{len(prompts) * len(SEEDS)} pictures of {session.config.resolution} px, {stands}")
        head = "file", "weights", "size", "tensors", "export s", "load s", "max of 255", "differ", "max of 1"
        console.table(
            head,
            [
                (
                    row.path.suffix,
                    row.precision,
                    format_bytes(row.bytes),
                    str(row.tensors),
                    f"{row.exported:.2f}",
                    f"{row.loaded:.2f}",
                    str(row.bits),
                    f"{row.pixels:.2%}",
                    f"{row.values:.1e}",
                )
                for row in rows
            ],
        )


if __name__ == "__main__":
    main()
