"""Pickles read as data, by an interpreter of our own: containers, numbers, text and descriptions of tensors.

A pickle is a program for a small stack machine; Python's reader lets it import and call anything. This one imports
nothing and calls nothing but the functions in `pickled_data.CALLS`, which make plain data. Every other global becomes
`Inert`: to call it, build it or fill it does nothing, and its name is reported. `pickletools.genops` splits the bytes
into operations; what each of them does is written here. Work and memory are bounded, and no value from a pickle is ever
hashed that could make hashing slow (a dictionary's keys are text, bytes, and numbers below 2^60).
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastdb.formats.tensor_info import Fault, shown
from fastdb.formats.unpickled_types import (
    CALLS,
    DATA,
    Global,
    Inert,
    NumberType,
    Parameters,
    hashable,
    storage_dtype,
    torch_reference,
)

LARGEST = 32 << 20
"""Bytes of a pickle; that of a Stable Diffusion with its optimizer has less than one million."""

MOST_WORK = 500_000
"""Operations of a pickle, with those that a call repeats; a thousand tensors take about forty thousand."""

MOST_BITS = 128
MOST_NAMES = 1000


class Window:
    """A stream that gives at most `limit` bytes from where it stands: a length in a pickle cannot make us read more."""

    def __init__(self, stream: BinaryIO, limit: int = LARGEST) -> None:
        self._stream, self._left = stream, limit

    def read(self, count: int) -> bytes:
        """The next bytes; fewer where the file ends."""
        if count > self._left:
            raise Fault("it is larger than any model's description")
        return self._took(self._stream.read(count))

    def readline(self) -> bytes:
        """Bytes up to a line feed."""
        line = self._took(self._stream.readline(self._left + 1))
        if self._left < 0:
            raise Fault("it is larger than any model's description")
        return line

    def _took(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


@dataclass(frozen=True)
class Unpickled:
    """What a pickle says, and which names in it were made inert, sorted."""

    value: Any
    neutralised: tuple[str, ...] = ()


def unpickle(stream: BinaryIO, persistent: Callable[[Any], Any] | None = None, work: int = 0) -> Unpickled:
    """Read the pickle at which a stream stands; the stream then stands behind it.

    Args:
        stream: of bytes.
        persistent: turns what the pickle says of something outside of it into what stands for that; by default
            `torch_reference`.
        work: the most operations; by default `MOST_WORK`.

    Raises:
        Fault: it is cut short, damaged, too large, or does what no honest pickle of tensors does.
    """
    machine = _Machine(persistent or torch_reference, work or MOST_WORK)
    try:
        return Unpickled(machine.run(Window(stream)), tuple(sorted(machine.neutralised)))
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise Fault(f"its pickle is cut short or damaged ({shown(str(error))})") from error


class _Machine:
    """The stack machine. What stands on its stack is data, `Global`, `Inert`, `Storage` or `Tensor`, all made here."""

    def __init__(self, persistent: Callable[[Any], Any], work: int) -> None:
        self.neutralised: set[str] = set()
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._left = work

    def run(self, window: Window) -> Any:
        """Everything up to STOP; what is then on top of the stack."""
        for operation, argument, _ in pickletools.genops(window):  # type: ignore[arg-type]
            self.spend(1)
            name = operation.name
            if name in LITERALS:
                if type(argument) is int and argument.bit_length() > MOST_BITS:
                    raise Fault("its pickle holds a number of absurd length")
                self._stack.append(argument)
            elif name != "STOP":
                getattr(self, f"_{name.lower()}")(argument)
        return self._stack.pop()

    def spend(self, work: int) -> None:
        """Count work, so that a small file cannot cause much of it."""
        self._left -= work
        if self._left < 0:
            raise Fault("its pickle would take more work than any model's")

    def _proto(self, version: int) -> None:
        if version > 5:
            raise Fault(f"its pickle has the unknown protocol {version}")

    def _frame(self, length: int) -> None:
        """Only says how much follows."""

    # What stands on the stack.

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

    def _put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, place: int) -> None:
        self._stack.append(self._memo[place])

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
            raise Fault("its pickle is damaged: a dictionary has a key without a value")
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(zip(map(hashable, items[::2]), items[1::2], strict=True))

    # Names, and what a pickle would do with them.

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Fault("its pickle is damaged: a global has no name")
        self._stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> Global | Inert:
        whole = f"{module}.{name}" if len(module) + len(name) < 1000 else f"{module[:100]}..."
        if whole in CALLS or whole in DATA or storage_dtype(Global(whole)):
            return Global(whole)
        return self._inert(shown(whole))

    def _inert(self, name: str) -> Inert:
        if len(self.neutralised) < MOST_NAMES:
            self.neutralised.add(name)
        return Inert(name)

    def _ext1(self, code: int) -> None:
        self._stack.append(self._inert(f"the registered extension {code}"))

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
        named, arguments, function = (self._stack.pop() for _ in range(3))
        called = self._called(function, arguments)
        self._stack.append(self._inert(function.name) if named else called)

    def _called(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Inert):
            return Inert(function.name)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Fault("its pickle calls what is no function")
        call = CALLS.get(function.name)
        made = call(self.spend, arguments) if call else None
        return made if made is not None else self._inert(function.name)

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Parameters) and isinstance(state, dict):
            inside = state.get("_parameters")
            if isinstance(inside, dict):
                self.spend(len(inside))
                target.update(inside)
        elif isinstance(target, NumberType) and isinstance(state, tuple) and len(state) > 1:
            target.order = ">" if state[1] == ">" else "<"

    def _persid(self, argument: str) -> None:
        self._stack.append(self._persistent(argument))

    def _binpersid(self, _: Any) -> None:
        self._stack.append(self._persistent(self._stack.pop()))

    def _next_buffer(self, _: Any) -> None:
        raise Fault("its pickle wants data that no file has")

    _readonly_buffer = _next_buffer


LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
"""Operations that only put their argument on the stack."""
