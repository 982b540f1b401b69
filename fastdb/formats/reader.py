"""Reader of model files of any format.

Tensors are listed without torch and mapped into memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO

from fastdb.errors import ModelError
from fastdb.formats.safetensors_file import read_header
from fastdb.formats.tensor_info import SIZES, Fault, Scalar, TensorInfo
from fastdb.formats.torch_ckpt import read_ckpt
from fastdb.storage.atomic_write import explained

if TYPE_CHECKING:
    import torch

    from fastdb.formats.tensor_bits import Numbers

AGAIN = "Download it again."
OTHER_SOURCE = "Download it again, or get the model from another source."
UNPACK = "Extract it first."
OTHER_FORMAT = "Use a .safetensors or .ckpt file of this model."
MODEL_FILE = "Give a .safetensors or .ckpt file, or a diffusers folder."
OTHER_KINDS = (
    (b"PK\x05\x06", "the file is an empty zip", AGAIN),
    (b"version https://git-lfs", "the file is a Git LFS pointer", "Download the file that the pointer refers to."),
    (b"\x1f\x8b", "the file is compressed with gzip", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "the file is a 7-Zip archive", UNPACK),
    (b"Rar!", "the file is a RAR archive", UNPACK),
    (b"GGUF", "the file is a GGUF file with quantised weights", OTHER_FORMAT),
    (b"\x89HDF", "the file is an HDF5 file of Keras", OTHER_FORMAT),
    (b"\x89PNG", "the file is a PNG picture, not a model", MODEL_FILE),
    (b"\xff\xd8\xff", "the file is a JPEG picture, not a model", MODEL_FILE),
    (b"GIF8", "the file is a GIF picture, not a model", MODEL_FILE),
    (b"II*\x00", "the file is a TIFF picture, not a model", MODEL_FILE),
    (b"MM\x00*", "the file is a TIFF picture, not a model", MODEL_FILE),
    (b"%PDF-", "the file is a PDF document, not a model", MODEL_FILE),
)
"""First bytes, kind and remedy of files that are often mistaken for models."""


@dataclass(frozen=True)
class TensorFile:
    """A validated model file with its tensors and plain values."""

    path: Path
    kind: str
    """`safetensors`, or the format of torch.save."""
    tensors: Mapping[str, TensorInfo]
    """By name, in the file's order; names in `state_dict` have no such prefix."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Metadata of a safetensors file."""
    values: Mapping[str, Scalar] = field(default_factory=dict)
    """Numbers and strings next to the tensors of a .ckpt, such as `global_step`."""
    neutralised: tuple[str, ...] = ()
    """Names in a pickle that are neither data nor tensors; they were not imported or called."""
    length: int = 0
    """Length of the file in bytes."""
    _map: list[mmap.mmap] = field(default_factory=list, repr=False, compare=False)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor whose changes do not reach the file.

        It is mapped from the file if its data is aligned, else copied.

        Raises:
            ModelError: the tensor does not exist, or the file has changed since it was opened.
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
        """Return a tensor without torch.

        It is mapped from the file if its data is contiguous, else copied.

        Raises:
            ModelError, StorageError: see `read`.
        """
        import numpy as np

        from fastdb.formats.tensor_bits import BITS_TYPES, Numbers

        info = self._info(name)
        width = SIZES[info.dtype]
        if not info.elements:
            return Numbers(info.dtype, info.shape, np.empty(0, BITS_TYPES[width]))
        flat = np.frombuffer(self._mapped(), BITS_TYPES[width], info.span, info.start)
        stride = [width * step for step in info.stride]
        return Numbers(info.dtype, info.shape, np.lib.stride_tricks.as_strided(flat, info.shape, stride).reshape(-1))

    def forget(self) -> None:
        """Free the memory of pages that were read.

        Existing tensors read them from the file again.
        """
        if self._map and hasattr(mmap, "MADV_DONTNEED"):
            self._map[0].madvise(mmap.MADV_DONTNEED)

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            what = f"the file contains no tensor {name!r}"
            raise ModelError(what, where=self.path, fix="List its tensors with fastdb inspect.")
        return info

    def _mapped(self) -> mmap.mmap:
        if not self._map:
            with explained(self.path), _open(self.path) as file:
                if file.seek(0, 2) != self.length:
                    raise ModelError("the file has changed", where=self.path, fix="Run the same command again.")
                self._map.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        return self._map[0]


def open_tensors(path: Path) -> TensorFile:
    """Parse a model file without torch and without running its code.

    The file is a .safetensors or .ckpt, also .pt, .pth or .bin.

    Raises:
        ModelError: the file is of another kind, truncated, damaged or hostile; the message names the reason.
        StorageError: the disk fails, or permission is denied.
    """
    with explained(path), _open(path) as file:
        length = file.seek(0, 2)
        file.seek(0)
        head = file.read(1024)
        _check_head(path, head)
        try:
            return _parsed(path, head, file, length)
        except Fault as fault:
            raise ModelError(f"the model file is invalid: {fault}", where=path, fix=OTHER_SOURCE) from fault


def _open(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        ModelError: the path is missing or not a regular file.
    """
    if path.is_dir():
        raise ModelError("the path is a folder, not a model file", where=path, fix="Use a file in this folder.")
    if not path.exists():
        raise ModelError("there is no such file", where=path, fix="Check the path.")
    if not path.is_file():
        raise ModelError("the path is not a regular file", where=path, fix="Use a file on a disk.")
    return path.open("rb")


def _check_head(path: Path, head: bytes) -> None:
    """Reject kinds of files that are known by their first bytes."""
    if not head:
        raise ModelError("the file is empty", where=path, fix=AGAIN)
    for start, what, fix in OTHER_KINDS:
        if head.startswith(start):
            raise ModelError(what, where=path, fix=fix)
    container = {b"WEBP": "WebP picture", b"ftyp": "picture or video (HEIC, AVIF or MP4)"}
    if kind := container.get(head[8:12] if head.startswith(b"RIFF") else head[4:8]):
        raise ModelError(f"the file is a {kind}, not a model", where=path, fix=MODEL_FILE)
    if head[257:262] == b"ustar" and head[8:9] != b"{":
        raise ModelError(
            "the file is a tar archive, and the tar format of torch.save (2016) is not supported",
            where=path,
            fix="Extract it, or save the model again with a current version of PyTorch.",
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<body", b"<script")):
        raise ModelError(
            "the file is a web page, such as a login, confirmation or error page, not a model",
            where=path,
            fix="Open the link in a browser and follow the page.",
        )
    if text.startswith(b"{") and head[8:9] != b"{":
        raise ModelError("the file is JSON text, often a server's error response, not a model", where=path, fix=AGAIN)


def _parsed(path: Path, head: bytes, file: BinaryIO, length: int) -> TensorFile:
    if head.startswith(b"PK\x03\x04") or (head.startswith(b"\x80") and head[8:9] != b"{"):
        contents = read_ckpt(file, length)
        return TensorFile(
            path=path,
            kind=contents.kind,
            tensors=MappingProxyType(contents.tensors),
            values=MappingProxyType(contents.values),
            neutralised=contents.neutralised,
            length=length,
        )
    if head[8:9] != b"{" and path.suffix != ".safetensors":
        raise Fault(f"unknown file format, which begins with {head[:16]!r}")
    tensors, metadata = read_header(file, length)
    return TensorFile(
        path=path,
        kind="safetensors",
        tensors=MappingProxyType(tensors),
        metadata=MappingProxyType(metadata),
        length=length,
    )
