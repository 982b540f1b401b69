"""Snapshots of a stage's state in memory."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastdb.training import saver
from fastdb.training.saver import RESERVE, Snapshot


def contents() -> dict[str, dict[str, Any]]:
    return {
        "unet.safetensors": {"a": torch.randn(3, 5), "b": torch.randn(7).to(torch.float16)},
        "optimizer.safetensors": {"a": torch.arange(9, dtype=torch.uint8), "step": torch.tensor(3.0)},
    }


@pytest.mark.parametrize("ready", [True, False], ids=["preallocated", "not preallocated"])
def test_a_copy_stays_as_it_was_and_its_memory_is_used_again(ready: bool) -> None:
    live, taken = contents(), Snapshot()
    if ready:
        taken.preallocate(live)
        taken.preallocate(live)
    copied = taken.copy(live)
    assert copied is not None
    places = {}
    for file, tensors in live.items():
        assert copied[file].keys() == tensors.keys()
        for name, tensor in tensors.items():
            before = tensor.clone()
            tensor.add_(1)
            assert torch.equal(copied[file][name], before)
            assert copied[file][name].dtype == before.dtype
            places[file, name] = copied[file][name].data_ptr()
    again = taken.copy(live)
    assert again is not None
    for (file, name), place in places.items():
        assert again[file][name].data_ptr() == place
        assert torch.equal(again[file][name], live[file][name])


def test_another_shape_gets_memory_of_its_own() -> None:
    taken, live = Snapshot(), contents()
    taken.preallocate(live)
    live["optimizer.safetensors"]["a"] = torch.arange(20, dtype=torch.uint8)
    live["optimizer.safetensors"]["new"] = torch.ones(2)
    copied = taken.copy(live)
    assert copied is not None
    for name, tensor in live["optimizer.safetensors"].items():
        assert torch.equal(copied["optimizer.safetensors"][name], tensor)


def test_where_memory_is_short_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "memory_to_be_had", lambda: RESERVE + 10)
    taken = Snapshot()
    taken.preallocate(contents())
    assert taken.copy(contents()) is None
    monkeypatch.setattr(saver, "memory_to_be_had", lambda: RESERVE + 10_000)
    assert taken.copy(contents()) is not None
