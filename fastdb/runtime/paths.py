"""Folders of sessions and caches."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

DRIVES = (Path("/content/drive/MyDrive"), Path("/content/gdrive/MyDrive"))
"""Mount points of Google Drive in Colab, of Google's notebooks and of the classic notebook."""

VOLUMES = (
    ("KAGGLE_KERNEL_RUN_TYPE", Path("/kaggle/working")),
    ("RUNPOD_POD_ID", Path("/workspace")),
    ("PAPERSPACE_FQDN", Path("/storage")),
    ("PAPERSPACE_CLUSTER_ID", Path("/storage")),
)
"""Folders that outlive the machine, by a variable of the hosts that have them: Kaggle, RunPod and Paperspace."""

FOLDER = "Fast-Dreambooth"
"""Folder of everything that is kept for a user, on Drive or in the home folder."""

SESSION_FILE = "session.yaml"
HOME = "session.json"
"""File in a work folder that names the session it belongs to."""
_LINEAGE = re.compile(r"""^lineage:[ \t]*['"]?([0-9a-f]{32})['"]?[ \t]*(?:#.*)?$""", re.M)
_INHERITED = re.compile(r"""^inherited:[ \t]*\n((?:[ \t]*- ['"]?[0-9a-f]{32}['"]?[ \t]*\n)*)""", re.M)
_HEX = re.compile(r"[0-9a-f]{32}")
_CREATED = re.compile(r"""^created: ['"]?([^'"\n]*)['"]?$""", re.M)
_FINGERPRINT = re.compile(r"""^  fingerprint: ['"]?([^'"\n]*)['"]?$""", re.M)

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "wheels"
WHEELS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "wheels"
"""Locks and small model files, in the installed package or beside it in the source tree."""


def expanded(path: Path | str) -> Path:
    """Return a path with `~` replaced by the home folder, and other names unchanged."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def mounted_drive() -> Path | None:
    """Return the folder `MyDrive` of a mounted Google Drive, or None."""
    return next((drive for drive in DRIVES if drive.is_dir()), None)


def chosen_root() -> str:
    """Return the folder of sessions that `FASTDB_ROOT` names; empty if it names none."""
    return os.environ.get("FASTDB_ROOT") or ""


def sessions_root(root: Path | str | None = None) -> Path:
    """Return the folder of sessions: `root`, else `FASTDB_ROOT`, else Drive, else the host's volume, else home."""
    chosen = root or chosen_root()
    if chosen:
        return expanded(chosen).absolute()
    volumes = [volume for variable, volume in VOLUMES if variable in os.environ]
    home = mounted_drive() or next((volume for volume in volumes if volume.is_dir()), Path.home())
    return home / FOLDER / "Sessions"


def cache_folder() -> Path:
    """Return the cache folder: `FASTDB_CACHE`, else `~/.cache/fastdb`."""
    chosen = os.environ.get("FASTDB_CACHE")
    return expanded(chosen).absolute() if chosen else Path.home() / ".cache" / "fastdb"


def work_folder(session: Path, lineage: str | None = None) -> Path:
    """Return the folder on this machine's own disk for the working files of a session's trainer.

    Growing logs and locks are kept here: Google Drive's mount never uploads an open file, and locks do not work there.
    The folder is named by the session's lineage, so a renamed session keeps it and another session of the same name
    does not get it. It is named by the session's path if the lineage is unknown, if an earlier version made it, or if
    the lineage's work belongs to another folder, of which this one is a copy.

    Args:
        lineage: of the session, if it is known; else it is read from the session's folder.
    """
    path = session.resolve()
    work = cache_folder() / "work"
    by_path = work / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    lineage = lineage_of(path) if lineage is None else lineage
    if not lineage:
        return by_path
    own = work / lineage
    if (home := home_of(own)) is not None:
        return own if home.folder == path or home.is_gone() else by_path
    return by_path if not own.exists() and by_path.exists() and work_lineages(by_path) <= {lineage} else own


@dataclass(frozen=True)
class Home:
    """The session that a work folder belongs to, as recorded by its last run."""

    folder: Path
    mount: Path
    """Mount point of the session's disk."""
    lineage: str
    inode: str = ""
    """Of the folder, `inode_of`; empty if an earlier version recorded none."""

    def is_gone(self) -> bool:
        """Return whether the session is certainly no longer there: its disk is mounted and does not hold it."""
        try:
            if not os.path.ismount(self.mount):
                return False
            os.stat(self.folder / SESSION_FILE)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        lineages = lineages_of(self.folder)
        return bool(lineages) and self.lineage not in lineages


def inode_of(folder: Path) -> str:
    """Return what a folder keeps when it is renamed, its device and inode number; empty if it cannot be read."""
    try:
        status = folder.stat()
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"


def home_of(work: Path) -> Home | None:
    """Return the session that a work folder belongs to; None if none is recorded."""
    try:
        data = json.loads((work / HOME).read_text(encoding="utf-8"))
        return Home(Path(data["folder"]), Path(data["mount"]), str(data["lineage"]), str(data.get("inode", "")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def lineage_of(session: Path) -> str:
    """Return a session's lineage, read quickly; empty if its file cannot be read or has none."""
    return next(iter(lineages_of(session)), "")


def lineages_of(session: Path) -> list[str]:
    """Return a session's lineage and then those that it inherited, read quickly; none if its file cannot be read."""
    try:
        text = (session / SESSION_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    if own := _LINEAGE.search(text):
        inherited = _INHERITED.search(text)
        return [own[1], *(_HEX.findall(inherited[1]) if inherited else ())]
    # Format 1, see `session_yaml.py`.
    made, base = _CREATED.search(text), _FINGERPRINT.search(text)
    return [derived_lineage(made[1], base[1])] if made and base and text.startswith("format: 1\n") else []


def derived_lineage(created: object, fingerprint: object) -> str:
    """Return the lineage of a session of format 1, which records none."""
    return hashlib.sha256(f"{created}\n{fingerprint}".encode("utf-8", "replace")).hexdigest()[:32]


def work_lineages(work: Path, states: str = "*/state.json") -> set[str]:
    """Return the lineages that the checkpoints in a work folder name.

    Args:
        states: pattern of their files below `checkpoints`.
    """
    lineages = set()
    for state in sorted((work / "checkpoints").glob(states)):
        try:
            lineages.add(str(json.loads(state.read_text(encoding="utf-8"))["lineage"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return lineages
