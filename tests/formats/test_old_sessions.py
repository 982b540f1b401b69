"""A session with sorted 8-bit moments opens, resumes to the bit and exports."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open
from safetensors.torch import load_file

from fastdb import interactive
from fastdb.checkpoints.checkpoint import complete
from fastdb.checkpoints.compressed_checkpoint import raw_file, tensors_of
from fastdb.checkpoints.progress import Standing, standing
from fastdb.sessions.session import Session
from fastdb.sessions.session_yaml import FILE, sealed
from fastdb.storage.manifest import faults, sha256
from fastdb.training import process
from tests.other_models import originals

SAMPLES = Path(__file__).resolve().parent
SESSION, BASE, RAW, END = (SAMPLES / f"session-2{suffix}" for suffix in ("", "-base", "-raw", "-expected"))
EXPECTED: dict[str, Any] = json.loads((END / "expected.json").read_text(encoding="utf-8"))

TOLERANCE = 1e-5
"""Absolute, on another kind of CPU. Without AVX-512 the weights differ by at most 4.4e-6. The resumed steps move a
quarter of the weights by more than the tolerance, so a resume that ignores the checkpoint fails."""


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A copy of the sample with an empty cache; its base model's path is set to the sample's base model."""
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(SESSION, tmp_path / "sessions" / "cup")
    file = folder / "session.yaml"
    text = file.read_text(encoding="utf-8")
    assert text.count("folder: session-2-base\n") == 1
    path = json.dumps(str(BASE))
    file.write_text(text.replace("folder: session-2-base\n", f"folder: {path}\n"), encoding="utf-8")
    return Session.open(folder)


def this_machine() -> dict[str, str]:
    """Return everything the last bit of a result depends on, under the keys of `made_on` in expected.json."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").partition("\n\n")[0].splitlines() if info.exists() else []
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name, family, model = (cpu.get(key, "unknown") for key in ("model name", "cpu family", "model"))
    packages = {name: version(name) for name in ("bitsandbytes", "diffusers", "transformers")}
    return {
        # Virtual machines report several generations under one model name, so the name alone is not enough.
        "cpu": f"{name}, family {family}, model {model}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        **packages,
    }


def digest(tensors: Mapping[str, Any]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of tensors, independent of their container."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        whole.update(f"{name} {dtype} {list(tensor.shape)}\n".encode())
        whole.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def largest_difference(tensors: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Return the largest absolute difference between tensors of the same names."""
    assert tensors.keys() == expected.keys()
    return max(float((tensors[name].double() - expected[name].double()).abs().max()) for name in expected)


def codings(packed: Path) -> set[str]:
    """Return the codings that the index at the end of a packed file lists."""
    data = packed.read_bytes()
    # The index is followed by its length (8 bytes), its SHA-256 (32 bytes) and the magic number (8 bytes).
    length = int.from_bytes(data[-48:-40], "little")
    return {tensor["coding"] for tensor in json.loads(data[-48 - length : -48])["tensors"]}


def test_the_session_opens_with_its_progress(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    progress = standing(session)
    assert (progress.skipped, progress.done("text_encoder"), progress.done("unet")) == ((), 4, 4)
    assert {path.suffix for path in progress.weights.values()} == {".packed"}
    interactive.show(session)
    assert "text_encoder 4/4, unet 4/8" in capsys.readouterr().out


def test_packed_files_unpack_to_their_stored_checksum(session: Session) -> None:
    packed = sorted(session.checkpoints.glob("*/*.packed"))
    assert {f"{path.parent.name}/{path.stem}" for path in packed} == set(EXPECTED["packed"])
    for path in packed:
        assert sha256(raw_file(path, BASE)) == EXPECTED["packed"][f"{path.parent.name}/{path.stem}"]


def test_the_packed_optimizer_holds_sorted_8_bit_moments() -> None:
    optimizer = SESSION / "checkpoints" / "unet-000004" / "optimizer.packed"
    assert codings(optimizer) == {"planes", "first moment", "second moment"}
    assert codings(optimizer.with_name("unet.packed")) == {"difference"}


def test_a_raw_checkpoint_replaces_its_packed_form(session: Session) -> None:
    packed = tuple(tensors_of(complete(session.checkpoints, "text_encoder")[0], name, BASE) for name in names(RAW))
    shutil.rmtree(session.checkpoints / "text_encoder-000004")
    shutil.copytree(RAW / "text_encoder-000004", session.checkpoints / "text_encoder-000004")
    progress = standing(session)
    assert (progress.skipped, progress.done("text_encoder"), progress.done("unet")) == ((), 4, 4)
    checkpoint = progress.checkpoints["text_encoder"]
    assert Standing({"text_encoder": checkpoint}, ()).weights["text_encoder"].suffix == ".safetensors"
    raw = tuple(tensors_of(checkpoint, name, BASE) for name in names(RAW))
    assert [digest(tensors) for tensors in raw] == [digest(tensors) for tensors in packed]


def names(folder: Path) -> list[str]:
    """Return the names of the raw files of a checkpoint in `folder`."""
    return sorted(path.name for path in folder.glob("*/*.safetensors"))


def test_an_old_session_resumes_to_the_bit_and_exports(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    events = list(process.start(session).follow())
    assert events[-1]["outcome"] == "finished", events[-1]
    steps = [(event["stage"], event["step"]) for event in events if event["event"] == "step"]
    assert steps == [("unet", step) for step in (5, 6, 7, 8)]

    checkpoints = {one.path.name: one for one in complete(session.checkpoints)}
    end = {}
    for file in EXPECTED["end"]:
        checkpoint, _, stem = file.partition("/")
        end[file] = tensors_of(checkpoints[checkpoint], f"{stem}.safetensors", BASE)
    exports = {}
    for precision in ("fp16", "fp32"):
        (exported,) = interactive.export(Session.open(session.path), formats=["safetensors"], precision=precision)
        with safe_open(exported, "pt") as opened:
            assert opened.metadata()["fastdb.trained"] == "text_encoder 4/4, unet 8/8"
        exports[precision] = load_file(exported)

    if (made_on := EXPECTED["made_on"]) == this_machine():
        assert {file: digest(tensors) for file, tensors in end.items()} == hashes("end")
        assert {precision: digest(tensors) for precision, tensors in exports.items()} == hashes("export")
        return
    with capsys.disabled():
        sys.stdout.write(f"\nexpected result made on {made_on}, this machine is {this_machine()}: compared to 1e-5\n")
    weights, average = (load_file(END / f"{name}.safetensors") for name in ("unet", "unet_ema"))
    assert largest_difference(end["unet-000008/unet"], weights) <= TOLERANCE
    assert largest_difference(end["unet-000008/unet_ema"], average) <= TOLERANCE
    # The export contains the running average under the names of the original layout.
    renamed = {original: average[name] for name, original in originals("unet", average).items()}
    unet = {name: tensor for name, tensor in exports["fp32"].items() if name in renamed}
    assert largest_difference(unet, renamed) <= TOLERANCE


def test_a_session_of_format_3_resumes_with_dropped_captions_and_class_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of its captions are dropped, and the prompt of its class images has no article: the losses show both."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(SAMPLES / "session-3", tmp_path / "sessions" / "cup")
    text = (folder / FILE).read_text(encoding="utf-8")
    path = json.dumps(str(BASE))
    (folder / FILE).write_text(sealed(text.replace("folder: session-2-base\n", f"folder: {path}\n")), encoding="utf-8")
    events = list(process.start(Session.open(folder)).follow())
    assert events[-1]["outcome"] == "finished", events[-1]
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [3, 4]
    found = [loss for event in steps for loss in (event["loss"], event["prior_loss"])]
    assert found == pytest.approx([1.13774, 1.170784, 1.017632, 0.918516], rel=1e-4)


def hashes(section: str) -> dict[str, str]:
    """Return the expected digests of a section of expected.json."""
    return {name: one["tensors"] for name, one in EXPECTED[section].items()}


def test_the_samples_are_unchanged() -> None:
    assert [faults(one.path) for folder in (SESSION / "checkpoints", RAW) for one in complete(folder)] == [[], [], []]
    for name in ("unet", "unet_ema"):
        expected = EXPECTED["end"][f"unet-000008/{name}"]
        assert sha256(END / f"{name}.safetensors") == expected["file"]
        assert digest(load_file(END / f"{name}.safetensors")) == expected["tensors"]
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 20_000_000
