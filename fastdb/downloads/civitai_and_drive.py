"""Files on sites that have their own ways: Civitai's gate, the pages that Google Drive puts before a file."""

from __future__ import annotations

import html
import re
from urllib.parse import urlsplit

from fastdb.downloads.http_request import Remote
from fastdb.downloads.source import CivitaiFile, DriveFile, WebFile
from fastdb.downloads.tokens import civitai_token
from fastdb.errors import ModelError

CIVITAI = "https://civitai.com"
DRIVE = "https://drive.google.com"

CIVITAI_GATE = (
    "Sign in on civitai.com, make an API key in your account's settings, put it into CIVITAI_TOKEN (in Colab: a secret "
    "of that name), and try again."
)
DRIVE_GATE = "Ask its owner to share it with anyone who has the link, or mount Drive and give the file's path."


def remote_of(source: CivitaiFile | DriveFile | WebFile, *, sha256: str = "", size: int | None = None) -> Remote:
    """Where a file is and how to ask for it.

    Raises:
        ModelError: what should be a token is none.
    """
    if isinstance(source, CivitaiFile):
        url = f"{CIVITAI}{str(source).removeprefix('https://civitai.com')}"
        token = civitai_token(CIVITAI, source.secret)
        return Remote(url=url, shown=str(source), token=token, sha256=sha256, size=size, gate=CIVITAI_GATE)
    if isinstance(source, DriveFile):
        url = f"{DRIVE}/uc?export=download&id={source.number}"
        return Remote(
            url=url,
            shown=str(source),
            sha256=sha256,
            size=size,
            gate=DRIVE_GATE,
            through=lambda page: _past(page, source),
        )
    return Remote(url=source.url, shown=str(source), sha256=sha256, size=size)


def _past(page: str, source: DriveFile) -> str:
    """The address that Google's page before a large file leads to.

    Raises:
        ModelError: it leads nowhere: too many have downloaded it, or it is not shared.
    """
    from gdown.download import get_url_from_gdrive_confirmation
    from gdown.exceptions import FileURLRetrievalError

    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page))).lower()
    if "quota exceeded" in text or "too many users" in text:
        raise ModelError(
            "too many people have downloaded it lately, and Google Drive gives it to nobody for up to a day",
            where=source,
            fix="Make a copy of it in your own Drive and give the copy's path there, or try again tomorrow.",
        )
    try:
        url = str(get_url_from_gdrive_confirmation(page))
    except FileURLRetrievalError:
        url = ""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ModelError(
            "Google Drive shows a page and no file: it is not shared, or gone", where=source, fix=DRIVE_GATE
        )
    return url
