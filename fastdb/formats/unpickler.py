"""Restricted unpickler that imports nothing and calls no code of the pickle.

A pickle is a program for a small stack machine; Python's `pickle` lets it import and call anything. This interpreter
calls only the functions in `unpickled_types.CALLS`, which create plain data. Every other global becomes `Inert`, whose
call, construction or update has no effect, and its name is reported. `pickletools.genops` splits the bytes into
operations, which are implemented here. Work and memory are limited, and values that are slow to hash are never hashed
(dictionary keys are text, bytes, and numbers below 2^60).
"""

from __future__ import annotations

import pickletools
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastdb.formats.tensor_info import Fault, is_count, shown
from fastdb.formats.unpickled_types import (
    CALLS,
    DATA,
    MAX_KEY,
    STORAGE_TYPES,
    Global,
    Inert,
    NumberType,
    Parameters,
    Storage,
    hashable,
)

MAX_PICKLE_BYTES = 32 << 20
"""The pickle of a Stable Diffusion model with its optimizer has less than one million bytes."""

MAX_WORK = 500_000
"""Operations of a pickle, including those repeated in calls; a thousand tensors take about forty thousand."""

TOO_LARGE = f"the pickle exceeds the limit of {MAX_PICKLE_BYTES} bytes"

MAX_BITS = 128
MAX_NAMES = 1000


class _Window:
    """A stream limited to `MAX_PICKLE_BYTES` against false lengths."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, MAX_PICKLE_BYTES

    def read(self, count: int) -> bytes:
        if count > self._left:
            raise Fault(TOO_LARGE)
        data = self._stream.read(count)
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        line = self._stream.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise Fault(TOO_LARGE)
        return line


@dataclass(frozen=True)
class Unpickled:
    """The value of a pickle."""

    value: Any
    neutralised: tuple[str, ...]
    """Names of its inert globals, sorted."""
    storages: frozenset[Storage]
    """Storages that it refers to."""


def unpickle(stream: BinaryIO) -> Unpickled:
    """Read the pickle at a stream's position, up to its end.

    Raises:
        Fault: the pickle is truncated, damaged, too large, or uses operations that pickles of tensors do not need.
    """
    machine = _Machine()
    try:
        return machine.run(_Window(stream))
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise Fault(f"the pickle is truncated or damaged ({shown(str(error))})") from error


class _Machine:
    """The stack machine of pickle.

    Its stack contains only plain data, `Global`, `Inert`, `Storage` and `Tensor`.
    """

    def __init__(self) -> None:
        self._neutralised: set[str] = set()
        self._storages: set[Storage] = set()
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._left = MAX_WORK

    def run(self, window: _Window) -> Unpickled:
        """Run all operations up to STOP."""
        for operation, argument, _ in pickletools.genops(window):  # type: ignore[arg-type]
            self._spend(1)
            name = operation.name
            if name in LITERALS:
                if type(argument) is int and argument.bit_length() > MAX_BITS:
                    raise Fault(f"the pickle contains a number of more than {MAX_BITS} bits")
                self._stack.append(argument)
            elif name != "STOP":
                getattr(self, f"_{name.lower()}")(argument)
        return Unpickled(self._stack.pop(), tuple(sorted(self._neutralised)), frozenset(self._storages))

    def _spend(self, work: int) -> None:
        """Count work, so that a small file cannot cause an unlimited amount."""
        self._left -= work
        if self._left < 0:
            raise Fault(f"the pickle exceeds the limit of {MAX_WORK} operations")

    def _proto(self, version: int) -> None:
        if version > 5:
            raise Fault(f"the pickle has the unsupported protocol {version}")

    def _frame(self, length: int) -> None:
        """Ignore the length of a frame."""

    # Stack and memo.

    def _mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _above_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._above_mark()

    def _pop_mark(self, _: Any) -> None:
        self._above_mark()

    def _dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _binget = _long_binget = _get

    # Containers.

    def _none(self, _: Any) -> None:
        self._stack.append(None)

    def _newtrue(self, _: Any) -> None:
        self._stack.append(True)

    def _newfalse(self, _: Any) -> None:
        self._stack.append(False)

    def _empty_tuple(self, _: Any) -> None:
        self._stack.append(())

    def _tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def _tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def _tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def _tuple_of(self, count: int) -> None:
        items = [self._stack.pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def _tuple(self, _: Any) -> None:
        items = self._above_mark()
        self._stack.append(tuple(items))

    def _empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _list(self, _: Any) -> None:
        items = self._above_mark()
        self._stack.append(items)

    def _empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _dict(self, _: Any) -> None:
        items = self._above_mark()
        self._stack.append({})
        self._fill(items)

    def _empty_set(self, _: Any) -> None:
        self._stack.append(set())

    def _frozenset(self, _: Any) -> None:
        items = self._above_mark()
        self._stack.append(frozenset(map(hashable, items)))

    def _append(self, _: Any) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _appends(self, _: Any) -> None:
        self._extend(self._above_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)

    def _additems(self, _: Any) -> None:
        items = self._above_mark()
        if isinstance(self._stack[-1], set):
            self._stack[-1].update(map(hashable, items))

    def _setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._fill([key, value])

    def _setitems(self, _: Any) -> None:
        self._fill(self._above_mark())

    def _fill(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise Fault("damaged pickle: a dictionary key has no value")
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(zip(map(hashable, items[::2]), items[1::2], strict=True))

    # Globals and their use.

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Fault("damaged pickle: a global has no name")
        self._stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> Global | Inert:
        full = f"{module}.{name}" if len(module) + len(name) < 1000 else f"{module[:100]}..."
        return Global(full) if full in CALLS or full in DATA else self._inert(shown(full))

    def _inert(self, name: str) -> Inert:
        if len(self._neutralised) < MAX_NAMES:
            self._neutralised.add(name)
        return Inert(name)

    def _ext1(self, code: int) -> None:
        self._stack.append(self._inert(f"registered extension {code}"))

    _ext2 = _ext4 = _ext1

    def _inst(self, argument: str) -> None:
        items = self._above_mark()
        self._global(argument)
        self._stack.append(self._called(self._stack.pop(), tuple(items)))

    def _obj(self, _: Any) -> None:
        items = self._above_mark()
        self._stack.append(self._called(items[0], tuple(items[1:])))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._called(function, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        keywords, arguments, function = (self._stack.pop() for _ in range(3))
        result = self._called(function, arguments)
        self._stack.append(self._inert(function.name) if keywords else result)

    def _called(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Inert):
            return Inert(function.name)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Fault("the pickle calls a value that is not a function")
        call = CALLS.get(function.name)
        result = call(self._spend, arguments) if call else None
        return result if result is not None else self._inert(function.name)

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Parameters) and isinstance(state, dict):
            parameters = state.get("_parameters")
            if isinstance(parameters, dict):
                self._spend(len(parameters))
                target.update(parameters)
        elif isinstance(target, NumberType) and isinstance(state, tuple) and len(state) > 1:
            target.order = ">" if state[1] == ">" else "<"

    def _persid(self, argument: str) -> None:
        self._stack.append(self._referenced(argument))

    def _binpersid(self, _: Any) -> None:
        self._stack.append(self._referenced(self._stack.pop()))

    def _referenced(self, reference: Any) -> Storage | Global | Inert:
        """Resolve a persistent ID of torch.save.

        It is `("storage", type, key, device, count)`, optionally followed by None. Before 1.6 it may also be
        `("module", class, ...)` with the source code of a class, of which only the class's name is kept.
        """
        fields = reference if isinstance(reference, tuple) else ()
        if len(fields) > 1 and fields[0] == "module" and isinstance(fields[1], Global | Inert):
            return fields[1]
        if not 5 <= len(fields) <= 6 or fields[0] != "storage" or fields[5:] not in ((), (None,)):
            raise Fault("the pickle refers to an object that is not a storage")
        _, kind, key, _, count = fields[:5]
        dtype = STORAGE_TYPES.get(kind.name) if isinstance(kind, Global) else None
        if dtype is None or not isinstance(key, str) or len(key) > MAX_KEY or not is_count(count):
            raise Fault("the pickle refers to an invalid storage")
        storage = Storage(key, dtype, count)
        self._storages.add(storage)
        return storage

    def _next_buffer(self, _: Any) -> None:
        raise Fault("the pickle uses out-of-band buffers")

    _readonly_buffer = _next_buffer


LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
"""Operations that only push their argument."""
