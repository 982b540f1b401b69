"""Compressed files restore every bit, and reject damaged or hostile data."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdb.checkpoints import byte_planes as coding
from fastdb.checkpoints import compressed_file
from fastdb.checkpoints.compressed_file import Base, Packed
from fastdb.checkpoints.compressed_index import MAGIC, TAIL
from fastdb.errors import CheckpointError, FastDBError, StorageError
from fastdb.formats.hashing_writer import Written, read_back
from fastdb.formats.safetensors_file import save_tensors
from fastdb.formats.tensor_bits import Numbers
from fastdb.storage.manifest import sha256

Tensors = dict[str, Any]

FLOATS = {torch.float16: 16, torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}
INTEGERS = {torch.uint8: 8, torch.int16: 16, torch.int32: 32, torch.int64: 64}
SIGNED = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}

SPECIAL = {
    torch.float32: [0x00000000, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 1, 0x80000001],
    torch.float16: [0x0000, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF, 0x0001, 0x8001],
    torch.bfloat16: [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF, 0x0001, 0x8001],
}
"""Bits of zeros, infinities, quiet, signalling and full NaN, and the smallest subnormals."""


def of_bits(values: list[int], dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """A tensor whose bits are these."""
    data = b"".join(value.to_bytes(dtype.itemsize, "little") for value in values)
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat if shape is None else flat.reshape(shape)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors are of one type and shape and have the same bits."""
    alike = left.dtype == right.dtype and left.shape == right.shape
    return alike and Numbers.of(left).bits.tobytes() == Numbers.of(right).bits.tobytes()


def base_of(tensors: Tensors, digest: str = "ab" * 32) -> Base:
    return Base(digest, {name: (lambda tensor=tensor: Numbers.of(tensor)) for name, tensor in tensors.items()})


def write_packed(path: Path, tensors: Tensors | Iterable[tuple[str, torch.Tensor]], **more: Any) -> Written:
    """Write a packed file of torch's tensors."""
    pairs = tensors.items() if isinstance(tensors, dict) else tensors
    return compressed_file.write_packed(path, ((name, Numbers.of(tensor)) for name, tensor in pairs), **more)


def contents(packed: Packed) -> Tensors:
    """All tensors of a compressed file, in its order."""
    return {name: packed.numbers(name).tensor() for name in packed.tensors}


def written(path: Path, tensors: Tensors, base: Base | None = None) -> bytes:
    """The bytes of a packed file of these tensors, which it is tried to read again."""
    write_packed(path, tensors, base=base)
    back = Packed.open(path, base)
    assert list(back.tensors) == list(tensors)
    assert all(same(tensors[name], tensor) for name, tensor in contents(back).items())
    return path.read_bytes()


@st.composite
def tensors(draw: st.DrawFn, dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """Any bits of a type, in any small shape: empty, without dimensions, or one that is given."""
    if shape is None:
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    count = torch.Size(shape).numel()
    bits = st.integers(0, (1 << 8 * dtype.itemsize) - 1)
    if dtype in SPECIAL:
        bits = st.sampled_from(SPECIAL[dtype]) | bits
    return of_bits(draw(st.lists(bits, min_size=count, max_size=count)), dtype, shape)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool, torch.complex128], ids=str)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_tensor_comes_back_bit_for_bit(dtype: torch.dtype, data: st.DataObject, folder: Path) -> None:
    tensor = data.draw(tensors(dtype))
    written(folder / "a.packed", {"one": tensor, "two": tensor.clone()})


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("from_dtype", FLOATS, ids=str)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_difference_comes_back_bit_for_bit(
    dtype: torch.dtype, from_dtype: torch.dtype, data: st.DataObject, folder: Path
) -> None:
    tensor = data.draw(tensors(dtype))
    base = base_of({"one": data.draw(tensors(from_dtype, tuple(tensor.shape)))})
    written(folder / "a.packed", {"one": tensor}, base)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(list(FLOATS)))
def test_steps_are_small_across_zero_and_undo_themselves(data: st.DataObject, dtype: torch.dtype) -> None:
    shape = (data.draw(st.integers(1, 20)),)
    bits, base = (Numbers.of(data.draw(tensors(dtype, shape))).bits for _ in range(2))
    name = str(dtype).removeprefix("torch.")
    assert coding.decode(coding.encode(bits, base, name), len(bits), base, name).tobytes() == bits.tobytes()
    rising = Numbers.of(of_bits([2 + (1 << 31), 1 + (1 << 31), 1 << 31, 0, 1, 2], torch.float32)).bits
    # Without the base the planes decode to the steps; all exponents here are 0, so their order is unchanged.
    assert coding.decode(coding.encode(rising[1:], rising[:-1], "float32"), 5).tolist() == [2] * 5
    assert coding.decode(coding.encode(rising[:-1], rising[1:], "float32"), 5).tolist() == [1] * 5


def test_large_tensors_come_back_and_more_threads_write_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    count = 2 * coding.CHUNK + 5
    large = torch.randn(count)
    known = large.half()
    content = {"weight": known + 1e-5 * torch.randn(count), "moment": (large * 20).to(torch.uint8), "raw": large}
    base = base_of({"weight": known})
    alone = written(tmp_path / "a.packed", content, base)
    write_packed(tmp_path / "b.packed", content, base=base, threads=3)
    assert (tmp_path / "b.packed").read_bytes() == alone
    back = Packed.open(tmp_path / "b.packed", base, threads=3)
    assert all(same(content[name], back.numbers(name).tensor()) for name in content)
    raw = sum(tensor.nbytes for tensor in content.values())
    assert len(alone) < 0.8 * raw


def test_a_small_movement_from_the_base_takes_little_room(tmp_path: Path) -> None:
    """Weights of SD 1.5's size that moved by 1e-5 differ from their fp16 base in some 15 of 32 bits."""
    torch.manual_seed(0)
    known = (torch.randn(300_000) * 0.02).half()
    weight = known + 1e-5 * torch.randn(300_000)
    size = len(written(tmp_path / "a.packed", {"weight": weight}, base_of({"weight": known})))
    assert size * 8 / 300_000 < 17
    unmoved = len(written(tmp_path / "b.packed", {"weight": known.float()}, base_of({"weight": known})))
    assert unmoved < 1_000


def test_only_floats_of_the_same_shape_are_differences(tmp_path: Path) -> None:
    known = torch.arange(6, dtype=torch.float32)
    content = {"other shape": known.reshape(2, 3) + 1, "number": torch.arange(6), "unknown": known, "moved": known + 1}
    base = base_of({"other shape": known, "number": known, "moved": known})
    written(tmp_path / "a.packed", content, base)
    without = Packed.open(tmp_path / "a.packed")
    for name in ("other shape", "number", "unknown"):
        assert same(without.numbers(name).tensor(), content[name])
    with pytest.raises(CheckpointError, match="moved is a difference to a tensor that the base model"):
        without.numbers("moved")


def test_transposed_and_learning_tensors_are_written_as_they_are(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 5).t())
    write_packed(tmp_path / "a.packed", iter([("weight", weight)]))
    assert same(Packed.open(tmp_path / "a.packed").numbers("weight").tensor(), weight.detach())


def test_what_was_meant_is_told(tmp_path: Path) -> None:
    meant = write_packed(tmp_path / "a.packed", {"a": torch.randn(100), "b": torch.zeros(0)})
    assert meant.sha256 == sha256(tmp_path / "a.packed")
    assert meant.bytes == (tmp_path / "a.packed").stat().st_size
    seen: list[str] = []
    read_back(tmp_path / "a.packed", meant, seen.append)
    assert "a" in seen


def test_a_name_comes_once(tmp_path: Path) -> None:
    one = torch.zeros(1)
    with pytest.raises(CheckpointError, match="the tensor a exists twice"):
        write_packed(tmp_path / "a.packed", [("a", one), ("a", one)])


# What goes wrong.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed")


KNOWN = base_of({"weight": torch.arange(20, dtype=torch.float16)})
CONTENT = {
    "weight": torch.arange(20, dtype=torch.float32) * 1.001,
    "moment": torch.zeros(50, dtype=torch.uint8),
    "none": torch.zeros(2, 0),
    "step": torch.tensor(7.0),
}


@pytest.fixture
def small(folder: Path) -> Path:
    written(folder / "small.packed", CONTENT, KNOWN)
    return folder / "small.packed"


def refused(path: Path, base: Base | None = KNOWN) -> str:
    """The line that a file gives when it is opened or its tensors are read."""
    with pytest.raises(FastDBError) as caught:
        contents(Packed.open(path, base))
    assert caught.value.fix
    assert caught.value.where == path
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("flip", [0xFF, 0x01])
def test_each_byte_that_changes_is_noticed(small: Path, flip: int) -> None:
    data = small.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= flip
        small.write_bytes(changed)
        refused(small)


def test_each_length_it_is_cut_to_is_noticed(small: Path) -> None:
    data = small.read_bytes()
    for length in range(len(data)):
        small.write_bytes(data[:length])
        refused(small)
    small.write_bytes(data + b"\0")
    refused(small)


def test_another_base_is_refused(small: Path) -> None:
    other = base_of({"weight": torch.arange(20, dtype=torch.float16)}, "cd" * 32)
    assert "file abababababab, but the base model file here is cdcdcdcdcdcd" in refused(small, other)
    lying = base_of({"weight": torch.arange(1, 21, dtype=torch.float16)})
    assert "the checksum of weight does not match" in refused(small, lying)
    for lacks in (base_of({}), base_of({"weight": torch.zeros(19)}), None):
        assert "a tensor that the base model does not have" in refused(small, lacks)


def test_a_file_of_a_base_is_hashed_and_renamed(tmp_path: Path) -> None:
    save_tensors(tmp_path / "base.safetensors", {"old.weight": torch.ones(4)})
    base = Base.of(tmp_path / "base.safetensors", lambda name: name.removeprefix("old."))
    assert base.sha256 == sha256(tmp_path / "base.safetensors")
    written(tmp_path / "a.packed", {"weight": torch.ones(4) + 1e-6}, base)
    assert Packed.open(tmp_path / "a.packed").base_sha256 == base.sha256


def test_what_is_no_packed_file_is_told(tmp_path: Path) -> None:
    assert "the file does not exist" in refused(tmp_path / "gone.packed")
    save_tensors(tmp_path / "a.packed", {"a": torch.ones(400)})
    assert "not a compressed tensor file" in refused(tmp_path / "a.packed")
    write_packed(tmp_path / "b.packed", {"a": torch.ones(1)})
    packed = Packed.open(tmp_path / "b.packed")
    with pytest.raises(CheckpointError, match="it has no tensor 'b'"):
        packed.numbers("b")


def test_a_file_that_changes_its_length_is_noticed(small: Path) -> None:
    opened_before = Packed.open(small, KNOWN)
    small.write_bytes(small.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        opened_before.numbers("step")


def test_a_failing_disk_is_told(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Packed.open(small, KNOWN)

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(StorageError, match="the disk does not answer"):
        packed.numbers("step")
    monkeypatch.setattr(os, "write", fails)
    with pytest.raises(StorageError, match="the disk does not answer"):
        write_packed(small, {"a": torch.ones(1)})


Index = dict[str, Any]


def rebuilt(path: Path, change: Callable[[Index], Any], blocks: bytes | None = None) -> None:
    """Change a file's index, or its blocks, and give it an end that fits again."""
    data = path.read_bytes()
    size = int.from_bytes(data[-TAIL : -TAIL + 8], "little")
    index = json.loads(data[-TAIL - size : -TAIL])
    changed = change(index)
    text = changed if isinstance(changed, bytes) else json.dumps(index).encode()
    body = data[: -TAIL - size] if blocks is None else MAGIC + blocks
    path.write_bytes(body + text + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + MAGIC)


def sets(*keys: Any, to: Any) -> Callable[[Index], None]:
    """What sets one value deep in an index."""

    def change(index: Index) -> None:
        place: Any = index
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


FIRST = ("tensors", 0)
HOSTILE: dict[str, tuple[Callable[[Index], Any], str]] = {
    "format": (sets("format", to=2), "it has format 2; this version reads format 1"),
    "chunk": (sets("chunk", to=1 << 40), "format"),
    "no base": (sets("base", to=None), "an unknown coding"),
    "a number for base": (sets("base", to=7), "an invalid base"),
    "short base": (sets("base", to="ab"), "an invalid base"),
    "no list": (sets("tensors", to={}), "lists no tensors"),
    "too many": (sets("tensors", to=[0] * 100_001), "lists no tensors"),
    "no entry": (sets(*FIRST, to=3), "an entry with no name"),
    "no name": (sets(*FIRST, "name", to=None), "an entry with no name"),
    "name twice": (
        sets(*FIRST, "name", to="weight") and sets("tensors", 1, "name", to="weight"),
        "the name of another",
    ),
    "type": (sets(*FIRST, "dtype", to="float31"), "the unknown type float31"),
    "list for type": (sets(*FIRST, "dtype", to=[]), "the unknown type"),
    "wider type": (sets(*FIRST, "dtype", to="float64"), "an invalid list of blocks"),
    "shape": (sets(*FIRST, "shape", to=[-20]), "invalid tensor shape"),
    "larger": (sets(*FIRST, "shape", to=[21 + (1 << 20)]), "an invalid list of blocks"),
    "shorter": (sets(*FIRST, "shape", to=[2]), "impossible length"),
    "vast": (sets(*FIRST, "shape", to=[1 << 40]), "more than any model needs"),
    "impossible": (sets(*FIRST, "shape", to=[1 << 61, 1 << 61]), "impossible tensor shape"),
    "coding": (sets(*FIRST, "coding", to="pickle"), "an unknown coding"),
    "difference of bytes": (sets("tensors", 1, "coding", to="difference"), "an unknown coding"),
    "not a difference": (sets(*FIRST, "coding", to="planes"), "the checksum of weight does not match"),
    "no hash": (sets(*FIRST, "sha256", to=None), "weight has no hash"),
    "other hash": (sets(*FIRST, "sha256", to="0" * 64), "the checksum of weight does not match"),
    "no blocks": (sets(*FIRST, "blocks", to=None), "an invalid list of blocks"),
    "odd blocks": (sets(*FIRST, "blocks", to=[1] * 7), "an invalid list of blocks"),
    "text for a length": (sets(*FIRST, "blocks", 0, to="20"), "an invalid list of blocks"),
    "true for a length": (sets(*FIRST, "blocks", 0, to=True), "an invalid list of blocks"),
    "length 0": (sets(*FIRST, "blocks", 0, to=0), "impossible length"),
    "long": (sets(*FIRST, "blocks", 0, to=1 << 40), "impossible length"),
    "shorter block": (sets(*FIRST, "blocks", 0, to=5), "its blocks have"),
    "CRC": (sets(*FIRST, "blocks", 1, to=1), "the checksum of weight does not match"),
    "vast CRC": (sets(*FIRST, "blocks", 1, to=1 << 40), "impossible length"),
    "no JSON": (lambda _: b"{", "not valid JSON"),
    "a list": (lambda _: b"[]", "not a JSON object"),
    "deep": (lambda _: b"[" * 500_000, "JSON"),
    "many": (lambda _: b"[" * 2_100_000, "too many values"),
    "key twice": (lambda _: b'{"format":1,"format":1}', "duplicate name"),
    "nothing": (lambda _: b"", "not valid JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_dishonest_index_is_refused(small: Path, name: str) -> None:
    change, line = HOSTILE[name]
    rebuilt(small, change)
    assert line in refused(small)


def test_an_index_that_claims_the_whole_file_is_refused(small: Path) -> None:
    data = bytearray(small.read_bytes())
    for size in (len(data), len(data) - TAIL - len(MAGIC) + 1, (1 << 64) - 1):
        data[-TAIL : -TAIL + 8] = size.to_bytes(8, "little")
        small.write_bytes(data)
        assert "it is truncated or damaged at its end" in refused(small)


def frames() -> Iterator[tuple[str, bytes]]:
    """Planes that are no honest frame of 100 bytes."""
    pack = zstandard.ZstdCompressor().compress
    yield "bomb", pack(b"\0" * (64 << 20))[:90]
    yield "too long", pack(b"\0" * 101)
    yield "too short", pack(b"\0" * 99)
    yield "two frames", pack(b"\0" * 100) + pack(b"\0" * 100)
    yield "rubbish behind", pack(b"\0" * 100) + b"\0"
    yield "cut", pack(b"\0" * 100)[:-1]
    yield "no frame", b"\x12" * 40
    yield "unknown size", zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * 100)
    lying = bytearray(pack(bytes(range(100))))
    place = lying.index(100)
    lying[place] = 99
    yield "lying", bytes(lying)


@pytest.mark.parametrize(("name", "plane"), list(frames()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_plane_that_is_another_is_refused_and_takes_no_memory(folder: Path, name: str, plane: bytes) -> None:
    import zlib

    path = folder / "a.packed"
    written(path, {"a": torch.zeros(100, dtype=torch.uint8)})
    rebuilt(path, sets(*FIRST, "blocks", to=[len(plane), zlib.crc32(plane)]), plane)
    line = refused(path, None)
    assert "a compressed plane" in line or (len(plane) > 100 and "impossible length" in line)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_an_index_says_it_is_refused_or_right(folder: Path, data: st.DataObject) -> None:
    path = folder / "a.packed"
    write_packed(path, CONTENT, base=KNOWN)
    values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=9)
    keys = ["name", "dtype", "shape", "coding", "sha256", "blocks"]
    top = st.sampled_from([("format",), ("chunk",), ("base",), ("tensors",)])
    deep = st.tuples(st.just("tensors"), st.integers(0, 3), st.sampled_from(keys))
    rebuilt(path, sets(*data.draw(top | deep), to=data.draw(values)))
    try:
        back = contents(Packed.open(path, KNOWN))
    except CheckpointError:
        return
    assert all(same(left, right) for left, right in zip(back.values(), CONTENT.values(), strict=True))


def test_blocks_lie_one_after_the_other(small: Path) -> None:
    infos = list(Packed.open(small, KNOWN).tensors.values())
    assert all(left.start <= right.start for left, right in pairwise(infos))
    assert infos[0].start == len(MAGIC)
