"""Addresses of files on Civitai and Google Drive."""

from __future__ import annotations

import html
import re
from urllib.parse import urlsplit

from fastdb.downloads.http_client import Remote
from fastdb.downloads.source import CivitaiFile, DriveFile, WebFile
from fastdb.downloads.tokens import civitai_token
from fastdb.errors import ModelError

CIVITAI = "https://civitai.com"
DRIVE = "https://drive.google.com"

CIVITAI_GATE = (
    "Create an API key in your account settings on civitai.com, set it as CIVITAI_TOKEN (in Colab, a secret of that "
    "name), and try again."
)
DRIVE_GATE = "Ask the owner to share it with anyone who has the link, or mount Drive and give its path."


def remote_of(source: CivitaiFile | DriveFile | WebFile) -> Remote:
    """Return the address, the token and the access remedy of a file.

    Raises:
        ModelError: the token is malformed.
    """
    if isinstance(source, CivitaiFile):
        url = f"{CIVITAI}{str(source).removeprefix('https://civitai.com')}"
        token = civitai_token(CIVITAI, source.secret)
        return Remote(url=url, shown=str(source), token=token, gate=CIVITAI_GATE)
    if isinstance(source, DriveFile):
        return Remote(
            url=f"{DRIVE}/uc?export=download&id={source.number}",
            shown=str(source),
            gate=DRIVE_GATE,
            follow_page=lambda page: _confirmed_address(page, source),
        )
    return Remote(url=source.url, shown=str(source))


def _confirmed_address(page: str, source: DriveFile) -> str:
    """Return the address behind Google's confirmation page for large files.

    Raises:
        ModelError: the download quota is exceeded, or the file is not shared.
    """
    from gdown.download import get_url_from_gdrive_confirmation
    from gdown.exceptions import FileURLRetrievalError

    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page))).lower()
    if "quota exceeded" in text or "too many users" in text:
        raise ModelError(
            "Google Drive's download quota for this file is exceeded, for up to a day",
            where=source,
            fix="Copy the file to your own Drive and give the path of the copy, or try again tomorrow.",
        )
    try:
        url = str(get_url_from_gdrive_confirmation(page))
    except FileURLRetrievalError:
        url = ""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ModelError(
            "Google Drive returned a page instead of the file, which is not shared or no longer exists",
            where=source,
            fix=DRIVE_GATE,
        )
    return url
