"""Operations without a deterministic form are found and allowed singly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from fastdb.errors import TrainingError
from fastdb.runtime.determinism import Determinism, explain_refusal, set_deterministic


@pytest.fixture(autouse=True)
def flags() -> Iterator[None]:
    """Set torch's flags as a trainer does, and restore them."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    set_deterministic("cpu", True)
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn


class Put(torch.autograd.Function):
    """Doubles a tensor. Its gradient uses `put_`, which torch refuses on every device."""

    @staticmethod
    def forward(context: object, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 2

    @staticmethod
    def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(gradient).put_(torch.arange(gradient.numel()), gradient * 2)


@torch.library.custom_op("fastdb_tests::other", mutates_args=())
def other(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy; an operation that a deterministic torch refuses."""
    if torch.are_deterministic_algorithms_enabled():
        raise RuntimeError("other does not have a deterministic implementation, but you set 'torch.use_...'")
    return tensor.clone()


def gradient() -> torch.Tensor:
    tensor = torch.ones(5, requires_grad=True)
    (Put.apply(tensor) ** 2).sum().backward()
    assert tensor.grad is not None
    return tensor.grad


def strict() -> bool:
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("wanted", [True, False])
def test_the_flags_of_torch(kind: str, wanted: bool) -> None:
    set_deterministic(kind, wanted)
    assert torch.are_deterministic_algorithms_enabled() == wanted
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    if kind == "cuda":
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (not wanted, wanted)


def test_an_operation_that_torch_refuses_is_found_reported_once_and_allowed() -> None:
    found: list[str] = []
    determinism = Determinism(found.append)
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
        gradient()
    for _ in range(2):
        assert torch.equal(determinism.run(gradient), torch.full((5,), 8.0))
        assert (found, strict()) == (["put_"], True)
    with determinism.applied():
        assert torch.equal(gradient(), torch.full((5,), 8.0))
    with pytest.raises(RuntimeError, match="put_"):
        gradient()


def test_other_operations_stay_refused() -> None:
    """`warn_only` of torch would allow them too, and changes the algorithm of attention."""
    found: list[str] = []
    determinism = Determinism(found.append)
    determinism.run(gradient)
    with determinism.applied():
        assert torch.equal(gradient(), torch.full((5,), 8.0))
        with pytest.raises(RuntimeError, match="other does not have"):
            other(torch.ones(1))
    determinism.run(lambda: other(gradient()))
    assert found == ["put_", "other"]


def test_without_refusals_nothing_is_between_torch_and_its_operations() -> None:
    determinism = Determinism(pytest.fail)
    assert determinism.run(lambda: 3) == 3
    with determinism.applied() as mode:
        assert mode is None


def test_other_errors_pass_and_are_not_tried_again() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal memory"):
        Determinism(pytest.fail).run(fail)
    with pytest.raises(RuntimeError, match="illegal memory"), explain_refusal("training"):
        fail()
    assert len(calls) == 2


def test_a_refusal_during_training_names_the_setting() -> None:
    with pytest.raises(TrainingError) as caught, explain_refusal("training"):
        gradient()
    assert str(caught.value) == (
        "training: operation put_ does not repeat bit by bit on this device. Run the same command again with "
        "--set deterministic=false; results then match an uninterrupted run only up to rounding."
    )
