"""Bits of tensors are read and converted between types exactly as torch does."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
import numpy as np

from fastdb.checkpoints.byte_planes import EXPONENTS
from fastdb.formats.reader import open_tensors
from fastdb.formats.tensor_bits import Numbers

EVERY = np.arange(1 << 16, dtype=np.uint16)
"""All 16-bit patterns."""


def drawn(dtype: str) -> torch.Tensor:
    """Return all numbers of a 16-bit type; of a wider type some of every exponent, and those half way between two
    numbers of a narrower type, with their neighbours.
    """
    if dtype in ("float16", "bfloat16"):
        bits = EVERY.copy()
    else:
        shift, mask = EXPONENTS[dtype]
        kind, rng = np.uint32 if dtype == "float32" else np.uint64, np.random.default_rng(0)
        exponent = np.arange(2 * mask + 2, dtype=kind)[:, None] << kind(shift)
        kept = [kind(1) << kind(shift - width) for width in (7, 8, 9, 10, 11, 12, 23, 24) if width <= shift]
        ends = [kind(0), kind(1), kind((1 << shift) - 1)]
        near = [kind((place + step) & ((1 << shift) - 1)) for place in map(int, kept) for step in (-1, 0, 1)]
        odd = [kind((3 * place + step) & ((1 << shift) - 1)) for place in map(int, kept) for step in (-1, 0, 1)]
        mantissas = np.concatenate([ends, near, odd, rng.integers(0, 1 << shift, 40, kind)]).astype(kind)
        bits = (exponent | mantissas).reshape(-1)
    tensor = torch.from_numpy(bits.view(np.uint8)).view(getattr(torch, dtype))
    return tensor[~tensor.isnan()]


@pytest.mark.parametrize("to", EXPONENTS)
@pytest.mark.parametrize("of", EXPONENTS)
def test_numbers_are_converted_as_in_torch(of: str, to: str) -> None:
    tensor = drawn(of)
    assert len(tensor) > 50_000 or of == "float32"
    assert tensor.isinf().any()
    made = Numbers.of(tensor).to(to)
    expected = Numbers.of(tensor.to(getattr(torch, to))).bits
    assert made is not None
    assert made.dtype == expected.dtype
    assert (made == expected).all()


@pytest.mark.parametrize("of", EXPONENTS)
def test_nan_is_not_converted(of: str) -> None:
    tensor = torch.tensor([1.0, float("nan")]).to(getattr(torch, of))
    numbers = Numbers.of(tensor)
    for to in EXPONENTS:
        made = numbers.to(to)
        assert (made is None) == (of != to)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (5,), (3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8", "bool", "complex128", "float8_e5m2"])
def test_a_tensor_survives_the_round_trip_through_numbers(dtype: str, shape: tuple[int, ...]) -> None:
    kind = getattr(torch, dtype)
    tensor = (torch.arange(torch.Size(shape).numel()) * 0.75).reshape(shape).to(kind)
    numbers = Numbers.of(tensor.requires_grad_() if dtype == "float32" else tensor)
    back = numbers.tensor()
    assert (back.dtype, back.shape, numbers.bits.nbytes) == (kind, tensor.shape, tensor.nbytes)
    assert Numbers.of(back).bits.tobytes() == numbers.bits.tobytes()
    assert torch.equal(back.to(torch.complex128), tensor.detach().to(torch.complex128))


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_file_returns_the_numbers_of_its_tensors(tmp_path: Path, suffix: str) -> None:
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {"odd": torch.arange(3, dtype=torch.uint8), "whole": whole, "none": torch.zeros(0, 3)}
    tensors |= {"one": torch.tensor(5, dtype=torch.int64), "half": whole.half(), "other": whole.bfloat16() / 3}
    if suffix == "ckpt":
        tensors |= {"turned": whole.t(), "part": whole[1:3, 2:5]}
        torch.save(tensors, tmp_path / "a.ckpt")
    else:
        from safetensors.torch import save_file

        save_file(tensors, tmp_path / "a.safetensors")
    file = open_tensors(tmp_path / f"a.{suffix}")
    assert set(file.tensors) == set(tensors)
    for name, tensor in tensors.items():
        mine, expected = file.numbers(name), Numbers.of(tensor)
        assert (mine.dtype, mine.shape) == (expected.dtype, expected.shape)
        assert mine.bits.dtype == expected.bits.dtype
        assert mine.bits.tobytes() == expected.bits.tobytes()
