"""Tokens, their order of precedence and their secrecy."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from fastdb.downloads import tokens
from fastdb.downloads.tokens import civitai_token, hub_token, origin, redacted
from fastdb.errors import ModelError
from fastdb.runtime import drive, paths

HUB = "https://huggingface.co"


def value() -> str:
    token = hub_token(HUB)
    return token.value if token else ""


class Userdata(ModuleType):
    """Colab's secrets as a notebook sees them."""

    class SecretNotFoundError(Exception):
        pass

    class NotebookAccessError(Exception):
        pass

    class TimeoutException(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("userdata")
        self.kept: dict[str, str] = {}
        self.fault: type[Exception] = self.SecretNotFoundError
        self.threads: set[str] = set()

    def get(self, name: str) -> str:
        self.threads.add(threading.current_thread().name)
        if name not in self.kept:
            raise self.fault(name)
        return self.kept[name]


@pytest.fixture
def userdata(monkeypatch: pytest.MonkeyPatch) -> Userdata:
    made = Userdata()
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setattr(drive, "colab", lambda part: made if part == "userdata" else None)
    return made


def test_tokens_are_read_in_a_fixed_order(userdata: Userdata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    my_drive, login = tmp_path / "drive", tmp_path / "login"
    my_drive.mkdir()
    monkeypatch.setattr(paths, "DRIVES", (my_drive,))
    monkeypatch.setattr(tokens, "_login_file", lambda: login)
    assert value() == ""
    (my_drive / "token.txt").write_text("hf_drive\n")
    assert value() == "hf_drive"
    (tmp_path / "token.txt").write_text("\ufeffhf_folder\nsecond line", encoding="utf-8")
    assert value() == "hf_folder"
    login.write_text("hf_login")
    assert value() == "hf_login"
    userdata.kept["HF_TOKEN"] = "hf_colab"
    assert value() == "hf_colab"
    monkeypatch.setenv("HF_TOKEN", " hf_environment\n")
    assert value() == "hf_environment"


def test_the_login_of_huggingface_hub_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.undo()
    assert tokens._login_file() == Path(constants.HF_TOKEN_PATH)


@pytest.mark.parametrize("fault", ["SecretNotFoundError", "NotebookAccessError", "TimeoutException"])
def test_a_missing_colab_secret_is_not_an_error(fault: str, userdata: Userdata) -> None:
    userdata.fault = getattr(Userdata, fault)
    assert value() == ""
    assert civitai_token("https://civitai.com") is None
    assert userdata.threads == {"MainThread"}


def test_a_bug_in_colab_is_not_swallowed(userdata: Userdata) -> None:
    userdata.fault = ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        value()


def test_colab_secrets_are_requested_on_the_main_thread_only(
    userdata: Userdata, monkeypatch: pytest.MonkeyPatch
) -> None:
    userdata.kept["HF_TOKEN"] = "hf_colab"
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(value()))
    thread.start()
    thread.join()
    assert (found, userdata.threads) == ([""], set())
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert (value(), userdata.threads) == ("", set())


def test_civitai_has_its_own_token(userdata: Userdata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(given: str = "") -> str:
        token = civitai_token("https://civitai.com", given)
        assert token is None or token.origin == "https://civitai.com:443"
        return token.value if token else ""

    (tmp_path / "token.txt").write_text("hf_folder")
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    assert found() == "", "a token of the Hub is not for Civitai"
    userdata.kept["CIVITAI_TOKEN"] = "colab"
    assert found() == "colab"
    monkeypatch.setenv("CIVITAI_TOKEN", "environment")
    assert found() == "environment"
    assert found("link-s") == "link-s"


def test_a_token_file_of_another_program_is_ignored(tmp_path: Path) -> None:
    for text in (b"ghp_of_another_site", b"", b"\xff\xfe\x00", b"two words"):
        (tmp_path / "token.txt").write_bytes(text)
        assert value() == ""
    (tmp_path / "token.txt").unlink()
    (tmp_path / "token.txt").mkdir()
    assert value() == ""


def test_a_malformed_token_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("hf_s3cr3t and more", "hf_s3cr3t\nX-Evil: 1", "hf_s3cr3té", "s3c"):
        monkeypatch.setenv("HF_TOKEN", text)
        with pytest.raises(ModelError) as caught:
            value()
        assert str(caught.value).startswith("HF_TOKEN: the token is malformed: it is too short or contains")
        assert "s3c" not in str(caught.value)


def test_a_token_is_sent_to_its_origin_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_value")
    token = hub_token(HUB)
    assert token is not None
    sent = {"Authorization": "Bearer hf_value"}
    assert token.headers("https://huggingface.co/a") == token.headers("HTTPS://HuggingFace.co:443/b") == sent
    for url in (
        "http://huggingface.co/a",
        "https://huggingface.co:444/a",
        "https://cdn.huggingface.co/a",
        "https://huggingface.co.evil.com/a",
        "https://huggingface.co@evil.com/a",
        "https://evil.com/huggingface.co",
    ):
        assert token.headers(url) == {}, url
    assert "hf_value" not in f"{token} {token!r}"
    assert origin("https://user:pass@Host/x") == "https://host:443"


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("https://h/a?b=1&c=%20x", "https://h/a?b=1&c=%20x"),
        ("https://h/a?token=t", "https://h/a"),
        ("https://h/a?b=1&TOKEN=t&c=2", "https://h/a?b=1&c=2"),
        ("https://u:p@h:8/a?api_key=k&sig=s#f", "https://h:8/a"),
        ("https://h/a?X-Goog-Signature=s&Expires=1&Key-Pair-Id=k&Policy=p", "https://h/a?Expires=1"),
        ("https://u:p@[::1/a?token=t", "[::1/a"),
        ("no link?token=t", "no link?token=t"),
    ],
)
def test_secrets_are_removed_from_links(link: str, shown: str) -> None:
    assert redacted(link) == shown
