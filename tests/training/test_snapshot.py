"""Snapshots of a stage's state in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from diffusers import UNet2DConditionModel

from fastdb.models.diffusers_configs import configs
from fastdb.models.family import SD1
from fastdb.sessions.session import Session
from fastdb.training import snapshot
from fastdb.training.saver import Saver
from fastdb.training.snapshot import RESERVE, Snapshot, block_bytes
from tests.training.conftest import result
from tests.training.test_trainer import Life


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
    monkeypatch.setattr(snapshot, "memory_to_be_had", lambda: RESERVE + 10)
    taken = Snapshot()
    taken.preallocate(contents())
    assert taken.copy(contents()) is None
    monkeypatch.setattr(snapshot, "memory_to_be_had", lambda: RESERVE + 10_000)
    assert taken.copy(contents()) is not None


def stable_diffusion() -> dict[str, dict[str, Any]]:
    """The state of Stable Diffusion 1.5's UNet stage, 8-bit moments and average included, without its numbers."""
    with torch.device("meta"):
        weights = UNet2DConditionModel.from_config(configs(SD1)["unet/config.json"]).state_dict()
        optimizer: dict[str, Any] = {}
        for number, weight in enumerate(weights.values()):
            kind = torch.uint8 if weight.numel() >= 4096 else torch.float32
            for name in ("state1", "state2"):
                optimizer[f"{number}/{name}"] = torch.empty(weight.shape, dtype=kind)
            optimizer[f"{number}/absmax1"] = torch.empty(weight.numel() // 256)
            optimizer[f"{number}/step"] = torch.empty(())
    return {"unet.safetensors": weights, "optimizer.safetensors": optimizer, "unet_ema.safetensors": weights}


@pytest.mark.parametrize("make", [contents, stable_diffusion])
def test_the_block_takes_hardly_more_than_the_tensors(make: Callable[[], dict[str, dict[str, Any]]]) -> None:
    live = make()
    tensors = [tensor for tensors in live.values() for tensor in tensors.values()]
    assert sum(tensor.nbytes for tensor in tensors) <= block_bytes(live)
    assert block_bytes(live) <= 1.02 * sum(tensor.nbytes for tensor in tensors) + 64 * 4 * (make is contents)


def test_all_copies_are_views_of_one_block() -> None:
    live, taken = contents(), Snapshot()
    live["optimizer.safetensors"]["none"] = torch.empty(0, 3)
    copied = taken.copy(live)
    assert copied is not None
    views = [view for views in copied.values() for view in views.values()]
    assert {view.untyped_storage().data_ptr() for view in views} == {views[0].untyped_storage().data_ptr()}
    assert views[0].untyped_storage().nbytes() == block_bytes(live)
    taken.release()
    assert taken._block is None


def test_memory_that_cannot_be_pinned_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here CUDA itself is missing; `pin` is asked as if the tensors were on a GPU."""
    monkeypatch.setattr(snapshot, "is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(torch.cuda, "cudart", no_memory)
    live, taken = contents(), Snapshot()
    taken.preallocate(live)
    copied = taken.copy(live)
    assert copied is not None
    assert taken.pin_failed
    assert torch.equal(copied["unet.safetensors"]["a"], live["unet.safetensors"]["a"])


def test_memory_is_pinned_as_one_and_unpinned_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Runtime:
        def cudaHostRegister(self, *arguments: int) -> int:
            calls.append(("pin", *arguments))
            return 0

        def cudaHostUnregister(self, *arguments: int) -> int:
            calls.append(("unpin", *arguments))
            return 0

    monkeypatch.setattr(snapshot, "is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    live, taken = contents(), Snapshot()
    copied = taken.copy(live)
    assert copied is not None
    assert not taken.pin_failed
    place = copied["unet.safetensors"]["a"].untyped_storage().data_ptr()
    assert calls == [("pin", place, block_bytes(live), 0)]
    taken.release()
    assert calls[1:] == [("unpin", place)]


def test_without_memory_for_the_block_there_is_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    live, taken = contents(), Snapshot()
    monkeypatch.setattr(torch, "empty", empty)
    taken.preallocate(live)
    assert taken.copy(live) is None
    monkeypatch.undo()
    assert taken.copy(live) is not None


@pytest.mark.full
@pytest.mark.parametrize("failing", ["pin", "allocate"])
def test_training_goes_on_where_memory_cannot_be_pinned_or_had(
    failing: str, straight: Session, make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    if failing == "pin":
        monkeypatch.setattr(snapshot, "is_on_gpu", lambda tensor: True)
        monkeypatch.setattr(torch.cuda, "cudart", no_memory)
    else:
        monkeypatch.setattr(snapshot, "_Block", no_memory)
    life = Life(make_session())
    assert life.run() == "finished"
    assert result(life.trainer.session) == result(straight)
    notes = [event["kind"] for event in life.said("note")]
    # One for each stage.
    assert notes == ["memory not pinned"] * 2 * (failing == "pin")


def no_memory(*arguments: Any) -> Any:
    raise RuntimeError("CUDA error: out of memory")


def test_memory_for_copies_is_allocated_only_for_checkpoints_before_the_last(
    make_session: Callable[..., Session],
) -> None:
    """The last checkpoint is written from the state itself."""
    session = make_session()

    def expected(end: int, step: int, seconds: float = 1.0, **settings: Any) -> bool:
        config = session.config.changed({f"checkpoints.{name}": value for name, value in settings.items()})
        saver = Saver(session.with_config(config), {}, {}, lambda *_, **__: None)
        saver._steps, saver._began = 1, time.monotonic() - seconds
        return saver._copies_before(end, step)

    assert expected(10, 1, every_steps=9)
    assert not expected(9, 1, every_steps=9)
    assert not expected(10, 9, every_steps=9)
    assert expected(10, 1, every_steps=50, keep_every=4)
    assert not expected(100, 1, every_steps=500, every_minutes=2)
    assert expected(100, 1, every_steps=500, every_minutes=1)
    assert expected(10, 1, seconds=9, every_steps=500, every_minutes=1)
