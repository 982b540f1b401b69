"""Downloads of repositories and single files from a local imitation of the Hub."""

from __future__ import annotations

import json
import logging
import random
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from fastdb.downloads import download as downloads
from fastdb.downloads import tokens
from fastdb.downloads.fetch import fetch
from fastdb.downloads.model_cache import came_from
from fastdb.errors import ModelError, StorageError
from tests.downloads.server import COMMIT, LATER, File, Hub, Server

NAME = "owner/model"

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.39.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": [None, None],
    "requires_safety_checker": True,
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

NEEDED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}

BESIDE = {
    ".gitattributes",
    "README.md",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "v1-inference.yaml",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "safety_checker/pytorch_model.bin",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder/pytorch_model.fp16.bin",
    "unet/deeper/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/model.onnx",
    "unet/openvino_model.xml",
    "vae/diffusion_flax_model.msgpack",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae_decoder/model.onnx",
}


def contents(names: set[str]) -> dict[str, bytes]:
    chance = random.Random(3)
    made = {}
    for name in sorted(names):
        large = name.endswith((".safetensors", ".bin", ".ckpt", ".msgpack", ".onnx"))
        made[name] = b"\x00" * 8 + chance.randbytes(150_000 if large else 200)
    made["model_index.json"] = json.dumps(INDEX).encode()
    return made


@pytest.fixture
def files(hub: Hub) -> dict[str, bytes]:
    made = contents(NEEDED | BESIDE)
    hub.add(NAME, made)
    return made


def there(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".fetched.json"
    }


def test_only_needed_files_are_downloaded(hub: Hub, files: dict[str, bytes]) -> None:
    calls: list[tuple[int, int]] = []
    folder = fetch(NAME, progress=lambda *call: calls.append(call))
    assert there(folder) == {name: files[name] for name in NEEDED}
    total = sum(len(files[name]) for name in NEEDED - {"model_index.json"})
    assert calls[-1] == (total, total)
    assert {whole for _, whole in calls} == {total}
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert came_from(folder) == f"{NAME}@{COMMIT}"
    assert all(COMMIT in request.path for request in hub.log if "/resolve/" in request.path)


def test_half_precision_is_downloaded_only_if_there_is_no_other(hub: Hub, files: dict[str, bytes]) -> None:
    del files["vae/diffusion_pytorch_model.safetensors"]
    downloaded = there(fetch(NAME))
    assert [name for name in sorted(downloaded) if name.endswith(".safetensors")] == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]


def test_sharded_weights_are_downloaded_with_their_index(hub: Hub) -> None:
    shards = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    half_shards = [f"unet/diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    half_index = "unet/diffusion_pytorch_model.safetensors.index.fp16.json"
    halves = {*half_shards, half_index, "unet/config.json", "unet/diffusion_pytorch_model.bin"}
    full = {*shards, index, *halves}
    whole = "unet/diffusion_pytorch_model.safetensors"
    for name, names, expected in (
        ("owner/full", full, {"unet/config.json", index, *shards}),
        ("owner/half", halves, {"unet/config.json", half_index, *half_shards}),
        ("owner/both", {*full, whole}, {"unet/config.json", whole}),
    ):
        hub.add(name, contents(names))
        assert set(there(fetch(name))) == {"model_index.json", *expected}, name


def test_a_repository_is_downloaded_once(hub: Hub, other: Server, files: dict[str, bytes]) -> None:
    folder = fetch(NAME)
    before = other.sent
    hub.log.clear()
    assert fetch(NAME) == folder
    assert fetch(f"{NAME}@{COMMIT}") == folder
    assert [request.path.split("?")[0] for request in hub.log] == [f"/api/models/{NAME}"]
    assert other.sent == before


def test_a_new_commit_is_another_model(hub: Hub, files: dict[str, bytes]) -> None:
    first = fetch(NAME)
    hub.commit = LATER
    later = fetch(NAME)
    assert later != first
    assert came_from(later) == f"{NAME}@{LATER}"
    assert fetch(f"{NAME}@{COMMIT}") == first


def test_a_removed_repository_is_used_from_the_cache(hub: Hub, files: dict[str, bytes]) -> None:
    folder = fetch(NAME)
    hub.repositories.clear()
    assert fetch(NAME) == folder
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(ModelError, match="there is no such local folder, and no such repository"):
        fetch(NAME)


def test_an_interrupted_repository_is_resumed(hub: Hub, other: Server, files: dict[str, bytes]) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > 300_000:
            raise Stop

    with pytest.raises(Stop):
        fetch(NAME, progress=stop)
    before = other.sent
    assert there(fetch(NAME)) == {name: files[name] for name in NEEDED}
    large = [name for name in NEEDED if name.endswith(".safetensors")]
    assert len(large) == 3
    assert other.sent - before < 200_000, "two of three existed, the second in part"


def test_damaged_files_of_an_earlier_run_are_downloaded_again(hub: Hub, files: dict[str, bytes]) -> None:
    folder = fetch(NAME)
    (folder / ".fetched.json").unlink()
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x00" * 150_008)
    (folder / "unet" / "config.json").write_bytes(b"")
    assert there(fetch(NAME)) == {name: files[name] for name in NEEDED}


def test_dropped_connections_are_resumed_and_checksums_verified(
    hub: Hub, other: Server, files: dict[str, bytes]
) -> None:
    hub.behaviour = File(drop_every=65536)
    assert there(fetch(NAME)) == {name: files[name] for name in NEEDED}
    files["unet/diffusion_pytorch_model.safetensors"] = b"\x01" * 150_008
    hub.commit = LATER
    for file in other.files.values():
        file.data = b"\x02" * len(file.data)
    with pytest.raises(ModelError, match="the downloaded file does not match the expected checksum"):
        fetch(NAME)


def test_a_busy_hub_is_retried(hub: Hub, files: dict[str, bytes]) -> None:
    hub.failing = [(503, {}), (429, {})]
    assert there(fetch(NAME)) == {name: files[name] for name in NEEDED}
    hub.failing = [(503, {})] * 9
    with pytest.raises(ModelError, match=r"owner/other: the Hub answered 503, 5 times in a row\. Check the network"):
        fetch("owner/other")


def refused(named: str, **known: Any) -> str:
    with pytest.raises(ModelError) as caught:
        fetch(named, **known)
    assert "\n" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    return str(caught.value)


def test_each_refusal_is_one_line_with_the_remedy(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refused("owner/none")
    assert message.startswith(
        "owner/none: there is no such local folder, and no such repository on the Hub unless it is private"
    )
    assert refused(f"{NAME}@v9").startswith(f"{NAME}@v9: the repository has no revision 'v9'. Omit the revision")
    hub.gated[NAME] = "hf_right"
    message = refused(NAME)
    assert message.startswith(
        f"{NAME}: the license must be accepted (401). Sign in on huggingface.co, accept the license on "
    )
    assert f"https://huggingface.co/{NAME}, and set a token: HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_s3cr3t-and-wrong")
    message = refused(NAME)
    assert message.startswith(f"{NAME}: the account of this token has not accepted the license (403). Sign in")
    assert "s3cr3t" not in message
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert there(fetch(NAME))


def test_a_repository_may_be_gated_for_downloads_only(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated[NAME], hub.listing_closed = "hf_right", False
    message = refused(NAME)
    assert message.startswith(f"{NAME}@{COMMIT}/model_index.json: the server requires a login (401). Sign in")
    assert f"accept the license on https://huggingface.co/{NAME}, and set a token" in message
    monkeypatch.setenv("HF_TOKEN", "hf_s3cr3t-and-wrong")
    assert "(403); the token is invalid or has no access to this model. Sign in on huggingface.co" in refused(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert there(fetch(NAME))


def test_a_token_rejected_by_the_hub_is_reported(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cr3t")
    hub.failing = [(401, {"X-Error-Message": "Invalid credentials in Authorization header"})]
    assert refused(NAME).startswith(f"{NAME}: the Hub rejected the token (401). Sign in")


def test_an_unreachable_hub_is_reported(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert refused(NAME) == (
            f"{NAME}: the server could not be reached, 5 times in a row. Check the network and try again later."
        )


def test_offline_mode_uses_the_cache_only(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder = fetch(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from huggingface_hub.utils import _http

    _http.close_session()
    try:
        assert fetch(NAME) == folder
        assert refused("owner/other").startswith("owner/other: it is not on this machine, and HF_HUB_OFFLINE disables")
    finally:
        monkeypatch.undo()
        _http.close_session()


def test_repositories_that_are_not_diffusers_models_are_refused(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add("owner/singles", {"a.safetensors": b"a" * 2000, "b.ckpt": b"b" * 2000, "README.md": b""})
    message = refused("owner/singles")
    assert message.startswith(
        "owner/singles: the repository has no model_index.json, only single files: a.safetensors, b.ckpt. Name a"
    )
    hub.add("owner/words", {"README.md": b""})
    assert "it is not a model in the diffusers layout" in refused("owner/words")
    hub.add("owner/bent", {"model_index.json": b"[]"})
    assert "model_index.json could not be read" in refused("owner/bent")
    hub.add("owner/xl", {**files, "model_index.json": json.dumps({**INDEX, "_class_name": "XL"}).encode()})
    before = hub.elsewhere.sent
    assert "contains a XL, not a StableDiffusionPipeline" in refused("owner/xl", only="StableDiffusionPipeline")
    assert hub.elsewhere.sent == before, "and nothing large was fetched for it"
    pickles = {name: data for name, data in files.items() if not name.startswith("unet/diff") or ".bin" in name}
    hub.add("owner/pickles", pickles)
    assert "the unet exists only as diffusion_pytorch_model.bin, which is not supported" in refused("owner/pickles")


def test_a_repository_cannot_write_outside_its_folder(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    for name in ("unet/../../../../evil.json", "/etc/evil.json", "unet/..\\..\\evil.json", "../evil.json"):
        files[name] = b"{}"
    index = {**INDEX, "..": ["x", "y"], "/etc": ["x", "y"], "a/../..": ["x", "y"]}
    files["model_index.json"] = json.dumps(index).encode()
    assert set(there(fetch(NAME))) == NEEDED
    assert list(tmp_path.rglob("*evil*")) == []


def test_too_little_disk_space_is_reported_before_the_weights(
    hub: Hub, other: Server, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, downloads.SPARE + 200_000))
    with pytest.raises(StorageError, match=r"needs 32\.5 MB on the disk of .*, but only 32\.2 MB are free"):
        fetch(NAME)
    assert other.sent == 0


def test_mirrors_are_tried_in_order(hub: Hub, files: dict[str, bytes]) -> None:
    folder = fetch("vanished/model", mirrors=["gone/too", NAME, "never/asked"])
    assert came_from(folder) == f"{NAME}@{COMMIT}"
    assert "never" not in hub.seen()
    message = refused("vanished/model", mirrors=["gone/too"])
    assert message.startswith(
        "all 2 sources failed (vanished/model: there is no such local folder, and no such repository"
    )
    assert "; gone/too: there is no such" in message


def test_a_single_file_of_a_repository_is_downloaded_once(hub: Hub, files: dict[str, bytes]) -> None:
    path = fetch(f"{NAME}/v1-5-pruned.safetensors")
    assert path.name == "v1-5-pruned.safetensors"
    assert path.read_bytes() == files["v1-5-pruned.safetensors"]
    assert came_from(path) == f"{NAME}@{COMMIT}/v1-5-pruned.safetensors"
    assert (
        fetch(f"{hub.url}/{NAME}/resolve/main/unet/diffusion_pytorch_model.bin").name == "diffusion_pytorch_model.bin"
    )
    hub.repositories.clear()
    hub.log.clear()
    assert fetch(f"{NAME}/v1-5-pruned.safetensors") == path
    assert fetch(f"{NAME}@{COMMIT}/v1-5-pruned.safetensors") == path
    assert len(hub.log) == 1


def test_a_missing_file_lists_the_files_of_the_repository(hub: Hub, files: dict[str, bytes]) -> None:
    message = refused(f"{NAME}/v1-5.safetensors")
    assert message.startswith(
        f"{NAME}/v1-5.safetensors: the repository has no such file; it contains v1-5-pruned.ckpt, v1-5-pruned."
    )


def test_the_token_is_sent_to_the_hub_only_and_never_shown(
    hub: Hub,
    other: Server,
    files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", "hf_s3cr3t")
    hub.gated[NAME] = "hf_s3cr3t"
    hub.behaviour = File(drop_every=65536)
    fetch(NAME)
    assert {request.headers.get("authorization") for request in hub.log} == {"Bearer hf_s3cr3t"}
    assert len(other.log) >= 9
    assert all("authorization" not in request.headers for request in other.log)
    assert "s3cr3t" not in other.seen() + caplog.text + "".join(capfd.readouterr())
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cr3t" in path.read_bytes()] == []
    assert tokens.hub_token("https://huggingface.co").headers(hub.url) == {}  # type: ignore[union-attr]
