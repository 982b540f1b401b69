"""Compression of checkpoints of every type without torch."""

from __future__ import annotations

import hashlib
import json
from math import prod
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("zstandard")

from fastdb.checkpoints.byte_planes import EXPONENTS, decode
from fastdb.checkpoints.checkpoint import Checkpoint
from fastdb.checkpoints.compressed_checkpoint import compress, open_packed
from fastdb.checkpoints.compressed_index import PackedTensor, read_index
from fastdb.formats.reader import open_tensors
from fastdb.storage.manifest import write_manifest

SIGNS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
WIDTHS = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Types and shapes by name."""

MIXED: Tensors = {f"{of}/{to}": (to, (3, 17)) for of in EXPONENTS for to in EXPONENTS}
"""Weights of each floating type, whose bases are of each one."""

ODD: Tensors = {
    "first": ("uint8", (3,)),  # what follows it lies at odd places in the file
    **MIXED,
    **{f"NaN/{to}": (to, (9,)) for to in EXPONENTS},
    "other shape": ("float32", (6, 2)),
    "unknown": ("float32", (11,)),
    "empty": ("float32", (2, 0, 3)),
    "single": ("float32", ()),
    "int of a base": ("int32", (5,)),
    **{f"plain/{dtype}": (dtype, (7, 5)) for dtype in SIGNS},
}
BASE: Tensors = {
    **{name: (name.partition("/")[0], shape) for name, (_, shape) in MIXED.items()},
    **{f"NaN/{to}": ("float16", (9,)) for to in EXPONENTS},
    "other shape": ("float32", (12,)),
    "empty": ("float16", (2, 0, 3)),
    "single": ("bfloat16", ()),
    "int of a base": ("int32", (5,)),
}
STATE: Tensors = {
    **{
        f"{number}/{name}": (dtype, shape)
        for number, whole in enumerate([(80, 81), (4097,), (40, 4, 3, 9)])
        for name, dtype, shape in (
            ("absmax1", "float32", (-(-prod(whole) // 256),)),
            ("absmax2", "float32", (-(-prod(whole) // 256),)),
            ("qmap1", "float32", (256,)),
            ("qmap2", "float32", (256,)),
            ("state1", "uint8", whole),
            ("state2", "uint8", whole),
        )
    },
    "3/exp_avg": ("float32", (8, 9)),
    "3/state2": ("uint8", (5000,)),
    "step": ("int64", ()),
}
"""Moments in 8 bit of weights of several shapes, one with nothing beside it."""


EXPECTED = {
    "unet.packed": """
        43ca8600 planes: first
        be5dc7dc difference: float16/float16
        f2317f5a difference: float16/bfloat16
        916c5405 difference: float16/float32
        428bae0b difference: float16/float64
        3300446d difference: bfloat16/float16
        c3f49ef0 difference: bfloat16/bfloat16
        d6da1b9c difference: bfloat16/float32
        c30f0ddf difference: bfloat16/float64
        5fcd254d difference: float32/float16
        ba04055f difference: float32/bfloat16
        47072ec5 difference: float32/float32
        0a3bf845 difference: float32/float64
        35dfccd8 difference: float64/float16
        7cfe5c29 difference: float64/bfloat16
        227f361f difference: float64/float32
        5a0c0070 difference: float64/float64
        4a2ae662 difference: NaN/float16
        df21ac08 planes: NaN/bfloat16
        6d6ddac8 planes: NaN/float32
        8a570630 planes: NaN/float64
        542c2c8e planes: other shape
        8cd2bb1d planes: unknown
        e3b0c442 difference: empty
        2e17fa40 difference: single
        0f17a08c planes: int of a base
        31194476 planes: plain/float64
        40dfe75d planes: plain/float32
        4ee00de9 planes: plain/float16
        bcc5cea0 planes: plain/bfloat16
        f4a60525 planes: plain/int64
        38afb913 planes: plain/int32
        c143cf78 planes: plain/int16
        086718c4 planes: plain/int8
        4ceecde5 planes: plain/uint8
        12507761 planes: plain/bool
    """,
    "unet_ema.packed": """
        7dd1f3a3 planes: first
        18b9400e difference: float16/float16
        48dbe0f7 difference: float16/bfloat16
        f973ae51 difference: float16/float32
        3feaffff difference: float16/float64
        4adea927 difference: bfloat16/float16
        22f7df86 difference: bfloat16/bfloat16
        86e3daeb difference: bfloat16/float32
        61b83dd3 difference: bfloat16/float64
        1b3a8c25 difference: float32/float16
        061512bf difference: float32/bfloat16
        12fbf85e difference: float32/float32
        2b91572f difference: float32/float64
        54dd515e difference: float64/float16
        7036f7e3 difference: float64/bfloat16
        5de7739f difference: float64/float32
        4a146a31 difference: float64/float64
        cac3f11c difference: NaN/float16
        6a7db977 difference: NaN/bfloat16
        dee196fa difference: NaN/float32
        cbd33002 difference: NaN/float64
        2a883916 difference: other shape
        82fd7e45 difference: unknown
        e3b0c442 difference: empty
        84cde1e0 difference: single
        06065d3c planes: int of a base
        7ebf1ea5 difference: plain/float64
        6137e852 difference: plain/float32
        f9ca281f difference: plain/float16
        c980bf2b difference: plain/bfloat16
        814ba54c planes: plain/int64
        802fd1a8 planes: plain/int32
        5c507c47 planes: plain/int16
        522ccbb1 planes: plain/int8
        fdfe658d planes: plain/uint8
        d833b5e5 planes: plain/bool
    """,
    "optimizer.packed": """
        ee8f4333 planes: 0/absmax1
        fcc1af9d planes: 0/absmax2
        aecc5af8 planes: 0/qmap1
        4fd9698b planes: 0/qmap2
        c1aa22a7 planes: 0/state1
        7df17047 planes: 0/state2
        28f2f31e planes: 1/absmax1
        500d4e0f planes: 1/absmax2
        7cc00073 planes: 1/qmap1
        2296d7d7 planes: 1/qmap2
        1c847f86 planes: 1/state1
        06a5650b planes: 1/state2
        d4cceda4 planes: 2/absmax1
        4ea75c63 planes: 2/absmax2
        a12a354c planes: 2/qmap1
        0004bc50 planes: 2/qmap2
        8c5e4255 planes: 2/state1
        17d502ee planes: 2/state2
        29e01a25 planes: 3/exp_avg
        b4d12f13 planes: 3/state2
        316adbfe planes: step
    """,
}
"""What the first version, which used torch for it, made of `synthetic`; it sorted no moments."""


def write(path: Path, tensors: Tensors, seed: str = "") -> None:
    """A safetensors file as our writer makes it, of drawn bits: infinite and subnormal numbers among them, and NaN only
    where the name says so.
    """
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape) in tensors.items():
        length = prod(shape) * WIDTHS.get(dtype, 1)
        bits = hashlib.shake_256(f"{seed} {name}".encode()).digest(length)
        if dtype in EXPONENTS:
            shift, mask = EXPONENTS[dtype]
            numbers = np.frombuffer(bits, f"<u{WIDTHS[dtype]}").copy()
            numbers[(numbers >> shift) & mask == mask] &= ~np.array((1 << shift) - 1, numbers.dtype)
            if name.startswith("NaN"):
                numbers[4] = ~np.array(0, numbers.dtype)
            bits = numbers.tobytes()
        head[name] = {"dtype": SIGNS[dtype], "shape": list(shape), "data_offsets": [len(data), len(data) + length]}
        data += bits
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def synthetic(folder: Path) -> tuple[Checkpoint, Path]:
    """A checkpoint with tensors of every type, and the folder of its base model."""
    write(folder / "base" / "unet" / "diffusion_pytorch_model.safetensors", BASE, "base")
    raw = folder / "raw"
    write(raw / "unet.safetensors", ODD)
    write(raw / "unet_ema.safetensors", ODD, "average")
    write(raw / "optimizer.safetensors", STATE)
    write_manifest(raw)
    return Checkpoint(raw, "unet", 1), folder / "base"


def told(path: Path) -> list[str]:
    """How each tensor of a packed file is coded, and the beginning of the SHA-256 of its planes before Zstandard, whose
    next version may make them other bytes.
    """
    found = []
    with path.open("rb") as file:
        for name, one in read_index(file, path.stat().st_size).tensors.items():
            file.seek(one.info.start)
            digest = hashlib.sha256()
            for (length, _), count in zip(one.blocks, counts(one), strict=True):
                digest.update(decode([file.read(length)], count).tobytes())
            found.append(f"{digest.hexdigest()[:8]} {one.coding}: {name}")
    return found


def counts(one: PackedTensor) -> list[int]:
    """The bytes of each block of a tensor before Zstandard."""
    return [end - start for start, end, blocks in one.chunks() for _ in blocks]


@pytest.mark.parametrize("threads", [1, 2])
def test_each_type_is_packed_as_ever(tmp_path: Path, threads: int) -> None:
    checkpoint, base = synthetic(tmp_path)
    (tmp_path / "made").mkdir()
    meant = compress(checkpoint, tmp_path / "made", base, threads=threads)
    assert sorted(meant) == sorted(EXPECTED)
    for name, lines in EXPECTED.items():
        assert told(tmp_path / "made" / name) == [line.strip() for line in lines.strip().splitlines()]


def test_all_that_is_packed_comes_back_to_the_byte(tmp_path: Path) -> None:
    checkpoint, base = synthetic(tmp_path)
    (tmp_path / "made").mkdir()
    for packed in compress(checkpoint, tmp_path / "made", base):
        raw = open_tensors(checkpoint.path / packed.replace(".packed", ".safetensors"))
        back = open_packed(tmp_path / "made" / packed, base)
        assert tuple(back.tensors) == tuple(raw.tensors)
        for name in raw.tensors:
            left, right = raw.numbers(name), back.numbers(name)
            assert (left.dtype, left.shape, left.bits.tobytes()) == (right.dtype, right.shape, right.bits.tobytes())
