"""Extraction of untrusted zips of sessions, checked before and while they are extracted.

`zipfile` alone reads a directory of any size, accepts duplicate names, trusts sizes, and raises NotImplementedError for
unsupported archives.
"""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastdb.errors import SessionError, StorageError
from fastdb.formats.tensor_info import Fault
from fastdb.formats.zip_directory import find_directory
from fastdb.storage.atomic_write import explained
from fastdb.storage.safe_names import MOST_FILES, double, inside_a_file, is_system_file, name_fault, shown

LARGEST_DIRECTORY = 8 << 20
MOST_BYTES = 64 << 30
"""Largest extracted size, more than checkpoints of SDXL."""
MOST_RATIO, RATIO_FROM = 200, 1 << 20
"""Largest compression ratio of members from a size on; text compresses to a tenth, zeros to a thousandth."""

BLOCK = 1 << 20
PACKED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
ENCRYPTED = 0x1 | 0x40 | 0x2000
UTF8 = 0x800

ANOTHER = "Get a new copy of the archive, or extract it yourself and adopt the folder."

_LOCAL = struct.Struct("<4s5H3L2H")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Member:
    """File in an archive, with a checked name."""

    name: str
    info: zipfile.ZipInfo


class Archive:
    """Open zip whose directory was checked."""

    def __init__(self, path: Path, file: zipfile.ZipFile, members: Sequence[Member]) -> None:
        self.path, self.members, self._file = path, members, file

    def unpack(self, members: Sequence[Member], folder: Path, prefix: str, progress: Progress | None = None) -> None:
        """Extract members into `folder`, without `prefix` in their names, and verify sizes and checksums.

        Raises:
            SessionError: a member is damaged or contradicts the directory.
            StorageError: the disk is full or cannot be written.
        """
        total, done = sum(member.info.file_size for member in members), 0
        self._check_room(folder, total)
        for member in members:
            target = folder / member.name.removeprefix(prefix)
            with explained(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as out:
                    for block in self.blocks(member):
                        out.write(block)
                        done += len(block)
                        if progress is not None:
                            progress(done, total)

    def blocks(self, member: Member) -> Iterator[bytes]:
        """Yield the bytes of a member, never more than its directory entry states.

        Raises:
            SessionError: it is damaged or of another size.
        """
        left = member.info.file_size
        try:
            with self._file.open(member.info) as stream:
                while block := stream.read(min(BLOCK, left + 1)):
                    left -= len(block)
                    if left < 0:
                        raise _refused(self.path, member.name, "is larger than its directory entry")
                    yield block
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            raise _refused(self.path, member.name, "is damaged: invalid checksum or compressed data") from error
        if left:
            raise _refused(self.path, member.name, "is smaller than its directory entry")

    def _check_room(self, folder: Path, total: int) -> None:
        with explained(folder):
            free = shutil.disk_usage(folder).free
        if total > free:
            raise StorageError(
                f"needs {total / 1e9:.1f} GB extracted, and {free / 1e9:.1f} GB are free on {folder.parent}",
                subject=self.path,
                fix="Free some space, or choose another disk with --root.",
            )


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open a zip and check its directory.

    Raises:
        SessionError: it is damaged, or unlike any archive of a session.
        StorageError: it cannot be read.
    """
    with ExitStack() as open_files:
        try:
            with explained(path):
                stream = open_files.enter_context(open(path, "rb"))
                directory = find_directory(stream, stream.seek(0, 2))
                if directory.count > MOST_FILES or directory.size > LARGEST_DIRECTORY:
                    raise Fault(f"it has {directory.count} members; a session has at most {MOST_FILES}")
                file = open_files.enter_context(zipfile.ZipFile(stream))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SessionError("there is no such file", where=path, fix="Check the spelling of the path.") from error
        except Fault as error:
            raise _damaged(path, str(error)) from error
        except (zipfile.BadZipFile, UnicodeDecodeError, struct.error, NotImplementedError) as error:
            raise _damaged(path, "its directory cannot be read") from error
        infos = file.infolist()
        if len(infos) != directory.count:
            raise _damaged(path, f"its directory lists {len(infos)} members instead of {directory.count}")
        yield Archive(path, file, _members(path, infos, directory.start))


def _members(path: Path, infos: Sequence[zipfile.ZipInfo], end: int) -> list[Member]:
    """Return the files of an archive.

    Raises:
        SessionError: a member has an unsafe name, type or size.
    """
    members, names = [], []
    for info in infos:
        name = _name(info)
        if clause := name_fault(name.removesuffix("/")) or _fault(info, name):
            raise _refused(path, name, clause)
        names.append(name.removesuffix("/"))
        if not name.endswith("/"):
            members.append(Member(name, info))
    if twice := double(names):
        raise _refused(path, twice, "exists twice if upper and lower case are equal")
    if within := inside_a_file((member.name for member in members), names):
        raise _refused(path, within, "has a file as its parent folder")
    if (total := sum(info.file_size for info in infos)) > MOST_BYTES:
        raise _damaged(path, f"it would extract to {total / 1e9:.0f} GB, more than any session")
    reached, before = 0, ""
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < reached:
            raise _refused(path, _name(info), f"overlaps {shown(before)}")
        reached, before = info.header_offset + _LOCAL.size + len(info.orig_filename) + info.compress_size, _name(info)
    if reached > end:
        raise _refused(path, before, "extends past the end of the archive")
    return [member for member in members if not is_system_file(member.name)]


def _fault(info: zipfile.ZipInfo, name: str) -> str:
    """Return why a member's type or size is refused, as a clause; empty if it is accepted."""
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link" if stat.S_ISLNK(mode) else "is not a regular file"
    if info.flag_bits & ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in PACKED:
        return "uses an unsupported compression method"
    if name.endswith("/") or stat.S_ISDIR(mode):
        return "is a folder with data" if info.file_size or not name.endswith("/") else ""
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        return "has contradictory sizes"
    if info.file_size >= RATIO_FROM and info.file_size > MOST_RATIO * info.compress_size:
        return f"would extract to {info.file_size / 1e6:.0f} MB from {info.compress_size / 1e6:.1f} MB, like a zip bomb"
    return ""


def _name(info: zipfile.ZipInfo) -> str:
    """Return a member's name; macOS writes UTF-8 without the flag for it."""
    name = info.orig_filename
    if not info.flag_bits & UTF8:
        try:
            return name.encode("cp437").decode("utf-8")
        except UnicodeError:
            return name
    return name


def _refused(path: Path, name: str, clause: str) -> SessionError:
    return SessionError(f"its member {shown(name)} {clause}", where=path, fix=ANOTHER)


def _damaged(path: Path, what: str) -> SessionError:
    return SessionError(f"cannot be used as an archive: {what}", subject=path, fix=ANOTHER)
