"""Prompts from names, templates and caption files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdb.errors import ImageError
from fastdb.images.captions import instance_images_of, prompt_from_name, read_caption


@pytest.mark.parametrize(
    ("stem", "prompt"),
    [
        ("sks_cup (3)", "sks cup"),
        ("sks cup", "sks cup"),
        ("sks-cup", "skscup"),
        ("  zwx__person_01 ", "zwx person"),
        ("zwx [2]{x}", "zwx x"),
        ("20240101", ""),
        ("IMG_2024-01-01 (2)", "IMG"),
        ("кружка_5", "кружка"),
    ],
)
def test_names_become_prompts_by_the_classic_rule(stem: str, prompt: str) -> None:
    assert prompt_from_name(stem) == prompt


def prompts(folder: Path, stem: str, caption: str, template: str | None) -> tuple[str, str]:
    """The prompt of an instance image of that name, with its caption and without."""
    (folder / f"{stem}.png").touch()
    (folder / f"{stem}.txt").write_text(caption)
    (image,) = instance_images_of(folder, folder, template)
    (folder / f"{stem}.png").unlink()
    return image.prompt, image.bare


def test_a_prompt_is_the_template_or_the_name_and_then_the_caption(tmp_path: Path) -> None:
    assert prompts(tmp_path, "sks_cup (1)", "", None) == ("sks cup", "sks cup")
    assert prompts(tmp_path, "sks_cup (1)", " on a\n table ", None) == ("sks cup on a table", "sks cup")
    template = "a photo of sks cup"
    assert prompts(tmp_path, "sks_cup (1)", "", template) == (template, template)
    assert prompts(tmp_path, "sks_cup (1)", "", " a photo of\n sks cup ") == (template, template)
    assert prompts(tmp_path, "20240101", "on a table", template) == (f"{template} on a table", template)
    assert prompts(tmp_path, "sks_cup", "", "  ") == ("sks cup", "sks cup")
    assert prompts(tmp_path, "20240101", "sks cup", None) == ("sks cup", "sks cup")


def test_an_empty_prompt_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"20240101.*Rename the photo.*or set the subject token and class"):
        prompts(tmp_path, "20240101", "\n", None)


def test_caption_files_are_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert read_caption(path) == ""
    path.write_bytes("\ufeffeine Tasse, grün\r\n".encode())
    assert read_caption(path) == "eine Tasse, grün"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "cp1252"])
def test_a_caption_in_another_encoding_is_refused(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("eine Tasse, grün".encode(encoding))
    with pytest.raises(ImageError, match=r"a\.txt: the caption is not UTF-8 text. Save it"):
        read_caption(path)


def test_a_folder_instead_of_a_caption_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="the caption cannot be read"):
        read_caption(tmp_path)
