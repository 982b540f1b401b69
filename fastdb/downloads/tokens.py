"""Tokens: where they come from, the one address each is for, and texts without them."""

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
"""Where the classic notebook keeps a token for the Hub: the current folder, or My Drive."""

_SECRET = re.compile(
    r"(access|auth|api|refresh)?[-_]?(token|key|auth|authorization|signature|sig|secret|password|pwd|policy|jwt)"
    r"|x-(amz|goog)-.*|key-pair-id",
    re.IGNORECASE,
)
"""Names in a link's query whose values open doors: tokens, and what signed addresses are signed with."""

_REFUSALS = ("SecretNotFoundError", "NotebookAccessError", "TimeoutException")


@dataclass(frozen=True)
class Token:
    """A token and the one origin it may be sent to, such as `https://civitai.com:443`."""

    value: str = field(repr=False)
    origin: str

    def headers(self, url: str) -> Mapping[str, str]:
        """What to send with a request for `url`: nothing, unless it goes to the token's own origin."""
        return {"Authorization": f"Bearer {self.value}"} if origin(url) == self.origin else {}


def origin(url: str) -> str:
    """Scheme, host and port of an address."""
    link = urlsplit(url)
    port = link.port or {"http": 80, "https": 443}.get(link.scheme.lower(), 0)
    return f"{link.scheme.lower()}://{(link.hostname or '').lower()}:{port}"


def redacted(url: str) -> str:
    """A link without user name, password, fragment and the secret values of its query; other text as it is."""
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
    """The token for the Hub: `HF_TOKEN`, Colab's secret of that name, the Hub's own login, or `token.txt`.

    Raises:
        ModelError: what is there is no token.
    """
    for found, where in (
        (os.environ.get("HF_TOKEN", ""), "HF_TOKEN"),
        (_colab_secret("HF_TOKEN"), "Colab's secret HF_TOKEN"),
        (_first_line(_login_file()), "the Hub's login"),
        *((_classic(folder / CLASSIC), folder / CLASSIC) for folder in (Path.cwd(), *paths.DRIVES)),
    ):
        if found.strip():
            return Token(_checked(found, where), origin(endpoint))
    return None


def civitai_token(address: str, given: str = "") -> Token | None:
    """The token for Civitai: the one its link came with, `CIVITAI_TOKEN`, or Colab's secret of that name.

    Raises:
        ModelError: what is there is no token.
    """
    found = given or os.environ.get("CIVITAI_TOKEN", "").strip() or _colab_secret("CIVITAI_TOKEN")
    return Token(_checked(found, "CIVITAI_TOKEN"), origin(address)) if found.strip() else None


def _colab_secret(name: str) -> str:
    """A secret of Colab; it can be asked for only by the notebook's own process, and only on its main thread."""
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
    """A file of such a common name counts only where it says by itself that it is for the Hub."""
    found = _first_line(path)
    return found if found.startswith("hf_") else ""


def _checked(found: str, where: object) -> str:
    value = found.strip()
    if not re.fullmatch(r"[\x21-\x7e]{4,}", value):
        raise ModelError(
            "holds no token: it has signs that no token has",
            where=where,
            fix="Copy the token again, one line without spaces, or remove it.",
        )
    return value
