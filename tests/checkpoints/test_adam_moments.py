"""Moments in 8 bit: every bit comes back, whatever stands beside them, in less room; nothing is believed unchecked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdb.checkpoints import adam_moments as moments
from fastdb.checkpoints.byte_planes import CHUNK
from fastdb.checkpoints.compressed_reader import Packed
from fastdb.errors import CheckpointError
from fastdb.formats.tensor_bits import Numbers
from fastdb.training.optimizers import state_tensors
from tests.checkpoints.test_compressed_file import rebuilt, same, sets, write_packed

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


def back(path: Path, tensors: Tensors) -> dict[str, str]:
    """Pack tensors and read them again, in their order and each by itself; how each was coded."""
    write_packed(path, tensors)
    packed = Packed.open(path)
    assert all(same(tensors[name], tensor) for name, tensor in packed.items())
    assert all(same(tensors[name], Packed.open(path, threads=2).read(name)) for name in reversed(list(tensors)))
    return {name: one.coding for name, one in packed._entries.items()}


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


@pytest.fixture(scope="module")
def real() -> Tensors:
    """The state of real AdamW8bit after some steps of gradients whose rows and columns have sizes of their own."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(512, 768) * 0.03)
    optimizer = bitsandbytes.optim.AdamW8bit([parameter], lr=1e-5)
    sizes = 1e-5 * torch.exp(torch.randn(512, 1) + torch.randn(1, 768))
    for _ in range(4):
        parameter.grad = torch.randn_like(parameter) * sizes
        optimizer.step()
    return state_tensors(optimizer)[0]


def test_real_moments_take_less_room(real: Tensors, tmp_path: Path) -> None:
    tensors = {name: real[name] for name in sorted(real)}
    coded = back(tmp_path / "a.packed", tensors)
    assert sorted(coding for coding in coded.values() if coding != "planes") == ["first moment", "second moment"]
    without = write_packed(tmp_path / "b.packed", iter(tensors.items())).bytes
    numbers = {name: Numbers.of(tensor) for name, tensor in tensors.items()}
    write_packed(tmp_path / "c.packed", iter(tensors.items()), beside=numbers)
    assert (tmp_path / "c.packed").read_bytes() == (tmp_path / "a.packed").read_bytes()
    assert (tmp_path / "a.packed").stat().st_size < 0.85 * without


def test_each_lack_beside_a_moment_leaves_it_as_it_is(tmp_path: Path) -> None:
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
    write_packed(path, drawn((80, 80), 2))
    data = path.read_bytes()
    for place in range(0, len(data), 61):
        changed = bytearray(data)
        changed[place] ^= flip
        path.write_bytes(changed)
        refused(path)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        dict(Packed.open(path).items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "to", "line"),
    [
        ((0, "coding"), "first moment", "coded in an unknown way"),
        ((4, "coding"), "second moment", "coded in an unknown way"),
        ((4, "coding"), [], "coded in an unknown way"),
        ((5, "coding"), "first moment", "coded in an unknown way"),
        ((5, "shape"), [6400], "impossible length"),
        ((5, "shape"), [6400, 1], "impossible length"),
        ((1, "name"), "0/other", "is coded by tensors that are not there"),
        ((5, "name"), "1/state2", "is coded by tensors that are not there"),
        ((4, "coding"), "planes", "0/state1 is not what was written"),
        ((5, "blocks", 0), 4000, "impossible length"),
    ],
)
def test_a_dishonest_index_is_refused(tmp_path: Path, keys: tuple[Any, ...], to: Any, line: str) -> None:
    path = tmp_path / "a.packed"
    write_packed(path, drawn((80, 80), 3))
    assert [name.removeprefix("0/") for name in Packed.open(path).names] == list(NAMES)
    rebuilt(path, sets("tensors", *keys, to=to))
    assert line in refused(path)


def test_logarithms_are_of_the_bits() -> None:
    found = moments.logarithms(np.array([1, -1, 2, 0.5, 0, np.inf, 1.125], np.float32))
    assert list(found - moments.ONE) == [0, 0, 8, -8, -moments.ONE, 1024, 1]
