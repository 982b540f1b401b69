"""Pictures of an exported file equal those of its session (benchmarks/export.py)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import numpy as np

from benchmarks.export import Compared, compare, draw, requests
from fastdb.commands import results
from fastdb.inference.engine import Engine
from fastdb.inference.open_model import open_source
from fastdb.inference.request import Request
from fastdb.models.diffusers_folder import open_base_model
from fastdb.sessions.session import Session

PROMPTS = ["a photo of sks cup", "sks astronaut"]
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def rows(learned: Session, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Compared]:
    compared = compare(learned, tmp_path_factory.mktemp("exports"), PROMPTS, SEEDS)
    return {(row.precision, row.path.suffix): row for row in compared}


@pytest.mark.parametrize("kind", [".safetensors", ".ckpt"])
def test_an_export_in_fp32_draws_the_very_same_pictures(rows: dict[tuple[str, str], Compared], kind: str) -> None:
    """In floating point too, and so with no luck in rounding."""
    row = rows["fp32", kind]
    assert (row.bits, row.pixels, row.values) == (0, 0.0, 0.0)
    assert row.tensors == 1131
    assert row.bytes == row.path.stat().st_size


@pytest.mark.parametrize("kind", [".safetensors", ".ckpt"])
def test_an_export_in_fp16_draws_the_same_but_for_rounding(rows: dict[tuple[str, str], Compared], kind: str) -> None:
    """Measured: 1 of 255 at most, in 4 % of the values; 0.001 of 1 before rounding to 8 bits. Weights are rounded
    to 11 bits, so something must differ, or the test would compare a thing with itself."""
    row = rows["fp16", kind]
    assert row.bits <= 3
    assert row.pixels < 0.15
    assert 0 < row.values < 0.01
    assert row.bytes < 0.6 * rows["fp32", kind].bytes


def test_both_kinds_draw_the_same(rows: dict[tuple[str, str], Compared]) -> None:
    for precision in ("fp32", "fp16"):
        one, other = rows[precision, ".safetensors"], rows[precision, ".ckpt"]
        assert (one.bits, one.pixels, one.values) == (other.bits, other.pixels, other.values)


def test_the_pictures_compared_are_worth_comparing(learned: Session, engine: Engine) -> None:
    """They are soft, each another, and far from what the base model draws; the two ways to see them agree."""
    wanted = requests(learned, PROMPTS, SEEDS)
    bits, values = draw(engine, wanted)
    assert bits.shape == values.shape == (4, 64, 64, 3)
    assert len({picture.tobytes() for picture in bits}) == 4
    assert ((bits > 0) & (bits < 255)).mean() > 0.4
    assert abs(bits - values * 255).max() <= 0.51
    base, _ = draw(Engine.from_base(open_base_model(Path(learned.record.base_model.folder))), wanted)
    assert np.abs(bits - base).mean() > 20


def test_an_export_by_the_verb_is_drawn_by_the_verb(learned: Session, tmp_path: Path) -> None:
    """As a person does it: `fastdb export`, `fastdb generate` from the session and from each file."""
    session = Session.open(shutil.copytree(learned.path, tmp_path / "sessions" / "cup"))
    files = results.export("cup", precision="fp32")
    pictures = []
    for source in ("cup", *map(str, files)):
        (path,) = results.generate(source, PROMPTS[0], seed=4, steps=6)
        pictures.append(path.read_bytes())
    assert len(set(pictures)) == 1
    assert sorted(path.name for path in (session.path / "generated").iterdir()) == [
        f"{number:04d}-seed4.png" for number in (1, 2, 3)
    ]


def test_the_weights_do_not_hang_on_the_file(learned: Session, tmp_path: Path) -> None:
    """A picture stays as it is when the file it was loaded from is written over."""
    session = Session.open(shutil.copytree(learned.path, tmp_path / "cup"))
    (file,) = results.export(session, formats=["safetensors"], precision="fp32")
    engine = open_source(str(file), None, None).load()
    request = Request(PROMPTS[0], steps=3, width=64, height=64)
    before = engine.generate(request)[0].tobytes()
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(bytes(1_000_000))
    assert engine.generate(request)[0].tobytes() == before
