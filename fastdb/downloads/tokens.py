"""Access tokens and the removal of secrets from links."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from fastdb.errors import ModelError
from fastdb.runtime import drive, paths

CLASSIC = "token.txt"
"""File in the current folder or in My Drive with the classic notebook's token for the Hub."""

_SECRET = re.compile(
    r"(access|auth|api|refresh)?[-_]?(token|key|auth|authorization|signature|sig|secret|password|pwd|policy|jwt)"
    r"|x-(amz|goog)-.*|key-pair-id",
    re.IGNORECASE,
)
"""Query parameters with secret values, which are tokens and the signatures of signed addresses."""

_REFUSALS = ("SecretNotFoundError", "NotebookAccessError", "TimeoutException")


@dataclass(frozen=True)
class Token:
    """A token and the only origin it may be sent to.

    An origin is scheme, host and port, such as `https://civitai.com:443`.
    """

    value: str = field(repr=False)
    origin: str

    def headers(self, url: str) -> Mapping[str, str]:
        """Return the headers for `url`, if it has the token's origin."""
        return {"Authorization": f"Bearer {self.value}"} if origin(url) == self.origin else {}


def origin(url: str) -> str:
    """Return scheme, host and port of an address."""
    link = urlsplit(url)
    port = link.port or {"http": 80, "https": 443}.get(link.scheme.lower(), 0)
    return f"{link.scheme.lower()}://{(link.hostname or '').lower()}:{port}"


def redacted(url: str) -> str:
    """Return a link without its secrets, or other text unchanged.

    Removes user name, password, fragment and secret parameters.
    """
    if "://" not in url:
        return url
    try:
        link = urlsplit(url)
        host = link.netloc.rpartition("@")[2]
        pairs = parse_qsl(link.query, keep_blank_values=True)
    except ValueError:
        return url.split("?")[0].rpartition("@")[2]
    kept = [(name, value) for name, value in pairs if not _SECRET.fullmatch(name)]
    query = link.query if len(kept) == len(pairs) else urlencode(kept)
    return urlunsplit((link.scheme, host, link.path, query, ""))


def hub_token(endpoint: str) -> Token | None:
    """Return the token for the Hub.

    Read from `HF_TOKEN`, Colab's secret of that name, the login of huggingface_hub, or `token.txt`, in this order.

    Raises:
        ModelError: the token is malformed.
    """
    for text, where in (
        (os.environ.get("HF_TOKEN", ""), "HF_TOKEN"),
        (_colab_secret("HF_TOKEN"), "Colab's secret HF_TOKEN"),
        (_first_line(_login_file()), "the login of huggingface_hub"),
        *((_classic(folder / CLASSIC), folder / CLASSIC) for folder in (Path.cwd(), *paths.DRIVES)),
    ):
        if text.strip():
            return Token(_checked(text, where), origin(endpoint))
    return None


def civitai_token(address: str, given: str = "") -> Token | None:
    """Return the token for Civitai.

    Read from the link, `CIVITAI_TOKEN`, or Colab's secret of that name, in this order.

    Args:
        address: Civitai's address.
        given: the token contained in the link, if any.

    Raises:
        ModelError: the token is malformed.
    """
    token = given or os.environ.get("CIVITAI_TOKEN", "").strip() or _colab_secret("CIVITAI_TOKEN")
    return Token(_checked(token, "CIVITAI_TOKEN"), origin(address)) if token.strip() else None


def _colab_secret(name: str) -> str:
    """Return a secret of Colab, or an empty string.

    Only the main thread of the notebook's kernel can request secrets.
    """
    if "ipykernel" not in sys.modules or threading.current_thread() is not threading.main_thread():
        return ""
    userdata = drive.colab("userdata")
    if userdata is None:
        return ""
    refusals = tuple(getattr(userdata, kind) for kind in _REFUSALS if hasattr(userdata, kind))
    try:
        return str(userdata.get(name) or "")
    except refusals:
        return ""


def _login_file() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_TOKEN_PATH)


def _first_line(path: Path) -> str:
    try:
        return next(iter(path.read_text(encoding="utf-8-sig").strip().splitlines()), "")
    except (OSError, UnicodeDecodeError):
        return ""


def _classic(path: Path) -> str:
    """Return the token in a `token.txt`, if it is for the Hub.

    Other programs use this name too.
    """
    text = _first_line(path)
    return text if text.startswith("hf_") else ""


def _checked(text: str, where: object) -> str:
    value = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]{4,}", value):
        raise ModelError(
            "the token is malformed: it is too short or contains spaces or special characters",
            where=where,
            fix="Copy the token again, or remove it.",
        )
    return value
