"""A model file of any kind, opened: its tensors listed without torch, and read one by one from a memory map."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO

from fastdb.errors import ModelError
from fastdb.formats.safetensors_header import read_header
from fastdb.formats.tensor_info import SIZES, Fault, Scalar, TensorInfo
from fastdb.formats.torch_ckpt import Contents, read_stream, read_zip
from fastdb.storage.atomic_write import explained

if TYPE_CHECKING:
    import torch

    from fastdb.formats.tensor_bits import Numbers

AGAIN = "Download it again."
OR_ANOTHER = "Download it again, or take the model from another source."
OTHERS = (
    (b"PK\x05\x06", "is an empty zip", AGAIN),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file it points to", "Download the file it stands for."),
    (b"\x1f\x8b", "is packed with gzip", "Unpack it first."),
    (b"7z\xbc\xaf\x27\x1c", "is packed with 7-Zip", "Unpack it first."),
    (b"Rar!", "is packed with RAR", "Unpack it first."),
    (b"GGUF", "is a GGUF file, whose weights are quantised", "Give a .safetensors or .ckpt of this model."),
    (b"\x89HDF", "is an HDF5 file of Keras", "Give a .safetensors or .ckpt of this model."),
    (b"\x89PNG", "is a picture", "Give a model file."),
    (b"\xff\xd8\xff", "is a picture", "Give a model file."),
)
"""First bytes of what is often met under a model's name: what it is, what to do."""


@dataclass(frozen=True)
class TensorFile:
    """A model file that was found to be whole; its tensors, and what else it says as plain values."""

    path: Path
    kind: str
    """`safetensors`, or which form of torch.save."""
    tensors: Mapping[str, TensorInfo]
    """By name, in the file's order; those below `state_dict` without that word."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of a safetensors file."""
    values: Mapping[str, Scalar] = field(default_factory=dict)
    """Numbers and texts beside the tensors of a .ckpt, such as `global_step`."""
    neutralised: tuple[str, ...] = ()
    """What a pickle named that is neither data nor tensor; none of it was imported, called or filled."""
    length: int = 0
    """Bytes of the file."""
    _map: list[mmap.mmap] = field(default_factory=list, repr=False, compare=False)

    def read(self, name: str) -> torch.Tensor:
        """A tensor, mapped from the file where its bytes lie aligned, else copied; writing to it leaves the file.

        Raises:
            ModelError: there is no such tensor, or the file is not as it was when it was opened.
            StorageError: the disk fails.
        """
        import torch

        info = self._info(name)
        dtype = getattr(torch, info.dtype)
        if not info.elements:
            return torch.empty(info.shape, dtype=dtype)
        view = self._mapped()
        if info.start % SIZES[info.dtype]:
            end = info.start + info.span * SIZES[info.dtype]
            flat = torch.frombuffer(bytearray(view[info.start : end]), dtype=dtype)
        else:
            flat = torch.frombuffer(view, dtype=dtype, count=info.span, offset=info.start)
        return flat.as_strided(info.shape, info.stride)

    def numbers(self, name: str) -> Numbers:
        """The numbers of a tensor, without torch; mapped from the file where they lie there in C order, else copied.

        Raises:
            ModelError, StorageError: see `read`.
        """
        import numpy as np

        from fastdb.formats.tensor_bits import Numbers, bits_type

        info, width = self._info(name), SIZES[self._info(name).dtype]
        if not info.elements:
            return Numbers(info.dtype, info.shape, np.empty(0, bits_type(width)))
        flat = np.frombuffer(self._mapped(), bits_type(width), info.span, info.start)
        stride = [width * step for step in info.stride]
        return Numbers(info.dtype, info.shape, np.lib.stride_tricks.as_strided(flat, info.shape, stride).reshape(-1))

    def forget(self) -> None:
        """Give back the memory of what was read; tensors that are still about read it from the file again."""
        if self._map and hasattr(mmap, "MADV_DONTNEED"):
            self._map[0].madvise(mmap.MADV_DONTNEED)

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise ModelError(f"holds no tensor {name!r}", where=self.path, fix="See what it holds with fastdb inspect.")
        return info

    def _mapped(self) -> mmap.mmap:
        if not self._map:
            with explained(self.path), _stream(self.path) as file:
                if file.seek(0, 2) != self.length:
                    raise ModelError(
                        "was changed while it was read", where=self.path, fix="Run the same command again."
                    )
                self._map.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        return self._map[0]


def open_tensors(path: Path) -> TensorFile:
    """Describe a .safetensors or .ckpt file (also .pt, .pth, .bin); neither torch nor any code of the file runs.

    Raises:
        ModelError: it is no such file, cut short, damaged, or not honest; the message says which.
        StorageError: the disk fails, or reading is forbidden.
    """
    with explained(path), _stream(path) as file:
        length = file.seek(0, 2)
        file.seek(0)
        head = file.read(1024)
        file.seek(0)
        _check_head(path, head)
        try:
            return _described(path, head, file, length)
        except Fault as fault:
            raise ModelError(f"cannot be used: {fault}", where=path, fix=OR_ANOTHER) from fault


def _stream(path: Path) -> BinaryIO:
    """The file, open.

    Raises:
        ModelError: there is no such file, or it is none.
    """
    if path.is_dir():
        raise ModelError("is a folder, not a model file", where=path, fix="Name a file in it.")
    if not path.exists():
        raise ModelError("there is no such file", where=path, fix="Check the path.")
    if not path.is_file():
        raise ModelError("is no ordinary file", where=path, fix="Name a file on a disk.")
    return path.open("rb")


def _check_head(path: Path, head: bytes) -> None:
    """Refuse by its first bytes what is known to be something else."""
    if not head:
        raise ModelError("is empty", where=path, fix=AGAIN)
    for begin, what, fix in OTHERS:
        if head.startswith(begin):
            raise ModelError(what, where=path, fix=fix)
    if head[257:262] == b"ustar" and head[8:9] != b"{":
        raise ModelError(
            "is a tar archive; the tar format of torch.save (2016) is not supported",
            where=path,
            fix="Extract it, or save the model again with a current version of PyTorch.",
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<body", b"<script")):
        raise ModelError(
            "is a web page, not a model: the site answered with a page to log in, to confirm, or with an error",
            where=path,
            fix="Open the link in a browser to see what it asks for.",
        )
    if text.startswith(b"{") and head[8:9] != b"{":
        raise ModelError("is a JSON text, not a model: often the answer of a site that refused", where=path, fix=AGAIN)


def _described(path: Path, head: bytes, file: BinaryIO, length: int) -> TensorFile:
    readers: tuple[tuple[bool, Callable[[BinaryIO, int], Contents]], ...] = (
        (head.startswith(b"PK\x03\x04"), read_zip),
        (head.startswith(b"\x80") and head[8:9] != b"{", read_stream),
    )
    for fits, reader in readers:
        if fits:
            found = reader(file, length)
            return TensorFile(
                path=path,
                kind=found.kind,
                tensors=MappingProxyType(found.tensors),
                values=MappingProxyType(found.values),
                neutralised=found.neutralised,
                length=length,
            )
    if head[8:9] != b"{" and path.suffix != ".safetensors":
        raise Fault(f"it is no model file that is known here: it begins with {head[:16]!r}")
    tensors, metadata = read_header(file, length)
    return TensorFile(
        path=path,
        kind="safetensors",
        tensors=MappingProxyType(tensors),
        metadata=MappingProxyType(metadata),
        length=length,
    )
