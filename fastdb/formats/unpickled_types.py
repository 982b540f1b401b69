"""What a pickle may say of a model: names, storages, tensors and plain data; all that `pickles` can make."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from fastdb.formats.tensor_info import SIZES, Fault, checked_shape, is_count, shown, span

SHORT = 64
"""Longest key of a storage, and longest text that is turned into bytes: numbers of numpy are written so."""

Spend = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """The name of something that is known here, such as `torch.FloatStorage`; never the thing itself."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """Stands for what is not known here, and for all that was ever made with it; does nothing."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers that lies elsewhere in the file, under `key`."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage that was found to lie inside it."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Parameters(dict[Any, Any]):
    """A `torch.nn.ParameterDict`, as old textual inversions have it: of its state only the parameters are kept."""


@dataclass(slots=True, eq=False)
class NumberType:
    """A dtype of numpy, such as `f8`, with the order of its bytes."""

    code: str
    order: str = "<"


def torch_reference(what: Any) -> Storage | Global | Inert:
    """What torch.save keeps outside of its pickle: `("storage", type, key, device, count)`, and None or nothing more.

    Before 1.6 also `("module", class, ...)` with the source text of a class: only the class's name is kept.

    Raises:
        Fault: it is none of these.
    """
    if isinstance(what, tuple) and len(what) > 1 and what[0] == "module" and isinstance(what[1], Global | Inert):
        return what[1]
    if not isinstance(what, tuple) or not 5 <= len(what) <= 6 or what[0] != "storage" or what[5:] not in ((), (None,)):
        raise Fault("its pickle refers to something that is no storage of a tensor")
    _, kind, key, _, count = what[:5]
    dtype = storage_dtype(kind)
    if dtype is None or not isinstance(key, str) or len(key) > SHORT or not is_count(count):
        raise Fault("its pickle refers to a storage that cannot be")
    return Storage(key, dtype, count)


def storage_dtype(kind: Any) -> str | None:
    """The type of number in a storage of this class; None where it is no storage."""
    if not isinstance(kind, Global):
        return None
    module, _, name = kind.name.rpartition(".")
    return STORAGES.get(name) if module in ("torch", "torch.cuda", "torch.storage") else None


def view(storage: Any, offset: Any, size: Any, stride: Any, dtype: str | None = None) -> Tensor:
    """A tensor of these numbers; in elements of `dtype`, by default that of the storage.

    Raises:
        Fault: it would not lie inside its storage, or have more elements than that.
    """
    if not isinstance(storage, Storage):
        raise Fault("a tensor in it has no storage")
    shape, steps = checked_shape(size), checked_shape(stride)
    if len(shape) != len(steps) or not is_count(offset):
        raise Fault("a tensor in it has sizes and strides that do not fit")
    kind = dtype or storage.dtype
    room = storage.count * SIZES[storage.dtype]
    # A stride of 0 makes much of little: two bytes that are terabytes once somebody casts them.
    if (offset + span(shape, steps)) * SIZES[kind] > room or prod(shape) * SIZES[kind] > room:
        raise Fault(f"a tensor in it, {shown(shape)}, is larger than its data")
    return Tensor(storage, kind, offset, shape, steps)


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


def hashable(key: Any) -> Any:
    """A key as it may stand in a dictionary of ours; anything whose hashing has no bound is replaced."""
    if key is None or isinstance(key, str | bytes | float | Global | Inert):
        return key
    if isinstance(key, int) and key.bit_length() <= 60:
        return key
    return Inert(f"a {type(key).__name__} as a key")


# The calls a pickle may make. Each takes a function to count work with and the
# arguments, and gives data, or None for "not that way".


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
    """`_rebuild_tensor(storage, offset, size, stride)`, with more behind that does not change what it is."""
    storage, offset, size, stride = arguments[:4]
    return view(storage, offset, size, stride)


def _tensor_of_type(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    """`_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype)`."""
    storage, offset, size, stride, _, _, dtype = arguments[:7]
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
    if name not in SIZES:
        raise Fault("a tensor in it has an unknown type")
    return view(storage, offset, size, stride, name)


def _typed(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    """`_rebuild_from_type_v2(function, type, arguments, state)`: a tensor of a subclass, or with attributes."""
    function, _, inner = arguments[:3]
    if not isinstance(function, Global) or CALLS.get(function.name) not in (_tensor, _tensor_of_type, _first):
        return None
    return CALLS[function.name](spend, inner) if isinstance(inner, tuple) else None


def _encoded(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    """`_codecs.encode(text, "latin1")`: how protocol 2 writes bytes."""
    text = arguments[0] if arguments else None
    if not isinstance(text, str) or len(text) > SHORT or arguments[1:] != ("latin1",):
        return None
    return text.encode("latin1")


def _no_bytes(spend: Spend, arguments: tuple[Any, ...]) -> Any:
    """`bytes()`: how protocol 2 writes none."""
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
"""Codes of numpy's numbers, and of `struct`'s."""

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
}
"""Names that may stand for themselves."""
