"""Saved pictures contain their settings and overwrite nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from PIL import Image

from fastdb.errors import StorageError
from fastdb.inference.pictures import parameters, save_pictures
from fastdb.inference.request import Request

GREY = Image.new("RGB", (64, 64), "#808080")


def told(path: Path) -> str:
    """What a picture says of itself."""
    with Image.open(path) as picture:
        picture.load()
        return str(picture.text["parameters"])


def test_a_picture_says_how_it_was_made(tmp_path: Path) -> None:
    request = Request(
        "a cup", "blurred", seed=7, count=2, steps=9, guidance=1.5, sampler="euler a", width=64, height=72
    )
    first, second = save_pictures([GREY, GREY], request, tmp_path / "new" / "folder")
    assert (first.name, second.name) == ("0001-seed7.png", "0002-seed8.png")
    assert told(first) == (
        "a cup\nNegative prompt: blurred\nSteps: 9, Sampler: Euler a, CFG scale: 1.5, Seed: 7, Size: 64x72"
    )
    assert told(second) == told(first).replace("Seed: 7", "Seed: 8")


def test_there_is_no_line_for_a_negative_prompt_that_is_not_there() -> None:
    assert parameters(Request("a cup"), 3) == (
        "a cup\nSteps: 20, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 3, Size: 512x512"
    )


@pytest.mark.parametrize("prompt", ["", "größe", "日本 \N{DOG FACE}", "two\nlines", "x" * 100_000])
def test_any_prompt_is_kept(prompt: str, tmp_path: Path) -> None:
    (path,) = save_pictures([GREY], Request(prompt), tmp_path)
    assert told(path).rpartition("\nSteps: ")[0] == prompt


def test_the_picture_itself_is_kept(tmp_path: Path) -> None:
    picture = Image.effect_noise((64, 64), 80).convert("RGB")
    (path,) = save_pictures([picture], Request("a cup"), tmp_path)
    with Image.open(path) as read:
        assert read.tobytes() == picture.tobytes()


def test_numbers_go_on_and_nothing_is_replaced(tmp_path: Path) -> None:
    request = Request("a cup", seed=7, count=2)
    paths = [path for _ in range(3) for path in save_pictures([GREY, GREY], request, tmp_path)]
    seeds = (7, 8) * 3
    assert [path.name for path in paths] == [f"{number:04d}-seed{seed}.png" for number, seed in enumerate(seeds, 1)]
    assert sorted(os.listdir(tmp_path)) == [path.name for path in paths]


def test_what_else_lies_there_is_left_alone(tmp_path: Path) -> None:
    there = ["0041-seed7.png", "9999.png", "\N{SUPERSCRIPT TWO}-seed7.png", "mine-seed7.png", "0042-seed7.txt"]
    for name in there:
        (tmp_path / name).write_bytes(b"precious")
    (path,) = save_pictures([GREY], Request("a cup", seed=7), tmp_path)
    assert path.name == "0042-seed7.png"
    assert all((tmp_path / name).read_bytes() == b"precious" for name in there)


def test_numbers_beyond_four_digits_go_on(tmp_path: Path) -> None:
    (tmp_path / "9999-seed7.png").write_bytes(b"precious")
    (path,) = save_pictures([GREY], Request("a cup", seed=7), tmp_path)
    assert path.name == "10000-seed7.png"
    assert save_pictures([GREY], Request("a cup", seed=7), tmp_path)[0].name == "10001-seed7.png"


def test_a_file_in_the_folders_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"is not a folder\. Choose another folder\.$"):
        save_pictures([GREY], Request("a cup"), tmp_path / "file")


def test_a_full_disk_is_said_and_leaves_no_half_picture(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("200k")
    noise = Image.effect_noise((256, 256), 80).convert("RGB")
    with pytest.raises(StorageError, match="the disk is full"):
        save_pictures([noise] * 9, Request("a cup", count=9), folder)
    left = sorted(os.listdir(folder))
    assert left
    for name in left:
        assert told(folder / name).startswith("a cup\n")
