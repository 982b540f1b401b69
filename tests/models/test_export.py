"""Exports are exact copies in the original layout, for strict readers and diffusers, or do not exist."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickletools
import re
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdb.errors import ModelError, StorageError

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastdb.formats import ckpt_writer
from fastdb.formats.hashing_writer import read_back
from fastdb.formats.reader import open_tensors
from fastdb.formats.safetensors_file import Entry, write_safetensors
from fastdb.models import export
from fastdb.models.diffusers_folder import open_base_model, weight_file
from fastdb.models.export import _check_described, export_model, plan_from_parts
from fastdb.models.layouts.tables import layout_of

sys.path.insert(0, str(Path(__file__).parent))
import sd1_names

KINDS = ["safetensors", "ckpt"]
SD1 = layout_of("sd1")
NAMES = sd1_names.unet() + sd1_names.vae() + sd1_names.text_encoder()
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@pytest.fixture(scope="module")
def exports(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("exports")
    made = {}
    for kind in KINDS:
        for dtype in ("fp32", "fp16"):
            target = folder / f"{dtype}.{kind}"
            made[kind, dtype] = export_model(sources, target, dtype=dtype, metadata={"session": "x"}).path
    return made


def read(path: Path) -> dict[str, Any]:
    if path.suffix == ".ckpt":
        return torch.load(path, weights_only=True, mmap=True)["state_dict"]
    return load_file(path)


def spoiled(
    sources: dict[str, Path], folder: Path, part: str, spoil: Callable[[dict[str, Any]], Any]
) -> dict[str, Path]:
    """Return the sources with a changed copy of a part."""
    weights = load_file(sources[part])
    spoil(weights)
    save_file(weights, folder / "spoiled.safetensors")
    return sources | {part: folder / "spoiled.safetensors"}


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_has_the_original_names_and_the_cast_weights(
    exports: dict[tuple[str, str], Path], sources: dict[str, Path], kind: str, dtype: str
) -> None:
    state = read(exports[kind, dtype])
    assert sorted(state) == sorted(NAMES)
    assert len(state) == 1131
    positions = state.pop(SD1.position_ids[0])
    assert positions.dtype == torch.int64
    assert torch.equal(positions, torch.arange(77)[None])
    assert {tensor.dtype for tensor in state.values()} == {DTYPES[dtype]}
    assert all(tensor.is_contiguous() and tensor.data_ptr() % tensor.itemsize == 0 for tensor in state.values())
    vae = load_file(sources["vae"])["encoder.mid_block.attentions.0.to_q.weight"]
    query = state["first_stage_model.encoder.mid.attn_1.q.weight"]
    assert query.shape == (48, 48, 1, 1)
    assert torch.equal(query[:, :, 0, 0], vae.to(DTYPES[dtype]))
    text = load_file(sources["text_encoder"])
    for name, tensor in text.items():
        assert torch.equal(state[f"cond_stage_model.transformer.{name}"], tensor.to(DTYPES[dtype]))


def test_the_result_describes_the_file(sources: dict[str, Path], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    target = tmp_path / "a.safetensors"
    metadata = {"session": "sks", "ünï": "日本"}
    done = export_model(sources, target, dtype="fp16", metadata=metadata, progress=lambda *counts: calls.append(counts))
    assert calls == [(step, 2262) for step in range(1, 2263)]
    assert (done.path, done.tensors, done.bytes) == (target, 1131, target.stat().st_size)
    assert done.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    with safe_open(target, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", **metadata}
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_give_the_same_file(
    exports: dict[tuple[str, str], Path], sources: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    again = export_model(sources, tmp_path / f"a.{kind}", dtype="fp16", metadata={"session": "x"})
    assert again.path.read_bytes() == exports[kind, "fp16"].read_bytes()


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_ckpt_passes_a_strict_reader(exports: dict[tuple[str, str], Path], dtype: str) -> None:
    path = exports["ckpt", dtype]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        records = archive.infolist()
        data = archive.read("archive/data.pkl")
        assert archive.read("archive/version") == b"3\n"
    allowed = re.compile(r"^archive/(data\.pkl|version|data/\d+)$")
    assert len(records) == 1133
    assert all(allowed.match(record.filename) for record in records)
    assert all(record.compress_type == zipfile.ZIP_STORED for record in records)
    raw = path.read_bytes()
    for record in records:
        name, extra = struct.unpack_from("<HH", raw, record.header_offset + 26)
        assert (record.header_offset + 30 + name + extra) % 64 == 0
    found, strings = set(), []
    for opcode, argument, _ in pickletools.genops(data):
        assert opcode.proto <= 2
        if opcode.name == "GLOBAL":
            found.add(argument)
        assert opcode.name not in {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "BUILD", "EXT1", "EXT2", "EXT4"}
        if isinstance(argument, str):
            strings.append(argument)
    storage = {"fp32": "torch FloatStorage", "fp16": "torch HalfStorage"}[dtype]
    expected = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch LongStorage", storage}
    assert found == expected
    assert set(NAMES) <= set(strings)


def test_a_ckpt_equals_that_of_torch_save(exports: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    state = torch.load(exports["ckpt", "fp16"], weights_only=True)
    assert list(state) == ["state_dict"]
    torch.save(state, tmp_path / "theirs.ckpt")
    theirs = torch.load(tmp_path / "theirs.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in state["state_dict"].items())


def draw(pipeline: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    # Loaded weights lie in the mapped file where they lie there, and some CPU kernels round otherwise (by 4e-7) for
    # odd addresses; copies are aligned alike.
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        for weight in part.parameters():
            weight.data = weight.data.clone()
    generator = torch.Generator().manual_seed(7)
    prompt = "a photo of sks cat"
    images = pipeline(prompt, num_inference_steps=4, height=64, width=64, generator=generator, output_type="pt").images
    return images[0]


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_loads_the_file_offline_and_generates_the_same_picture(
    exports: dict[tuple[str, str], Path], single: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from diffusers import StableDiffusionPipeline

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    source = draw(StableDiffusionPipeline.from_pretrained(single, local_files_only=True))
    pictures = {}
    for dtype in ("fp32", "fp16"):
        pipeline = StableDiffusionPipeline.from_single_file(
            str(exports[kind, dtype]), config=str(single), local_files_only=True, safety_checker=None
        )
        assert pipeline.unet.config.block_out_channels == [32, 64, 72, 72]
        assert pipeline.text_encoder.config.hidden_size == 64
        assert pipeline.vae.config.scaling_factor == open_base_model(single).latent_scale != 0.18215
        assert len(pipeline.tokenizer) == pipeline.text_encoder.config.vocab_size
        pictures[dtype] = draw(pipeline)
    assert float((pictures["fp32"] - source).abs().max()) == 0.0
    # fp16 weights, fp32 arithmetic: rounding by at most 2^-11 of each weight, which guidance multiplies along contours.
    apart = (pictures["fp16"] - source).abs()
    assert 0.0 < float(apart.mean()) < 0.5 / 255
    assert float(apart.max()) < 8 / 255


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_half_precision_are_unchanged(mini: Path, tmp_path: Path, kind: str) -> None:
    parts = {part: weight_file(mini, part) for part in ("unet", "vae", "text_encoder")}
    names = {
        part: {given: SD1.by_name[part, modern].original for modern, given in SD1.known(part, load_file(file)).items()}
        for part, file in parts.items()
    }
    for dtype in ("fp32", "fp16"):
        state = read(export_model(parts, tmp_path / f"{dtype}.{kind}", dtype=dtype, metadata={}).path)
        for part, file in parts.items():
            for name, tensor in load_file(file).items():
                found = state[names[part][name]]
                assert found.dtype == DTYPES[dtype]
                assert torch.equal(found.half().flatten(), tensor.flatten())


def test_sources_in_fp16_without_prefix_and_with_old_names_export_alike(
    exports: dict[tuple[str, str], Path], sources: dict[str, Path], tmp_path: Path
) -> None:
    for part, file in sources.items():
        weights = {name: tensor.half() for name, tensor in load_file(file).items()}
        if part == "text_encoder":
            weights = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
            weights["embeddings.position_ids"] = torch.arange(77)[None]
        if part == "vae":
            old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
            for ours, theirs in old.items():
                weights = {n.replace(f"s.0.{ours}.", f"s.0.{theirs}."): t for n, t in weights.items()}
            assert sum(".proj_attn." in name for name in weights) == 4
        save_file(weights, tmp_path / f"{part}.safetensors")
    parts = {part: tmp_path / f"{part}.safetensors" for part in sources}
    made = export_model(parts, tmp_path / "a.ckpt", dtype="fp16", metadata={}).path
    assert made.read_bytes() == exports["ckpt", "fp16"].read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_detected(sources: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Bytes of data, of descriptions, of the directory of a zip and of padding are verified."""
    plan = plan_from_parts(SD1, {part: open_tensors(file) for part, file in sources.items()}, torch.float16)
    path, entries = tmp_path / f"a.{kind}", [planned.entry for planned in plan]
    tensors = (planned.tensor() for planned in plan)
    if kind == "ckpt":
        written = ckpt_writer.write_ckpt(path, entries, tensors)
    else:
        written = write_safetensors(path, entries, tensors, {})
    seen: list[str] = []
    read_back(path, written, seen.append)
    assert [name for name in seen if name] == [entry.name for entry in entries]
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    good, damaged = path.read_bytes(), tmp_path / f"damaged.{kind}"
    places = [0, 12, 1000, len(good) // 3, len(good) // 2, len(good) - 2000, len(good) - 1]
    for place in places:
        damaged.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(ModelError, match="on disk differs from the written data"):
            read_back(damaged, written, seen.append)
    for length in (0, 10, 1000, len(good) // 2, len(good) - 1):
        damaged.write_bytes(good[:length])
        with pytest.raises(ModelError, match="the file is truncated within"):
            read_back(damaged, written, seen.append)
    damaged.write_bytes(good + b"x")
    with pytest.raises(ModelError, match="the file is longer than the written data"):
        read_back(damaged, written, seen.append)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_names_the_tensor_with_a_flipped_bit(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """No file is left."""
    name, write = "model.diffusion_model.out.2.weight", getattr(export, f"write_{kind}")

    def flip(path: Path, *arguments: Any) -> Any:
        written, data = write(path, *arguments), bytearray(path.read_bytes())
        start = 0
        for stretch in written.stretches:
            if stretch.name == name:
                data[start] ^= 1
            start += stretch.length
        path.write_bytes(data)
        return written

    monkeypatch.setattr(export, f"write_{kind}", flip)
    with pytest.raises(ModelError, match=f"the tensor {re.escape(name)} on disk differs from the written data"):
        export_model(sources, tmp_path / f"a.{kind}", dtype="fp32", metadata={})
    assert list(tmp_path.iterdir()) == []


def test_another_precision_or_other_tensors_are_refused(
    exports: dict[tuple[str, str], Path], sources: dict[str, Path], tmp_path: Path
) -> None:
    plan = plan_from_parts(SD1, {part: open_tensors(file) for part, file in sources.items()}, torch.float16)
    assert len(plan) == 1131
    _check_described(exports["ckpt", "fp16"], plan)
    with pytest.raises(ModelError, match=r"is float32 \[.*\], not float16"):
        _check_described(exports["ckpt", "fp32"], plan)
    state = read(exports["safetensors", "fp16"])
    lost = state.pop("model.diffusion_model.out.2.weight")
    save_file(state, tmp_path / "lost.safetensors")
    with pytest.raises(ModelError, match=r"lacks the tensor model.diffusion_model.out.2.weight"):
        _check_described(tmp_path / "lost.safetensors", plan)
    save_file(state | {"model.diffusion_model.out.2.weight": lost, "a": lost.clone()}, tmp_path / "more.safetensors")
    with pytest.raises(ModelError, match="has the unexpected tensor a"):
        _check_described(tmp_path / "more.safetensors", plan)
    (tmp_path / "cut.ckpt").write_bytes(exports["ckpt", "fp16"].read_bytes()[:-5])
    with pytest.raises(ModelError, match="the export is damaged: the model file is invalid: its end is missing"):
        _check_described(tmp_path / "cut.ckpt", plan)


def poison(value: float) -> Callable[[dict[str, Any]], Any]:
    return lambda weights: weights["decoder.conv_out.weight"].view(-1)[3:4].fill_(value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (poison(float("nan")), r"decoder.conv_out.weight: this tensor of the vae contains NaN .*an earlier checkpoint"),
        (poison(float("inf")), r"decoder.conv_out.weight: this tensor of the vae contains NaN or infinity"),
        (
            poison(1e5),
            r"decoder.conv_out.weight: this tensor of the vae contains 1e\+05, .* Write it as fp32 or bf16",
        ),
        (lambda w: w.pop("quant_conv.bias"), r"quant_conv.bias is missing from the vae"),
        (lambda w: w.update(lora=torch.zeros(1)), "lora is an unexpected tensor in the vae of Stable Diffusion 1.x"),
    ],
)
def test_a_failed_export_leaves_the_old_file_alone(
    sources: dict[str, Path], tmp_path: Path, kind: str, spoil: Callable[[dict[str, Any]], Any], message: str
) -> None:
    parts = spoiled(sources, tmp_path, "vae", spoil)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / f"a.{kind}"
    target.write_bytes(b"what was there")
    with pytest.raises(ModelError, match=message):
        export_model(parts, target, dtype="fp16", metadata={})
    assert target.read_bytes() == b"what was there"
    assert len(list(target.parent.iterdir())) == 1


def test_numbers_beyond_fp16_are_exported_as_fp32(sources: dict[str, Path], tmp_path: Path) -> None:
    parts = spoiled(sources, tmp_path, "vae", poison(1e5))
    made = export_model(parts, tmp_path / "a.ckpt", dtype="fp32", metadata={}).path
    assert float(read(made)["first_stage_model.decoder.conv_out.weight"].max()) == 1e5


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_an_error_of_one_line(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    written, real = 0, os.write

    def full(file: int, data: Any) -> int:
        """A disk with room for 5 MB, which takes a part of what comes last."""
        nonlocal written
        room = min(len(data), 5_000_000 - written)
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written += (done := real(file, data[:room]))
        return done

    target = tmp_path / f"a.{kind}"
    target.write_text("old")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="the disk is full"):
        export_model(sources, target, dtype="fp32", metadata={})
    monkeypatch.undo()
    assert written == 5_000_000
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_invalid_targets_and_sources_are_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        export_model(sources, tmp_path / "nowhere" / "a.ckpt", dtype="fp16", metadata={})
    with pytest.raises(ModelError, match=r"Choose a name in .safetensors or .ckpt"):
        export_model(sources, tmp_path / "a.bin", dtype="fp16", metadata={})
    with pytest.raises(ModelError, match=r"consists of unet, vae, text_encoder, not of unet, vae\."):
        export_model({k: sources[k] for k in ("unet", "vae")}, tmp_path / "a.ckpt", dtype="fp16", metadata={})
    with pytest.raises(ModelError, match="there is no such file"):
        export_model(sources | {"vae": tmp_path / "no"}, tmp_path / "a.ckpt", dtype="fp16", metadata={})
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelError, match="text: the model file is invalid: unknown file format"):
        export_model(sources | {"vae": tmp_path / "text"}, tmp_path / "a.ckpt", dtype="fp16", metadata={})


def test_a_read_only_folder_is_refused(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(export, "write_safetensors", refuse)  # root may write anywhere, so it is acted
    with pytest.raises(StorageError, match="permission denied"):
        export_model(sources, tmp_path / "a.safetensors", dtype="fp16", metadata={})


def test_an_error_of_the_caller_passes_through(sources: dict[str, Path], tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2000:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        export_model(sources, tmp_path / "a.ckpt", dtype="fp16", metadata={}, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_tensors_must_match_their_entries(tmp_path: Path) -> None:
    entries = [Entry("a", torch.float32, (2, 2))]
    for tensors in ([torch.zeros(4)], [torch.zeros(2, 2).half()], [], [torch.zeros(2, 2)] * 2):
        with pytest.raises(ValueError, match=r"does not match Entry|argument"):
            ckpt_writer.write_ckpt(tmp_path / "a", entries, iter(tensors))
        with pytest.raises(ValueError, match=r"does not match Entry|argument"):
            write_safetensors(tmp_path / "a", entries, iter(tensors), {})


def test_exporting_needs_the_memory_of_a_tensor_not_of_a_model(tmp_path: Path) -> None:
    """Export an eight times wider model (110 MB a part) in a subprocess and measure its anonymous memory."""
    code = """
import json, re, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from fastdb.models.export import export_model
from fastdb.models.layouts.tables import layout_of

folder = Path(sys.argv[1])
parts = {}
for part in ("unet", "vae", "text_encoder"):
    weights = {name: torch.zeros(160, 250) for of, name in layout_of("sd1").by_name if of == part}
    if part == "unet":
        weights["conv_in.weight"] = torch.zeros(160, 4, 3, 3)
    save_file(weights, folder / f"{part}.safetensors")
    parts[part] = folder / f"{part}.safetensors"
    del weights

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024

for kind in ("safetensors", "ckpt"):
    export_model(parts, folder / f"warm.{kind}", dtype="fp16", metadata={})
    before = anonymous()
    peak = [before]
    made = export_model(
        parts, folder / f"a.{kind}", dtype="fp16", metadata={},
        progress=lambda done, total: peak.append(anonymous()) if done % 20 == 0 else None,
    )
    print(json.dumps([made.bytes / 2**20, max(peak) - before]))
"""
    if not Path("/proc/self/status").is_file():
        pytest.skip("needs Linux's /proc")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    output = subprocess.run(command, check=True, cwd=root, capture_output=True, text=True).stdout
    figures = [json.loads(line) for line in output.splitlines()]
    assert len(figures) == 2
    for size, grown in figures:
        assert size > 85
        assert grown < 15
