"""LoRA files in `generate`, by options and by tags in prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image

from fastdb.commands import lora as verbs
from fastdb.commands import results
from fastdb.commands.prompt_loras import split_tags
from fastdb.errors import ConfigError
from fastdb.formats.reader import open_tensors
from fastdb.models.diffusers_folder import weight_file
from fastdb.models.lora.adapter import Pair
from fastdb.models.lora.forms import write_lora
from fastdb.models.lora.targets import factor_shapes, target_layers
from fastdb.reporting import Note, Report
from fastdb.sessions.session import Session
from tests.training.conftest import make_session, small_photos  # noqa: F401 - fixtures

PROMPT = "a photo of a red mug"


class Notes(Report):
    """Keeps notes."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def note(self, note: Note) -> None:
        self.notes.append(note)


def write(mini: Path, file: Path, seed: int = 0, **metadata: str) -> Path:
    """Write a LoRA of mini's UNet that changes pictures."""
    numbers, adapter = torch.Generator().manual_seed(seed), {}
    shapes = {name: info.shape for name, info in open_tensors(weight_file(mini, "unet")).tensors.items()}
    for layer, shape in target_layers("unet", shapes, "attention").items():
        down, up = (torch.randn(size, generator=numbers) * 0.2 for size in factor_shapes(shape, 4))
        adapter[layer] = Pair(down, up, 4.0)
    file.parent.mkdir(exist_ok=True, parents=True)
    write_lora({"unet": adapter}, file, "kohya", dtype="fp32", metadata=metadata)
    return file


@pytest.fixture
def session(make_session: Callable[..., Session], tmp_path: Path) -> Session:  # noqa: F811
    """A session that was not trained, so that its pictures are the base model's."""
    return make_session("cup", tmp_path / "Sessions", samples__guidance=3.0)


def drawn(source: Any, prompt: str = PROMPT, **options: Any) -> np.ndarray[Any, Any]:
    (path,) = results.generate(source, prompt, steps=3, width=64, height=64, **options)
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=np.int16)


def test_a_lora_and_a_tag_have_the_effect_of_a_merged_model(session: Session, mini: Path, tmp_path: Path) -> None:
    file = write(mini, tmp_path / "red.safetensors")
    verbs.merge("mini", tmp_path / "merged.safetensors", [f"{file}:0.5"], precision="fp32")
    expected = drawn(str(tmp_path / "merged.safetensors"), base="mini", guidance=3.0)
    by_option = drawn(session, loras=[f"{file}:0.5"])
    assert np.abs(by_option - expected).max() <= 1
    by_tag = drawn(session, f"{PROMPT} <lora:red:0.5>", loras=[str(file)])
    assert np.array_equal(by_tag, by_option)
    plain = drawn(session)
    assert np.abs(plain - by_option).max() > 20
    latest = max((session.path / "generated").glob("*.png"), key=lambda path: path.name[:4])
    tagged = latest.with_name(f"{int(latest.name[:4]) - 1:04d}-seed0.png")
    with Image.open(tagged) as picture:
        assert picture.info["parameters"].startswith(f"{PROMPT} <lora:red:0.5>\n")


def test_tags_find_files_of_the_session_and_of_the_folder_beside_the_sessions(session: Session, mini: Path) -> None:
    write(mini, session.path / "own.safetensors", ss_output_name="alias")
    write(mini, session.path.parents[1] / "LoRA" / "shared.safetensors", seed=1)
    root = session.path.parent
    own = drawn(session, f"{PROMPT} <lora:alias>", root=root)
    assert np.array_equal(own, drawn(session, f"<lora:own:1.0> {PROMPT}", root=root))
    assert not np.array_equal(own, drawn(session, f"{PROMPT}, <lora:own><lora:shared:0.8>", root=root))


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ("a  cat", "a  cat", {}),
        ("a cat <lora:x:0.8>", "a cat", {"x": 0.8}),
        ("<lora:x> a <LORA: y y :-1> cat, ", "a cat", {"x": 1.0, "y y": -1.0}),
    ],
)
def test_no_tag_reaches_the_tokenizer(prompt: str, text: str, tags: dict[str, float]) -> None:
    split = split_tags(prompt)
    assert (split.text, split.tags) == (text, tags)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (
            "x <lora:none>",
            {},
            r"none: there is no LoRA of this name; known are: one, two\. Name its file with --lora FILE",
        ),
        ("x <lora:twin>", {}, r"several LoRA files have this name: .*one\.safetensors, .*two\.safetensors"),
        ("x <lora:one:much>", {}, "the tag has no name with a weight between"),
        ("x <lora:one> <lora:one:2>", {}, "the prompt has two tags for one"),
        ("x", {"negative_prompt": "<lora:one>"}, "the negative prompt has a tag of a LoRA"),
    ],
)
def test_a_mistake_in_a_tag_is_one_message(
    prompt: str, options: dict[str, Any], message: str, session: Session, mini: Path
) -> None:
    for name in ("one", "two"):
        write(mini, session.path / f"{name}.safetensors", ss_output_name="twin")
    with pytest.raises(ConfigError, match=message):
        results.generate(session, prompt, root=session.path.parent, **options)


def test_a_shared_trigger_word_is_reported_and_a_lora_is_no_source(
    session: Session, mini: Path, tmp_path: Path
) -> None:
    file, report = write(mini, tmp_path / "a.safetensors", **{"modelspec.trigger_phrase": "sks"}), Notes()
    drawn(session, loras=[str(file)], report=report)
    assert Note("trigger shared", "sks", "a.safetensors and cup") in report.notes
    with pytest.raises(ConfigError, match=r"a\.safetensors is a LoRA, not a model.*--lora"):
        results.generate(str(file), "x")
