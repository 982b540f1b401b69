"""Base models in a single file, used for sessions or refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file

from fastdb.commands import sessions
from fastdb.errors import FastDBError, ModelError, StorageError, TrainingError
from fastdb.models import diffusers_configs, resolve
from fastdb.models.convert import convert
from fastdb.models.diffusers_folder import PARTS, WEIGHTS, fingerprint, open_base_model, weight_file
from fastdb.models.export import export_model
from fastdb.models.layouts.layout import modern_name
from fastdb.models.resolve import ensure_base, resolve_base
from fastdb.sessions.session import Session
from tests.downloads.server import File, Hub, Server
from tests.downloads.test_hub import NAME

WORD = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "LoRA": ({"lora_unet_a.lora_down.weight": (4, 768), "lora_unet_a.lora_up.weight": (320, 4)}, "it is a LoRA"),
    "textual inversion": ({"emb_params": (2, 768)}, "it is a textual inversion"),
    "VAE": (
        {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)},
        "it contains only an autoencoder|it is no model",
    ),
    "text encoder": ({"text_model.embeddings.token_embedding.weight": (49408, 768)}, "it contains only a text encoder"),
    "something else": ({"layer.weight": (4, 4)}, "it is no model, because "),
}


@pytest.fixture(scope="module")
def exported(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mini as a single file."""
    file = tmp_path_factory.mktemp("single") / "dreamshaper.safetensors"
    export_model({part: weight_file(mini, part) for part in PARTS}, file, dtype="fp16", metadata={})
    return file


def weights(folder: Path) -> dict[str, Any]:
    return {
        f"{part} {modern_name(part, name)}": tensor
        for part in PARTS
        for name, tensor in load_file(weight_file(folder, part)).items()
        if not name.endswith("position_ids")
    }


def alike(first_path: Path, second_path: Path) -> bool:
    first, second = weights(first_path), weights(second_path)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_session_can_start_from_a_single_file(exported: Path, mini: Path, tmp_path: Path) -> None:
    own = shutil.copy(exported, tmp_path / "mine.safetensors")
    session = sessions.new("dog", own)
    assert session.record.base_model.folder == str(own)
    assert session.config.resolution == 64, "what the model was made for"
    folder = ensure_base(session).folder
    assert folder.is_relative_to(tmp_path / "cache")
    assert alike(folder, mini), "to the bit"
    assert fingerprint(folder) == session.record.base_model.fingerprint
    before = weight_file(folder, "unet").stat().st_mtime_ns
    assert ensure_base(session).folder == folder
    assert weight_file(folder, "unet").stat().st_mtime_ns == before, "made once"


def test_every_file_format_gives_the_same_weights(exported: Path, tmp_path: Path) -> None:
    convert(exported, tmp_path / "a.ckpt")
    assert fingerprint(resolve_base(tmp_path / "a.ckpt").folder) == fingerprint(resolve_base(exported).folder)


def test_a_changed_file_is_another_base_model(exported: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(exported, tmp_path / "mine.safetensors"))
    session = sessions.new("dog", own)
    tensors = load_file(own)
    tensors[WORD] += 1
    save_file(tensors, own)
    with pytest.raises(TrainingError, match="other weights than the session began with"):
        ensure_base(session)


def test_an_incomplete_conversion_is_repeated(
    exported: Path, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(resolve, "remember", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            resolve_base(exported)
    left = next((tmp_path / "cache").rglob(f"{WEIGHTS['unet']}.safetensors"))
    left.write_bytes(left.read_bytes()[:1000])
    folder = resolve_base(exported).folder
    assert alike(folder, mini)
    weight_file(folder, "vae").unlink()
    assert alike(resolve_base(exported).folder, mini), "also after a file was lost"


def test_precision_is_kept_and_mixed_precision_loses_nothing(exported: Path, tmp_path: Path) -> None:
    tensors = load_file(exported)
    assert open_base_model(resolve_base(exported).folder)
    tensors[WORD] = tensors[WORD].float() + 1e-6
    save_file(tensors, tmp_path / "mixed.safetensors")
    stored = load_file(weight_file(resolve_base(tmp_path / "mixed.safetensors").folder, "text_encoder"))
    table = next(tensor for name, tensor in stored.items() if name.endswith("token_embedding.weight"))
    assert table.dtype == torch.float32
    assert torch.equal(table, tensors[WORD])


def test_a_file_behind_a_link_is_downloaded_again_on_another_machine(
    exported: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/m/dream.safetensors"] = File(exported.read_bytes(), drop_every=3_000_000)
    session = sessions.new("dog", f"{server.url}/m/dream.safetensors")
    assert session.record.base_model.source == f"{server.url}/m/dream.safetensors"
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "other-cache"))
    again = ensure_base(Session.open("dog")).folder
    assert again.is_relative_to(tmp_path / "other-cache")
    assert fingerprint(again) == session.record.base_model.fingerprint


def test_a_file_in_a_repository_can_be_a_base_model(exported: Path, hub: Hub, mini: Path) -> None:
    hub.add(NAME, {"merge.safetensors": exported.read_bytes()})
    assert alike(resolve_base(f"{NAME}/merge.safetensors").folder, mini)


def test_vocabularies_are_downloaded_from_the_first_repository_that_has_them(hub: Hub) -> None:
    for name in diffusers_configs.VOCABULARY:
        with pytest.raises(ModelError, match="openai/clip-vit-large-patch14"):
            diffusers_configs._vocabulary(name)
    hub.add("openai/clip-vit-large-patch14", {"vocab.json": json.dumps({"a": 0}).encode(), "merges.txt": b"#version"})
    assert [diffusers_configs._vocabulary(name) for name in diffusers_configs.VOCABULARY] == [b'{"a": 0}', b"#version"]
    hub.repositories.clear()
    assert diffusers_configs._vocabulary("merges.txt") == b"#version", "from the cache"


def test_an_invalid_vocabulary_is_refused(hub: Hub) -> None:
    hub.add("openai/clip-vit-large-patch14", {"vocab.json": b"[1, 2]"})
    with pytest.raises(ModelError, match="is no vocabulary"):
        diffusers_configs._vocabulary("vocab.json")


@pytest.mark.parametrize("kind", REFUSED)
def test_an_incomplete_model_is_refused_before_anything_is_written(kind: str, tmp_path: Path) -> None:
    shapes, why = REFUSED[kind]
    file = tmp_path / "style.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, file)
    with pytest.raises(
        ModelError, match=rf"^{re.escape(str(file))} cannot be trained as a base model: ({why})"
    ) as caught:
        sessions.new("dog", file)
    assert caught.value.fix
    assert sorted(path.name for path in tmp_path.iterdir()) == ["style.safetensors"]


def test_inpainting_is_refused_with_its_reason(exported: Path, tmp_path: Path) -> None:
    tensors = load_file(exported)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[first] = torch.cat([tensors[first], tensors[first], tensors[first][:, :1]], dim=1)
    save_file(tensors, tmp_path / "inpainting.safetensors")
    with pytest.raises(ModelError, match="inpainting cannot be trained yet: its UNet also needs a mask"):
        resolve_base(tmp_path / "inpainting.safetensors")


def test_too_little_disk_space_is_reported_before_anything_is_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "SPARE", 1 << 60)
    with pytest.raises(StorageError, match=r"needs .* on the disk"):
        resolve_base(exported)
    assert not list((tmp_path / "cache").rglob("model"))


@pytest.mark.parametrize(
    ("message", "answer"),
    [("sd14", "Did you mean sd15?"), ("flux-pro", "Flux cannot be trained yet"), ("xyzzy", "Choose from sd15, ")],
)
def test_an_unknown_name_suggests_the_nearest(message: str, answer: str) -> None:
    with pytest.raises(FastDBError, match=re.escape(answer)):
        resolve_base(message)


def test_a_single_file_mirror_is_used_if_the_folders_are_gone(exported: Path, hub: Hub, mini: Path) -> None:
    hub.add("Comfy-Org/stable-diffusion-v1-5-archive", {"v1-5-pruned-emaonly-fp16.safetensors": exported.read_bytes()})
    assert alike(resolve_base("sd15").folder, mini)
