"""Parsing of sources, without network access."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdb.downloads.source import (
    CivitaiFile,
    DriveFile,
    HubFile,
    HubRepository,
    LocalPath,
    Source,
    WebFile,
    parse,
)
from fastdb.errors import ModelError

DRIVE = "1a2B3c4D5e6F7g8H9i0J"

KNOWN: list[tuple[str, Source]] = [
    ("runwayml/stable-diffusion-v1-5", HubRepository("runwayml/stable-diffusion-v1-5")),
    ("  owner/name \n", HubRepository("owner/name")),
    ("owner/name@fp16", HubRepository("owner/name", "fp16")),
    ("owner/name@refs/pr/3", HubRepository("owner/name", "refs/pr/3")),
    ("https://huggingface.co/owner/name", HubRepository("owner/name")),
    ("https://huggingface.co/owner/name/", HubRepository("owner/name")),
    ("https://huggingface.co/owner/name/tree/main", HubRepository("owner/name")),
    ("https://huggingface.co/owner/name/tree/v2", HubRepository("owner/name", "v2")),
    ("https://huggingface.co/owner/name?library=diffusers#usage", HubRepository("owner/name")),
    ("huggingface.co/owner/name", HubRepository("owner/name")),
    ("https://hf.co/owner/name", HubRepository("owner/name")),
    ("owner/name/model.safetensors", HubFile("owner/name", "model.safetensors")),
    ("owner/name/sub/folder/Model.CKPT", HubFile("owner/name", "sub/folder/Model.CKPT")),
    ("owner/name@v2/model.ckpt", HubFile("owner/name", "model.ckpt", "v2")),
    ("https://huggingface.co/o/n/resolve/main/a.safetensors?download=true", HubFile("o/n", "a.safetensors")),
    ("https://huggingface.co/o/n/blob/v2/b/a%20b.ckpt", HubFile("o/n", "b/a b.ckpt", "v2")),
    ("https://huggingface.co/o/n/resolve/refs/pr/1/a.ckpt", HubFile("o/n", "a.ckpt", "refs/pr/1")),
    ("https://civitai.com/models/4384?modelVersionId=128713", CivitaiFile(128713)),
    ("https://civitai.com/models/4384/dreamshaper?modelVersionId=128713", CivitaiFile(128713)),
    ("https://civitai.com/api/download/models/128713", CivitaiFile(128713)),
    (
        "https://civitai.com/api/download/models/7?type=Model&format=SafeTensor&token=abcd",
        CivitaiFile(7, "type=Model&format=SafeTensor", "abcd"),
    ),
    (f"https://drive.google.com/file/d/{DRIVE}/view?usp=sharing", DriveFile(DRIVE)),
    (f"https://drive.google.com/open?id={DRIVE}", DriveFile(DRIVE)),
    (f"https://drive.google.com/uc?export=download&id={DRIVE}", DriveFile(DRIVE)),
    (f"drive.google.com/file/d/{DRIVE}", DriveFile(DRIVE)),
    ("https://example.com/a/model.ckpt#top", WebFile("https://example.com/a/model.ckpt")),
    ("http://example.com/get?id=5", WebFile("http://example.com/get?id=5")),
    ("/models/sd15", LocalPath(Path("/models/sd15"))),
    ("C:\\models\\sd15", LocalPath(Path("C:\\models\\sd15"))),
    ("path/to/stable-diffusion-v1-5", LocalPath(Path("path/to/stable-diffusion-v1-5"))),
    ("folder/model.safetensors", LocalPath(Path("folder/model.safetensors"))),
]


@pytest.mark.parametrize(("text", "meant"), KNOWN, ids=[text.strip() for text, _ in KNOWN])
def test_sources_are_parsed(text: str, meant: Source) -> None:
    assert parse(text) == (LocalPath(meant.path.absolute()) if isinstance(meant, LocalPath) else meant)


@pytest.mark.parametrize(("text", "meant"), KNOWN, ids=[text.strip() for text, _ in KNOWN])
def test_the_text_of_a_source_parses_to_the_same_source(text: str, meant: Source) -> None:
    assert parse(str(parse(text))) == parse(text)


def test_an_existing_path_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "model.ckpt").touch()
    assert parse("owner/name") == LocalPath(tmp_path / "owner" / "name")
    assert parse("owner/name/model.ckpt") == LocalPath(tmp_path / "owner" / "name" / "model.ckpt")
    assert parse("owner/other") == HubRepository("owner/other")
    assert parse(Path("owner")) == LocalPath(tmp_path / "owner")


def test_links_of_another_hub_endpoint_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.com:8443/")
    assert parse("https://hub.example.com:8443/owner/name") == HubRepository("owner/name")
    assert isinstance(parse("https://hub.example.com/owner/name"), WebFile)


UNSUPPORTED = [
    ("", "'': not a name of a base model. Name a Hub repository (owner/name)"),
    (" \n", "not a name of a base model"),
    ("owner/name\x07", "not a name of a base model"),
    ("ftp://example.com/model.ckpt", "'ftp://example.com/model.ckpt': not a valid http or https link"),
    ("https://", "not a valid http or https link"),
    ("https://[::1/model", "not a valid http or https link"),
    ("https://example.com:99999/model", "not a valid http or https link"),
    ("https://example.com/", "the link leads to a whole site, not to a file"),
    ("https://huggingface.co/", "the link does not name a repository on the Hub"),
    ("https://huggingface.co/owner", "the link does not name a repository on the Hub"),
    ("https://huggingface.co/datasets/owner/name", "not a repository of a model"),
    ("https://huggingface.co/owner/name/discussions", "the link leads to a page about a model, not to the model"),
    ("https://huggingface.co/o/n/resolve/main/../a.ckpt", "the path is not valid in a repository"),
    ("owner/name/../../a.ckpt", "the path is not valid in a repository"),
    ("https://civitai.com/models/4384", "the link does not name a version of the model. Choose a version on its page"),
    ("https://civitai.com/models/4384?modelVersionId=x", "the link does not name a version"),
    (f"https://drive.google.com/drive/folders/{DRIVE}", "the link leads to a folder on Google Drive. Use the link"),
    ("https://drive.google.com/drive/my-drive", "the link does not name a file on Google Drive"),
]


@pytest.mark.parametrize(("text", "line"), UNSUPPORTED, ids=[text.strip() or "blank" for text, _ in UNSUPPORTED])
def test_unsupported_sources_are_refused_in_one_line(text: str, line: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse(text)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_kind_of_source_has_cases() -> None:
    assert {type(meant).__name__ for _, meant in KNOWN} == {
        "HubRepository", "HubFile", "CivitaiFile", "DriveFile", "WebFile", "LocalPath"
    }  # fmt: skip
    assert len(UNSUPPORTED) >= 15


@pytest.mark.parametrize(
    "text",
    [
        "https://civitai.com/api/download/models/7?token=s3cr3t",
        "https://civitai.com/models/7?token=s3cr3t",
        "https://me:s3cr3t@example.com/model.ckpt",
        "https://example.com/model.ckpt?a=1&access_token=s3cr3t",
        "https://example.com/model.ckpt?X-Amz-Credential=s3cr3t&X-Amz-Signature=s3cr3t",
        "https://example.com/model.ckpt?key=s3cr3t#s3cr3t",
        "ftp://example.com/model.ckpt?sig=s3cr3t",
    ],
)
def test_secrets_in_a_link_never_appear_in_text(text: str) -> None:
    found: object
    try:
        found = parse(text)
    except ModelError as error:
        found = error
    assert "s3cr3t" not in f"{found} {found!r}"
