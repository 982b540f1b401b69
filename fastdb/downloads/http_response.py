"""What a server's answer means: which bytes come, what the file is called, whether to ask again, or why not."""

from __future__ import annotations

import email.message
import email.utils
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from fastdb.errors import ModelError
from fastdb.storage.safe_names import reserved_on_windows

if TYPE_CHECKING:
    import httpx

    from fastdb.downloads.http_request import Remote

AGAIN = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
"""Answers that another try may change."""

FALLBACK = "model"
"""What a file is called when nobody has a name for it."""

_LONGEST = 160
"""Bytes of a file name, so that what is put around it while writing fits into 255."""


def refusal(remote: Remote, status: int, *, login: bool = False) -> ModelError:
    """The line for an answer that another try will not change."""
    if status in (401, 403) or login:
        if remote.token is not None and not login:
            what = f"the server refuses this download ({status}): the token given is not valid, or opens other models"
        else:
            what = f"the server refuses this download ({status}): it wants to know who asks"
        return ModelError(what, where=remote.shown, fix=remote.gate)
    if status in (404, 410):
        return ModelError(
            f"there is no such file on the server ({status})",
            where=remote.shown,
            fix="Check the spelling, or look whether it was moved or removed.",
        )
    if status == 451:
        return ModelError("may not be given out where you are (451)", where=remote.shown, fix="Choose another source.")
    return ModelError(
        f"the server answers {status}, which is no file",
        where=remote.shown,
        fix="Open the link in a browser to see what it says, or choose another source.",
    )


def a_page(remote: Remote) -> ModelError:
    """The line for a web page in the place of a model."""
    return ModelError(
        "is a web page and no model file",
        where=remote.shown,
        fix="Give the link that its download button has; where it asks to sign in, download it in a browser.",
    )


def is_page(first: bytes, content_type: str) -> bool:
    """Whether a body that begins so is a web page."""
    begins = first[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return begins.startswith((b"<!doctype html", b"<html")) or ("html" in content_type and begins.startswith(b"<"))


def placed(response: httpx.Response) -> tuple[int, int | None]:
    """Where the bytes of an answer begin in the file, and how long the file is, if it says so."""
    if response.status_code in (206, 416):
        said = re.fullmatch(
            r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("content-range", "").strip(), re.IGNORECASE
        )
        if said is None:
            return -1, None
        return (int(said[1]) if said[1] else -1), (int(said[2]) if said[2] != "*" else None)
    length = response.headers.get("content-length", "")
    return 0, int(length) if re.fullmatch(r"\d+", length, re.ASCII) and not is_encoded(response) else None


def is_encoded(response: httpx.Response) -> bool:
    """Whether its length and ranges count other bytes than the file has."""
    return response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity")


def wait_asked(response: httpx.Response) -> float:
    """Seconds that `Retry-After` asks to wait, as a number or a date; 0 where it asks nothing."""
    said = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+", said, re.ASCII):
        return float(said)
    try:
        moment = email.utils.parsedate_to_datetime(said)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def file_name(response: httpx.Response, asked: str) -> str:
    """What to call the file: as `Content-Disposition` says, else as the address asked for ends; never a path."""
    said = response.headers.get("content-disposition", "")
    message = email.message.Message()
    message["Content-Disposition"] = re.sub(r"[\r\n]", " ", said)
    # The one that may hold any letter goes before the plain one beside it; the mail parser has it the other way.
    wide = re.search(r"filename\*\s*=\s*utf-8'[^']*'([^;\s]+)", said, re.IGNORECASE)
    names = (
        wide[1] if wide else "",
        message.get_filename("") if said else "",
        urlsplit(asked).path,
        str(response.url.path),
    )
    return next((name for name in map(safe_name, names) if name), FALLBACK)


def safe_name(said: str) -> str:
    """The last part of a name, with nothing in it that any system gives a meaning; empty where nothing is left."""
    last = re.split(r"[/\\]", unquote(said, errors="replace"))[-1]
    name = re.sub(r'[\x00-\x1f\x7f-\x9f<>:"|?*\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufffd]', "", last).strip(" .")
    stem, dot, suffix = name.rpartition(".")
    while len(name.encode("utf-8", "ignore")) > _LONGEST:
        stem = stem[:-1] if stem else ""
        name = f"{stem}{dot}{suffix[:20]}" if stem else name[: _LONGEST // 4]
    return f"_{name}" if reserved_on_windows(name) else name
