"""Download of shared Google Drive folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastdb.downloads.civitai_and_drive import DRIVE_GATE, remote_of
from fastdb.downloads.download import download
from fastdb.downloads.source import DriveFile
from fastdb.errors import SessionError
from fastdb.reporting import Progress
from fastdb.storage.atomic_write import make_folder
from fastdb.storage.safe_names import MOST_FILES, double, inside_a_file, is_system_file, name_fault, shown

FIX = "Download the folder as a zip from Drive's page and adopt the zip, or mount Drive and give the folder's path."


def folder_number(link: str) -> str:
    """Return the ID of the Drive folder that a link refers to; empty for other links."""
    try:
        parts = urlsplit(link.strip())
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or (parts.hostname or "").lower() != "drive.google.com":
        return ""
    match = re.search(r"/folders/([\w-]{10,})/?$", parts.path, re.ASCII)
    number = match[1] if match else parse_qs(parts.query).get("id", [""])[0]
    inside = match or parts.path.rstrip("/").endswith(("/folderview", "/open"))
    return number if inside and re.fullmatch(r"[\w-]{10,}", number, re.ASCII) else ""


def fetch_folder(number: str, target: Path, progress: Progress) -> str:
    """Download a shared folder into `target`, and return its name on Drive.

    Args:
        progress: called with the numbers of downloaded and of all files.

    Raises:
        SessionError: it is not shared, cannot be listed, or contains unusable names.
        ModelError: a file cannot be downloaded.
        StorageError: the disk is full or cannot be written.
    """
    where = f"https://drive.google.com/drive/folders/{number}"
    name, listed = _listed(number, where)
    paths = [path for _, path in listed]
    for path in paths:
        if clause := name_fault(path):
            raise SessionError(f"its file {shown(path)} {clause}", where=where, fix=f"Rename it on Drive. {FIX}")
    if twice := double(paths) or inside_a_file(paths, paths):
        raise SessionError(f"its file {shown(twice)} is there twice", where=where, fix=f"Rename one of them. {FIX}")
    if len(listed) > MOST_FILES:
        raise SessionError(f"holds more than {MOST_FILES} files", subject=where, fix=FIX)
    for done, (file, path) in enumerate(listed, start=1):
        if not is_system_file(path):
            make_folder((target / path).parent)
            # Beside the folder, because the name in the list decides.
            came = download(remote_of(DriveFile(file)), target.with_name(f"{target.name}.coming"))
            came.replace(target / path)
        progress(done, len(listed))
    return name


def _listed(number: str, where: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the folder's name, and the ID and relative path of each file.

    Raises:
        SessionError: gdown is not installed, or cannot list it.
    """
    try:
        import gdown
        import requests
    except ImportError as error:
        raise SessionError("gdown, which lists Drive folders, is not installed", where=where, fix=FIX) from error
    try:
        files: Any = gdown.download_folder(id=number, output="/", quiet=True, use_cookies=False, skip_download=True)
    except _kinds(gdown.exceptions) as error:
        reason = " ".join(str(error).split())
        raise SessionError(f"Google Drive does not list it ({reason[:120]})", where=where, fix=DRIVE_GATE) from error
    except (requests.RequestException, OSError) as error:
        raise SessionError(
            f"Google Drive does not answer ({type(error).__name__})", where=where, fix="Check the network."
        ) from error
    if not files:
        raise SessionError("holds no files, or is not shared", subject=where, fix=DRIVE_GATE)
    return Path(files[0].local_path).parts[1], [(file.id, Path(file.path).as_posix()) for file in files]


def _kinds(exceptions: Any) -> tuple[type[Exception], ...]:
    """Return the errors of gdown; version 5.2, as on Colab, lists at most 50 files and has an error for more."""
    names = ("DownloadError", "FileURLRetrievalError", "FolderContentsMaximumLimitError")
    return (*(getattr(exceptions, name) for name in names if hasattr(exceptions, name)), RuntimeError, ValueError)
