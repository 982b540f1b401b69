"""Arbitrary bytes give a one-line error, or a file with all tensors inside it."""

from __future__ import annotations

import io
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from fastdb.commands.inspection_rows import inspection_rows
from fastdb.errors import ModelError, StorageError
from fastdb.formats.reader import open_tensors
from fastdb.formats.tensor_info import SIZES
from fastdb.formats.unpickler import unpickle
from fastdb.models.inspect import inspect

sys.path.insert(0, str(Path(__file__).parent))
import hostile

# The same examples on every run, so that failures are reproducible.
SETTINGS = settings(max_examples=300, deadline=None, derandomize=True, database=None)

ENTRIES = {"a.weight": hostile.entry(0, 16), "b": hostile.entry(16, 20, (2, 1), "F16")}
GOOD = {
    "zip": hostile.zipped(hostile.state(hostile.tensor(), "a.weight")),
    "stream": hostile.streamed(hostile.state(hostile.tensor(), "a.weight")),
    "safetensors": hostile.safetensors({"__metadata__": {"format": "pt"}, **ENTRIES}, bytes(20)),
}
HEADS = [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), hostile.MAGIC, b"\x80\x02", bytes([20, *[0] * 7]) + b"{"]


def check(data: bytes, path: Path) -> bool:
    """Return whether the file opens; if it does, it must be sound."""
    path.write_bytes(data)
    message = ""
    try:
        file = open_tensors(path)
        rows = inspection_rows(inspect(path))
    except (ModelError, StorageError) as error:
        message = str(error)
    if message:
        assert len(message.splitlines()) == 1
        return False
    assert rows
    for info in file.tensors.values():
        assert 0 <= info.start <= info.start + info.span * SIZES[info.dtype] <= len(data)
        assert info.nbytes <= len(data)
    return True


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "a.ckpt"


@pytest.mark.parametrize("kind", list(GOOD))
def test_the_unchanged_files_are_valid(path: Path, kind: str) -> None:
    assert check(GOOD[kind], path)


@SETTINGS
@given(head=st.sampled_from(HEADS), body=st.binary(max_size=600))
def test_arbitrary_bytes_are_handled(path: Path, head: bytes, body: bytes) -> None:
    check(head + body, path)


@st.composite
def changes(draw: st.DrawFn, good: bytes) -> bytes:
    """A valid file with a few bytes changed, inserted, deleted or repeated, or truncated."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        more = draw(st.binary(min_size=1, max_size=8))
        kind = draw(st.sampled_from(["change", "change", "change", "put in", "take out", "double", "cut"]))
        if kind == "change":
            data[place : place + len(more)] = more
        elif kind == "put in":
            data[place:place] = more
        elif kind == "take out":
            del data[place : place + len(more)]
        elif kind == "double":
            data[place:place] = data[place : place + 40]
        else:
            del data[place:]
    return bytes(data)


@pytest.mark.parametrize("kind", list(GOOD))
def test_most_changes_to_valid_files_are_noticed(path: Path, kind: str) -> None:
    counts = {True: 0, False: 0}

    @SETTINGS
    @given(data=changes(GOOD[kind]))
    def every(data: bytes) -> None:
        counts[check(data, path)] += 1

    every()
    assert counts[False] > 50, "most changes are noticed"


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A well-formed header with invalid values, and data that may match."""
    sizes = st.integers(-2, 6) | st.sampled_from([1 << 31, 1 << 62, 1 << 64, 1.5, True, None, "4"])
    fields = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", 3]),
            "shape": st.lists(sizes, max_size=3),
            "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | st.lists(sizes, max_size=3),
        }
    )
    names = st.text(max_size=3)
    whole = draw(st.dictionaries(names, fields, max_size=3) | st.dictionaries(names, st.none() | fields, max_size=2))
    return hostile.safetensors(whole, bytes(draw(st.integers(0, 40))))


@st.composite
def sound(draw: st.DrawFn) -> bytes:
    """A valid header, with occasionally a byte too much of data."""
    kinds, header, end = {"F32": 4, "BF16": 2, "U8": 1, "I64": 8}, {}, 0
    for name in draw(st.lists(st.text(max_size=4), unique=True, max_size=4)):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        kind = draw(st.sampled_from(sorted(kinds)))
        start, end = end, end + math.prod(shape) * kinds[kind]
        header[name] = hostile.entry(start, end, shape, kind)
    return hostile.safetensors(header, bytes(end + draw(st.sampled_from([0, 0, 0, 1]))))


def test_no_accepted_header_is_rejected_by_the_safetensors_library(path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    passed = []

    @SETTINGS
    @given(data=sound() | headers() | changes(GOOD["safetensors"]))
    def every(data: bytes) -> None:
        if check(data, path):
            passed.append(data)
            assert set(dict(safetensors.deserialize(data))) == set(open_tensors(path).tensors)

    every()
    assert len(passed) >= 50, "enough examples were accepted"


NAMES = ["os.system", "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.Size", "builtins.set"]
NAMES += ["torch.nn.modules.container.ParameterDict", "_codecs.encode", "numpy.dtype", "numpy.core.multiarray.scalar"]
OPERATIONS = [
    *(bytes([code]) for code in b"(012N)]}tdleasub\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94oRQ."),
    *(b"K\x01", b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"G" + bytes(8), b"C\x02ab", b"\x8a\x01\x07", b"I7\n", b"P7\n"),
    *(hostile.text(text) for text in ("a", "os", "system", "latin1", "f8", "_parameters", "storage")),
    *(f"c{name.rpartition('.')[0]}\n{name.rpartition('.')[2]}\n".encode() for name in NAMES),
    *(b"ios\nsystem\n", b"\x82\x01", hostile.storage(), hostile.tensor(), hostile.numbers(4), hostile.numbers(1, 1)),
]


@SETTINGS
@given(parts=st.lists(st.sampled_from(OPERATIONS), max_size=40))
def test_arbitrary_programs_are_handled(path: Path, parts: list[bytes]) -> None:
    check(hostile.zipped(b"".join(parts) + b"."), path)


@SETTINGS
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**100), 2**100)
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary(max_size=40),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
        max_leaves=12,
    ),
    protocol=st.integers(0, 5),
)
def test_plain_data_is_unpickled_unchanged(value: Any, protocol: int) -> None:
    """Protocols 0 to 2 encode bytes and large integers differently."""
    assert unpickle(io.BytesIO(pickle.dumps(value, protocol))).value == value
