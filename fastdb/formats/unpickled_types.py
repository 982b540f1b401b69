"""Values that the restricted unpickler can create, and the supported calls."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastdb.formats.tensor_info import SIZES, Fault, TensorInfo, checked_shape, is_count, shown

MAX_KEY = 64
"""Longest key of a storage, and longest text that `_codecs.encode` converts to bytes, as for numpy numbers."""

Spend = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """The name of a supported global, which is never imported.

    An example is `torch.FloatStorage`.
    """

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """Placeholder for an unsupported global and everything created with it."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Consecutive numbers stored elsewhere in the file under `key`."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view that lies inside its storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Parameters(dict[Any, Any]):
    """A `torch.nn.ParameterDict`, as in old textual inversions, without its other state."""


@dataclass(slots=True, eq=False)
class NumberType:
    """A numpy dtype, such as `f8`, with its byte order."""

    code: str
    order: str = "<"


def _view(storage: Any, offset: Any, size: Any, stride: Any, dtype: str | None = None) -> Tensor:
    """Return a tensor in a storage, with the storage's type by default.

    Raises:
        Fault: the tensor ends beyond its storage or has more elements.
    """
    if not isinstance(storage, Storage):
        raise Fault("a tensor has no storage")
    shape, steps = checked_shape(size), checked_shape(stride)
    if len(shape) != len(steps) or not is_count(offset):
        raise Fault("a tensor has an invalid offset or mismatched sizes and strides")
    view = TensorInfo(dtype or storage.dtype, shape, steps, 0)
    available = storage.count * SIZES[storage.dtype]
    # With a stride of 0, two bytes would become terabytes in the first cast.
    if (offset + view.span) * SIZES[view.dtype] > available or view.nbytes > available:
        raise Fault(f"a tensor of shape {shown(shape)} is larger than its data")
    return Tensor(storage, view.dtype, offset, shape, steps)


STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
STORAGE_TYPES = {
    f"{module}.{name}": dtype for module in ("torch", "torch.cuda", "torch.storage") for name, dtype in STORAGES.items()
}
"""Type of the numbers in a storage, by the full name of its class."""


def hashable(key: Any) -> Any:
    """Return a dictionary key, replaced if its hashing cost is unbounded."""
    if key is None or isinstance(key, str | bytes | float | Global | Inert):
        return key
    if isinstance(key, int) and key.bit_length() <= 60:
        return key
    return Inert(f"a {type(key).__name__} as a key")


# The calls that a pickle may make. Each takes a function that counts work, and the arguments, and returns data, or None
# for unsupported arguments.


def _ordered_dict(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    if len(arguments) > 1:
        return None
    pairs = arguments[0] if arguments else []
    if isinstance(pairs, dict):
        spend(len(pairs))
        return dict(pairs)
    if not isinstance(pairs, list | tuple):
        return None
    spend(len(pairs))
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        return None
    return {hashable(key): value for key, value in pairs}


def _set(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    if len(arguments) != 1 or not isinstance(arguments[0], list | tuple):
        return None
    spend(len(arguments[0]))
    return set(map(hashable, arguments[0]))


def _size(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    return checked_shape(arguments[0]) if len(arguments) == 1 else None


def _first(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments and isinstance(arguments[0], Tensor) else None


def _parameters(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    return Parameters()


def _tensor(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    """Implement `_rebuild_tensor(storage, offset, size, stride)`, ignoring further arguments."""
    storage, offset, size, stride = arguments[:4]
    return _view(storage, offset, size, stride)


def _tensor_of_type(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    """Implement `_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype)`."""
    storage, offset, size, stride, _, _, dtype = arguments[:7]
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
    if name not in SIZES:
        raise Fault("a tensor has an unknown type")
    return _view(storage, offset, size, stride, name)


def _typed(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    """Implement `_rebuild_from_type_v2(function, type, arguments, state)` for subclasses and attributes of tensors."""
    function, _, inner = arguments[:3]
    if not isinstance(function, Global) or CALLS.get(function.name) not in (_tensor, _tensor_of_type, _first):
        return None
    return CALLS[function.name](spend, inner) if isinstance(inner, tuple) else None


def _encoded(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    """Implement `_codecs.encode(text, "latin1")`, the form of bytes in protocol 2."""
    text = arguments[0] if arguments else None
    if not isinstance(text, str) or len(text) > MAX_KEY or arguments[1:] != ("latin1",):
        return None
    return text.encode("latin1")


def _no_bytes(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    """Implement `bytes()`, the form of empty bytes in protocol 2."""
    return None if arguments else b""


def _number_type(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    code = arguments[0] if arguments else None
    return NumberType(code) if isinstance(code, str) and code in NUMBERS else None


def _number(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    if len(arguments) != 2 or not isinstance(arguments[0], NumberType) or not isinstance(arguments[1], bytes):
        return None
    kind, data = arguments
    return struct.unpack(kind.order + NUMBERS[kind.code], data)[0]


NUMBERS = dict(
    zip(("f2", "f4", "f8", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"), "efd?bhiqBHIQ", strict=True)
)
"""Number codes of numpy, with those of `struct`."""

Call = Callable[[Spend, tuple[Any, ...]], Any]

CALLS: dict[str, Call] = {
    "collections.OrderedDict": _ordered_dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.nn.modules.container.ParameterDict": _parameters,
    "_codecs.encode": _encoded,
    "__builtin__.bytes": _no_bytes,
    "numpy.dtype": _number_type,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}

DATA = {
    *(f"torch.{name}" for name in SIZES),
    *(f"torch.{name.removesuffix('Storage')}Tensor" for name in STORAGES),
    *("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"),
    *STORAGE_TYPES,
}
"""Globals that are kept as their names."""
