"""Reading of sorted 8-bit moments written by earlier versions."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import numpy as np
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdb.checkpoints.adam_moments import FIRST, SECOND, can_sort, lines_length, sort_keys
from fastdb.checkpoints.byte_planes import CHUNK, LEVEL, SPARE
from fastdb.checkpoints.compressed_file import Packed
from fastdb.checkpoints.compressed_index import MAGIC, MOMENTS, PLANES, PackedTensor, index_text
from fastdb.errors import CheckpointError
from fastdb.formats.tensor_bits import Numbers
from fastdb.formats.tensor_info import TensorInfo, contiguous
from tests.checkpoints.test_compressed_file import contents, rebuilt, same, sets

Tensors = dict[str, Any]
NAMES = ("absmax1", "absmax2", "qmap1", "qmap2", "state1", "state2")


def drawn(shape: tuple[int, ...], seed: int) -> Tensors:
    """Tensors as bitsandbytes names and shapes them, all bits drawn: NaN and infinity are among the scales."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    sizes = {"absmax1": -(-count // 256), "absmax2": -(-count // 256), "qmap1": 256, "qmap2": 256}
    tensors = {name: torch.from_numpy(rng.integers(0, 1 << 32, size, np.uint32)) for name, size in sizes.items()}
    found: Tensors = {f"0/{name}": tensor.view(torch.float32) for name, tensor in tensors.items()}
    for name in ("state1", "state2"):
        found[f"0/{name}"] = torch.from_numpy(rng.integers(0, 256, count, np.uint8)).reshape(shape)
    return found


def write_sorted(path: Path, tensors: Tensors) -> None:
    """Write a file as versions until November 2026 did, which sorted the moments."""
    numbers = {name: Numbers.of(tensor) for name, tensor in tensors.items()}
    data, entries = MAGIC, []
    for name, tensor in numbers.items():
        weight, _, last = name.rpartition("/")

        def sibling(other: str, weight: str = weight) -> tuple[str, int]:
            found = numbers.get(f"{weight}/{other}")
            return ("", 0) if found is None else (found.dtype, len(found.bits))

        def values(other: str, weight: str = weight) -> np.ndarray:
            return numbers[f"{weight}/{other}"].values

        start, coding, keys, blocks = len(data), PLANES, None, []
        length = lines_length(tensor.shape)
        if (
            last in MOMENTS
            and tensor.dtype == "uint8"
            and can_sort(last, len(tensor.bits), sibling)
            and (length or last == FIRST)
        ):
            coding, lines = MOMENTS[last], np.empty(0, "<i2")
            if last == SECOND:
                lines = lines_of(tensor.shape, values)
                blocks.append(smaller(lines.tobytes(), zstandard.ZstdCompressor(level=LEVEL)))
            keys = sort_keys(last, tensor.shape, lines, values)
        for at in range(0, len(tensor.bits), CHUNK):
            bits = tensor.bits[at : at + CHUNK]
            compressor = zstandard.ZstdCompressor(level=LEVEL)
            if keys is not None:
                bits = bits[np.argsort(keys(at, at + len(bits)), kind="stable")]
                compressor = zstandard.ZstdCompressor(compression_params=SPARE)
            table = bits.view(np.uint8).reshape(len(bits), -1)
            blocks += [smaller(table[:, plane].tobytes(), compressor) for plane in range(table.shape[1])]
        data += b"".join(blocks)
        info = TensorInfo(tensor.dtype, tensor.shape, contiguous(tensor.shape), start)
        digest = hashlib.sha256(tensor.bits.data).hexdigest()
        entries.append(PackedTensor(name, info, coding, digest, tuple((len(one), zlib.crc32(one)) for one in blocks)))
    path.write_bytes(data + index_text(entries, None, None))


def smaller(data: bytes, compressor: zstandard.ZstdCompressor) -> bytes:
    compressed = compressor.compress(data)
    return compressed if len(compressed) < len(data) else data


def lines_of(shape: tuple[int, ...], values: Callable[[str], np.ndarray]) -> np.ndarray:
    """The mean logarithm of second moments in each row, then the mean of each column relative to all, int16."""

    def logarithms(numbers: np.ndarray) -> np.ndarray:
        return ((numbers.astype("<f4").view("<i4") & 0x7FFFFFFF) >> 20).astype("<i2")

    table, codes = logarithms(np.maximum(values("qmap2"), np.float32(1e-8))), values(SECOND)
    sizes = table[codes] + np.repeat(logarithms(values("absmax2")), 256)[: len(codes)]
    sizes = sizes.reshape(shape[0], -1)
    of_row, of_column = (sizes.sum(axis, dtype=np.int64) / sizes.shape[axis] for axis in (1, 0))
    return np.rint(np.concatenate([of_row, of_column - of_row.mean()])).astype("<i2")


def back(path: Path, tensors: Tensors) -> dict[str, str]:
    """Write tensors and read them again, in their order and each by itself; return the coding of each."""
    write_sorted(path, tensors)
    packed = Packed.open(path)
    assert all(same(tensors[name], tensor) for name, tensor in contents(packed).items())
    for name in reversed(list(tensors)):
        assert same(tensors[name], Packed.open(path, threads=2).numbers(name).tensor())
    return {name: entry.coding for name, entry in packed._entries.items()}


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(80, 80), (64, 70), (1, 5000), (5000, 1), (4097,), (40, 4, 3, 9), ()]),
    seed=st.integers(0, 1 << 30),
)
def test_any_bits_come_back(tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], seed: int) -> None:
    coded = back(tmp_path_factory.getbasetemp() / "any.packed", drawn(shape, seed))
    assert coded["0/state1"] == "first moment"
    assert coded["0/state2"] == ("second moment" if shape in ((80, 80), (64, 70), (40, 4, 3, 9)) else "planes")


def test_more_than_a_chunk_comes_back(tmp_path: Path) -> None:
    shape = (1031, 1021)
    assert CHUNK < 1031 * 1021
    assert back(tmp_path / "a.packed", drawn(shape, 0))["0/state2"] == "second moment"


def test_a_missing_sibling_leaves_a_moment_unsorted(tmp_path: Path) -> None:
    for missing in NAMES[:4]:
        tensors = drawn((80, 80), 1)
        del tensors[f"0/{missing}"]
        coded = back(tmp_path / "a.packed", tensors)
        assert (coded["0/state1"] == "planes") == (missing != "qmap1")
        assert (coded["0/state2"] == "planes") == (missing in ("qmap2", "absmax2"))
    tensors = {**drawn((80, 80), 1), "0/absmax2": torch.zeros(7)}
    assert set(back(tmp_path / "a.packed", tensors).values()) == {"planes"}


@pytest.mark.parametrize("flip", [0xFF, 0x01])
def test_flipped_bytes_are_noticed(tmp_path: Path, flip: int) -> None:
    path = tmp_path / "a.packed"
    write_sorted(path, drawn((80, 80), 2))
    data = path.read_bytes()
    for place in range(0, len(data), 61):
        changed = bytearray(data)
        changed[place] ^= flip
        path.write_bytes(changed)
        refused(path)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        contents(Packed.open(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "to", "line"),
    [
        ((0, "coding"), "first moment", "an unknown coding"),
        ((4, "coding"), "second moment", "an unknown coding"),
        ((4, "coding"), [], "an unknown coding"),
        ((5, "coding"), "first moment", "an unknown coding"),
        ((5, "shape"), [6400], "impossible length"),
        ((5, "shape"), [6400, 1], "impossible length"),
        ((1, "name"), "0/other", "was sorted by tensors that are missing"),
        ((5, "name"), "1/state2", "was sorted by tensors that are missing"),
        ((4, "coding"), "planes", "the checksum of 0/state1 does not match"),
        ((5, "blocks", 0), 4000, "impossible length"),
    ],
)
def test_a_dishonest_index_is_refused(tmp_path: Path, keys: tuple[Any, ...], to: Any, line: str) -> None:
    path = tmp_path / "a.packed"
    write_sorted(path, drawn((80, 80), 3))
    assert [name.removeprefix("0/") for name in Packed.open(path).tensors] == list(NAMES)
    rebuilt(path, sets("tensors", *keys, to=to))
    assert line in refused(path)
