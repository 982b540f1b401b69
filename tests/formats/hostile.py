"""Hostile and damaged files built from scratch, each with its expected error or inert names."""

from __future__ import annotations

import io
import json
import marshal
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2}}, 2)


@dataclass(frozen=True)
class Case:
    """A file with a pattern of its expected error, or a part of an inert name."""

    name: str
    data: bytes
    error: str = ""
    inert: str = ""
    live: bytes = b""
    """A pickle that touches the canary when Python's own unpickler loads it."""


# Pickles, operation by operation.


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def call(name: str, *arguments: bytes) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n(".encode() + b"".join(arguments) + b"tR"


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if abs(value) < 1 << 31 else f"L{value}L\n".encode()


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(kind: str = "torch.FloatStorage", key: str = "0", count: int = 4) -> bytes:
    module, _, attribute = kind.rpartition(".")
    inside = text("storage") + f"c{module}\n{attribute}\n".encode() + text(key) + text("cpu") + number(count)
    return b"(" + inside + b"tQ"


def tensor(
    store: bytes | None = None,
    offset: int = 0,
    size: bytes | None = None,
    stride: bytes | None = None,
    more: bytes = b"",
) -> bytes:
    hooks = call("collections.OrderedDict")
    inside = (store or storage()) + number(offset) + (size or numbers(4)) + (stride or numbers(1)) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + inside + more + b"tR"


def state(value: bytes, key: str = "a") -> bytes:
    return b"\x80\x02}" + text("state_dict") + b"}" + text(key) + value + b"ss."


# The files around them.


def zipped(data: bytes, *more: tuple[str, bytes], root: str = "archive") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in ((f"{root}/data.pkl", data), (f"{root}/data/0", bytes(16)), *more):
            archive.writestr(name, content)
        archive.writestr(f"{root}/version", b"3\n")
    return stream.getvalue()


def streamed(data: bytes, keys: Iterable[str] = ("0",), after: bytes | None = None) -> bytes:
    stored = struct.pack("<q", 4) + bytes(16) if after is None else after
    return MAGIC + SYSTEM + data + pickle.dumps(list(keys), 2) + stored


def tarred(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(start: int = 0, end: int = 16, shape: object = (4,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def patched(data: bytes, place: int, value: bytes) -> bytes:
    place %= len(data)
    return data[:place] + value + data[place + len(value) :]


# Programs in pickles.


def programs(canary: str) -> list[Case]:
    """Pickles that would touch the file `canary`; `live` if they need only the standard library."""
    command = text(f"touch {canary}")
    python = f"open({canary!r}, 'w').close()"
    code = text(python)
    marshalled = marshal.dumps(compile(python, "x", "exec"))
    system = b"cos\nsystem\n"
    imported = call("builtins.__import__", text("os"))
    partial = b"cfunctools\npartial\n(" + system + b"tR(" + system + b"(" + command + b"t}}tb(tR"
    live = {
        "os.system": call("os.system", command),
        "posix.system": call("posix.system", command),
        "subprocess.check_output": call("subprocess.check_output", b"]" + text("touch") + b"a" + text(canary) + b"a"),
        "builtins.eval": call("builtins.eval", code),
        "builtins.exec": call("builtins.exec", code),
        "builtins.open": call("builtins.open", text(canary), text("w")),
        "timeit.timeit": call("timeit.timeit", code, text("pass"), b"ctime\nperf_counter\n", number(1)),
        "runpy._run_code": call("runpy._run_code", code, b"}"),
        "marshal.loads": call("builtins.exec", call("marshal.loads", b"C" + bytes([len(marshalled)]) + marshalled)),
        "operator.methodcaller": call("operator.methodcaller", text("system"), command) + b"(" + imported + b"tR",
        "builtins.getattr": call("builtins.getattr", imported, text("system")) + b"(" + command + b"tR",
        "builtins.map": call("builtins.list", call("builtins.map", system, b"]" + command + b"a")),
        "functools.partial": partial,
        "OrderedDict over a map": call("collections.OrderedDict", call("builtins.map", system, b"]" + command + b"a")),
        "from memory": system + b"q\x070h\x07(" + command + b"tR",
        "named on the stack": text("os") + text("system") + b"\x93(" + command + b"tR",
        "a dotted name": b"\x80\x04" + text("os") + text("system.__call__") + b"\x93(" + command + b"tR",
        "INST": b"(" + command + b"ios\nsystem\n",
        "OBJ": b"(" + system + command + b"o",
        "a call as a key": b"}" + call("os.system", command) + b"K\x01s",
        "a call in a tuple in a set": b"\x8f(" + call("os.system", command) + b"\x90",
        "a call inside a tensor": b"(" + call("os.system", command) + tensor() + b"t",
    }
    named = [
        Case(f"program: {name}", zipped(state(value)), inert=name if "." in name else "", live=state(value))
        for name, value in live.items()
    ]
    return [*named, *_programs_of_torch(command, code)]


def _programs_of_torch(command: bytes, code: bytes) -> list[Case]:
    """Pickles that need torch, numpy or another class to be dangerous, and programs outside of `data.pkl`."""
    system = call("os.system", command)
    named = b"cos\nsystem\n"
    typed = b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\neval\nN(" + code + b"tNtR"
    inert = {
        "NEWOBJ": (b"csubprocess\nPopen\n(" + command + b"t\x81", "subprocess.Popen"),
        "NEWOBJ with names": (b"csubprocess\nPopen\n(" + command + b"t}\x92", "subprocess.Popen"),
        "an extension": (b"\x82\x07(" + command + b"tR", "extension 7"),
        "a large extension": (b"\x84\x01\x02\x03\x04(" + command + b"tR", "extension"),
        "__setstate__": (b"cevil\nThing\n)\x81" + b"}" + text("x") + system + b"sb", "evil.Thing"),
        "slots as state": (b"cevil\nThing\n)\x81" + b"N}" + text("__class__") + named + b"s\x86b", "evil.Thing"),
        "os.environ": (b"cos\nenviron\n" + text("FASTDB_CANARY") + text("x") + b"s", "os.environ"),
        "append to a deque": (b"ccollections\ndeque\n)R(" + system + b"e", "collections.deque"),
        "torch.load": (call("torch.load", text("/etc/passwd")), "torch.load"),
        "torch.hub.load": (call("torch.hub.load", text("x/y"), text("z")), "torch.hub.load"),
        "a tensor's type": (typed, "builtins.eval"),
        "hooks of a tensor": (call("torch._utils._rebuild_parameter", tensor(), b"\x89", system), "os.system"),
        "numpy's objects": (call("numpy.core.multiarray.scalar", call("numpy.dtype", text("O")), b"C\x01."), "scalar"),
        "numpy._reconstruct": (call("numpy.core.multiarray._reconstruct", b"N"), "_reconstruct"),
        "copyreg._reconstructor": (call("copyreg._reconstructor", b"cos\n_wrap_close\n", b"N", b"N"), "copyreg"),
        "a codec": (call("_codecs.encode", text("x"), text("rot13")), "_codecs.encode"),
        "a name that goes on": (text("collections") + text("OrderedDict.fromkeys") + b"\x93)R", "OrderedDict.fromkeys"),
        "a name in two lines": (text("collections") + text("OrderedDict\nx") + b"\x93)R", "OrderedDict\\nx"),
        "a storage that is called": (b"ctorch\nFloatStorage\n(" + command + b"tR", "torch.FloatStorage"),
        "a ParameterDict with parts": (
            call("torch.nn.modules.container.ParameterDict") + b"}" + text("_parameters") + system + b"sb",
            "os.system",
        ),
    }
    wrapped = [Case(f"program: {name}", zipped(state(value)), inert=say) for name, (value, say) in inert.items()]
    whole = b"\x80\x02" + system + b"."
    return [
        *wrapped,
        Case("program: the whole file", zipped(whole), error="os.system"),
        Case("program: a plain pickle", whole, error="not from torch.save"),
        Case("program: in a stream", streamed(state(system), [], b""), inert="os.system"),
        Case("program: as a stream's protocol", MAGIC[:15] + whole + SYSTEM + state(b"N"), error="damaged|protocol"),
        Case("program: among a stream's keys", MAGIC + SYSTEM + state(tensor()) + whole, error="list of storages"),
        Case("program: in a tar", tarred(storages=whole, tensors=whole, pickle=whole), error="a tar archive"),
        Case("program: behind the end", zipped(state(tensor()) + whole)),
    ]


# Pickles with false claims or excessive size.


def bombs() -> list[Case]:
    """Pickles that would exhaust time, memory or the C stack."""
    copies = b"]q\x00" + b"".join(
        b"]q" + bytes([n + 1]) + (b"h" + bytes([n])) * 0 + b"(" + (b"h" + bytes([n])) * 3 + b"e" for n in range(60)
    )
    tuples = b"Nq\x00" + b"".join((b"h" + bytes([n])) * 2 + b"\x86q" + bytes([n + 1]) for n in range(60))
    pairs = b"](" + b"K\x01K\x02\x86" * 30_000 + b"e\x85q\x01"
    collide = (
        b"}(" + b"".join(b"\x8a\x0d" + ((2**61 - 1) * n).to_bytes(13, "little") + b"N" for n in range(1, 60_000)) + b"u"
    )
    swell = {
        "lists 3^60 long": (copies, "cyclic or too deeply nested"),
        "tuples 2^60 long as a key": (b"}" + tuples + b"Ns", ""),
        "a list in itself": (b"]q\x00h\x00a", "cyclic or too deeply nested"),
        "lists 100,000 deep": (b"]" * 100_000 + b"a" * 99_999, "cyclic or too deeply nested"),
        "tuples 200,000 deep as a key": (b"})" + b"\x85" * 200_000 + b"Ns", ""),
        "tuples in a frozen set": (b"()" + b"\x85" * 200_000 + b"\x91", ""),
        "marks 450,000 deep": (b"(" * 450_000 + b"N", ""),
        "a number of 8 million bits": (
            b"\x8b" + struct.pack("<i", 1_000_000) + b"\x7f" * 1_000_000,
            "128 bits",
        ),
        "a number of a million digits": (b"L" + b"9" * 1_000_000 + b"L\n", "damaged"),
        "600,000 operations": (b"N0" * 300_000 + b"N", "limit of 500000 operations"),
        "490,000 sets": (b"\x8f" * 490_000, ""),
        "one call with 30,000 pairs, 30,000 times": (
            pairs + b"ccollections\nOrderedDict\nq\x020" + b"h\x02h\x01R" * 30_000,
            "limit of 500000 operations",
        ),
        "keys that all hash alike": (collide, ""),
        "text of 40 MB": (
            b"X" + struct.pack("<I", 40_000_000) + b"a" * 40_000_000,
            "limit of 33554432",
        ),
        "text said to have 2^62 bytes": (b"\x8d" + struct.pack("<Q", 1 << 62), "limit of 33554432"),
        "bytes said to have 2^31 bytes": (b"B" + struct.pack("<I", 1 << 31), "limit of 33554432"),
        "a memory at 2^31": (b"Nr\xff\xff\xff\xff", ""),
        "an empty stack": (b"0", "damaged"),
        "memory that is empty": (b"h\x09", "damaged"),
        "an unknown operation": (b"\xff", "damaged"),
        "a key without value": (b"}(Nu", "key has no value"),
        "a buffer from elsewhere": (b"\x97", "out-of-band buffers"),
        "a call of a number": (b"K\x01)R", "not a function"),
        "a name of 2,000 letters": (b"}" + text("a" * 2000) + tensor() + b"s", "limit of 1000 characters"),
    }
    made = [Case(f"pickle: {name}", zipped(state(value)), error=say) for name, (value, say) in swell.items()]
    return [
        *made,
        Case("pickle: no end", zipped(state(tensor())[:-1]), error="damaged"),
        Case("pickle: protocol 200", zipped(b"\x80\xc8N."), error="unsupported protocol"),
        Case(
            "pickle: two tensors of one name",
            zipped(b"}" + text("state_dict") + b"}" + text("a") + tensor() + b"ss" + text("a") + tensor() + b"s."),
            error="duplicate tensor a",
        ),
    ]


def lies() -> list[Case]:
    """Tensors with false positions, sizes or types."""
    big = f"L{1 << 62}L\n".encode()
    cases = {
        "a stride of 0": (tensor(size=numbers(1000, 1000, 1000), stride=numbers(0, 0, 0)), "larger than its data"),
        "an offset beyond": (tensor(offset=1), "larger than its data"),
        "an offset before": (tensor(offset=-1), "invalid offset"),
        "a negative size": (tensor(size=numbers(-4)), "shape"),
        "a negative stride": (tensor(stride=numbers(-1)), "shape"),
        "a size of 2^62": (tensor(size=b"(" + big + b"t"), "shape"),
        "a size of 2^90 in three": (
            tensor(size=numbers(2**30, 2**30, 2**30), stride=numbers(1, 1, 1)),
            "impossible tensor shape",
        ),
        "a stride too many": (tensor(stride=numbers(1, 1)), "mismatched sizes and strides"),
        "1,000 dimensions": (tensor(size=numbers(*[1] * 1000), stride=numbers(*[1] * 1000)), "shape"),
        "a size that is text": (tensor(size=text("4")), "shape"),
        "a size that is true": (tensor(size=b"(\x88t"), "shape"),
        "more elements than the record": (tensor(storage(count=5), size=numbers(5)), "16 bytes, not 5"),
        "fewer elements than the record": (tensor(storage(count=3), size=numbers(3)), "16 bytes, not 3"),
        "a record that is missing": (tensor(storage(key="7")), "is missing"),
        "a record elsewhere": (tensor(storage(key="../../../etc/passwd")), "is missing"),
        "a record of long name": (tensor(storage(key="9" * 1000)), "invalid storage"),
        "a storage of no type": (tensor(storage("os.system")), "invalid storage"),
        "a storage that is a number": (tensor(b"K\x01"), "has no storage"),
        "a storage of 4 arguments": (b"(" + text("storage") + b"NNNtQ", "not a storage"),
        "a storage in text": (b"Pcanary\n", "not a storage"),
        "a tensor of two arguments": (call("torch._utils._rebuild_tensor_v2", storage(), number(0)), "damaged"),
        "a tensor of unknown type": (
            b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage() + number(0) + numbers(4) + numbers(1) + b"\x89NNtR",
            "unknown type",
        ),
        "a tensor of a wider type": (
            b"ctorch._utils\n_rebuild_tensor_v3\n("
            + storage()
            + number(0)
            + numbers(4)
            + numbers(1)
            + b"\x89Nctorch\nfloat64\ntR",
            "larger than its data",
        ),
    }
    return [Case(f"tensor: {name}", zipped(state(value)), error=say) for name, (value, say) in cases.items()]


def zips() -> list[Case]:
    """Zips that torch.save never writes."""
    good = state(tensor())
    whole = zipped(good)
    stored = whole.index(b"archive/data.pkl") - 30
    listed = whole.index(b"PK\x01\x02")
    second = whole.index(b"PK\x01\x02", listed + 4)
    end = whole.index(b"PK\x05\x06")

    def packed(method: int, content: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            archive.writestr("archive/data.pkl", good)
            archive.writestr("archive/data/0", content)
        return stream.getvalue()

    def twice() -> bytes:
        data = zipped(good, ("archive/data.pkX", state(call("os.system", text("true")))))
        return data.replace(b"archive/data.pkX", b"archive/data.pkl")

    def overlapping() -> bytes:
        place = struct.unpack_from("<L", whole, listed + 42)[0]
        return patched(whole, second + 42, struct.pack("<L", place))

    def nested() -> bytes:
        """The directory points to a copy of the first record inside the data of another record."""
        place = whole.index(b"archive/data/0") - 30
        data = zipped(good, ("archive/data/1", whole[place : place + 30 + 14 + 16]))
        inside = data.index(b"archive/data/1") + 14
        entry = data.index(b"archive/data/0", data.index(b"PK\x01\x02")) - 46
        return patched(data, entry + 42, struct.pack("<L", inside))

    def link() -> bytes:
        return patched(whole, listed + 38, struct.pack("<L", 0o120777 << 16))

    return [
        Case("zip: compressed", packed(zipfile.ZIP_DEFLATED, bytes(1000)), error="is compressed"),
        Case("zip: 100 MB in 100 kB", packed(zipfile.ZIP_DEFLATED, bytes(100_000_000)), error="is compressed"),
        Case("zip: compressed by LZMA", packed(zipfile.ZIP_LZMA, bytes(1000)), error="is compressed"),
        Case("zip: one name twice", twice(), error="duplicate record"),
        Case("zip: a name that leads out", zipped(good, ("archive/../../x", b"")), error="invalid record name"),
        Case("zip: a name from the root", zipped(good, ("/etc/x", b"")), error="invalid record name"),
        Case(
            "zip: a name of Windows",
            zipped(good, ("archive/x", b"")).replace(b"archive/x", b"a:\\hijk\\x"),
            error="invalid record name",
        ),
        Case("zip: a name with a line feed", zipped(good, ("archive/x\ny", b"")), error="invalid record name"),
        Case(
            "zip: a name that is no text",
            whole.replace(b"archive/version", b"archive/\xff\xfersion"),
            error="not valid UTF",
        ),
        Case("zip: encrypted", patched(patched(whole, listed + 8, b"\x01"), stored + 6, b"\x01"), error="is encrypted"),
        Case("zip: a link", link(), error="is a link"),
        Case("zip: sizes that differ", patched(whole, listed + 24, b"\xff\xff\x00\x00"), error="compressed"),
        Case(
            "zip: sizes beyond",
            patched(whole, second + 20, b"\xff\xff\x00\x00" * 2),
            error="differs from its|beyond",
        ),
        Case(
            "zip: another name at the record",
            patched(whole, stored + 30, b"x"),
            error="differs from its",
        ),
        Case(
            "zip: a record at the directory",
            patched(whole, second + 42, struct.pack("<L", listed)),
            error="beyond|damaged",
        ),
        Case("zip: two names for one record", overlapping(), error="differs from its|overlaps"),
        Case("zip: a record in another", nested(), error="overlaps another"),
        Case("zip: cut short", whole[:-30], error="truncated"),
        Case("zip: the end only", whole[end:], error="an empty zip"),
        Case("zip: more behind", whole + b"more", error="trailing data after the archive"),
        Case("zip: something before", b"PK\x03\x04" + whole, error="invalid offset"),
        Case("zip: 65,534 entries", patched(whole, end + 8, b"\xfe\xff\xfe\xff"), error="damaged"),
        Case("zip: one volume of several", patched(whole, end + 4, b"\x01\x00"), error="multi-volume archive"),
        Case(
            "zip: a directory beyond",
            patched(whole, end + 16, b"\xff\xff\xff\x00"),
            error="invalid offset",
        ),
        Case("zip: a flipped bit in the pickle", whole.replace(b"FloatStorage", b"HalfStorage_"), error="checksum"),
        Case("zip: two checkpoints", zipped(good, ("other/data.pkl", good)), error="not a checkpoint"),
        Case("zip: pictures", zipped(good).replace(b"data.pkl", b"some.png"), error="it contains archive/some.png"),
        Case("zip: TorchScript", zipped(good, ("archive/constants.pkl", b"N.")), error="TorchScript"),
        Case("zip: another byte order", zipped(good, ("archive/byteorder", b"big")), error="byte order"),
        Case("zip: a pickle of 40 MB", zipped(b"N" * 40_000_000), error="limit of 33554432"),
        Case(
            "zip: sizes in a field that is not there",
            patched(whole, listed + 20, b"\xff" * 8),
            error="differs from its",
        ),
    ]


def headers() -> list[Case]:
    """Safetensors files that are truncated or have a false header."""
    one, data = {"a": entry()}, bytes(16)
    deep = b'{"a":' * 60_000 + b"1" + b"}" * 60_000
    wide = b'{"a":[' + b"[]," * 2_500_000 + b"[]]}"
    lists = b'{"a":[' + b"[]," * 1_900_000 + b"[]]}"
    names = b"{" + b",".join(b'"%x":0' % name for name in range(990_000)) + b"}"
    cases: dict[str, tuple[bytes, str]] = {
        "as many lists as pass": (safetensors(lists), "is not a tensor"),
        "as many names as pass": (safetensors(names), "too many tensors"),
        "seven bytes": (b"\x08\0\0\0\0\0\0", "unknown file format"),
        "a header of 2^63": (safetensors(one, data, 1 << 63), "truncated"),
        "a header of 100 MB that is not there": (safetensors(one, data, 100_000_000), "truncated"),
        "a header of 20 MB that is there": (
            safetensors(b"{" + b" " * 20_000_000 + b"}", data),
            "limit of 16777216",
        ),
        "a header that is a list": (safetensors(b"[]"), "unknown file format|not a JSON object"),
        "a header that is no JSON": (safetensors(b"{a: 1}"), "not valid JSON"),
        "a header that is no text": (safetensors(b'{"\xff": 1}'), "not valid JSON"),
        "a header 60,000 deep": (safetensors(deep), "not valid JSON"),
        "2,500,000 lists": (safetensors(wide), "too many values"),
        "one name twice": (
            safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), data),
            "duplicate",
        ),
        "one field twice": (
            safetensors(b'{"a":{"dtype":"F32","dtype":"F16","shape":[4],"data_offsets":[0,16]}}', data),
            "duplicate",
        ),
        "not a number": (safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}', data), "NaN"),
        "a number of 5,000 digits": (safetensors(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
        "an unknown type": (safetensors({"a": entry(dtype="F31")}, data), "unsupported type"),
        "a type that is a number": (safetensors({"a": entry(dtype=4)}, data), "is not a tensor"),
        "an entry that is a list": (safetensors({"a": [1]}, data), "is not a tensor"),
        "a negative shape": (safetensors({"a": entry(shape=[-4])}, data), "shape"),
        "a broken shape": (safetensors({"a": entry(shape=[4.0])}, data), "shape"),
        "a shape that is true": (safetensors({"a": entry(0, 4, [True])}, data[:4]), "shape"),
        "a shape of 2^120": (safetensors({"a": entry(shape=[1 << 40] * 3)}, data), "impossible tensor shape"),
        "a shape of 2^64": (safetensors({"a": entry(shape=[1 << 64])}, data), "shape"),
        "no shape": (safetensors({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, data), "shape"),
        "no offsets": (safetensors({"a": {"dtype": "F32", "shape": [4]}}, data), "invalid data offsets"),
        "negative offsets": (safetensors({"a": entry(-16, 0)}, data), "invalid data offsets"),
        "offsets that run backwards": (safetensors({"a": entry(16, 0)}, data), "bytes of data for shape"),
        "more bytes than the shape": (safetensors({"a": entry(shape=[3])}, data), "bytes of data for shape"),
        "overlapping tensors": (safetensors({"a": entry(), "b": entry(8, 24)}, bytes(24)), "overlaps"),
        "a tensor in another": (safetensors({"a": entry(), "b": entry()}, data), "overlaps"),
        "a gap": (safetensors({"a": entry(), "b": entry(20, 36)}, bytes(36)), "gap"),
        "data cut short": (safetensors(one, data[:-1]), "has 15 bytes of data"),
        "data that goes on": (safetensors(one, data + b"more"), "trailing data after the last tensor"),
        "metadata of numbers": (safetensors({"__metadata__": {"a": 1}, **one}, data), "metadata"),
        "metadata that is a list": (safetensors({"__metadata__": ["a"], **one}, data), "metadata"),
        "a name with line feeds": (safetensors({"a\nb\x1b[31m": entry(shape=[3])}, data), r"'a\\nb\\x1b"),
    }
    return [Case(f"safetensors: {name}", value, error=say) for name, (value, say) in cases.items()]


def strangers() -> list[Case]:
    """Files that are mistaken for models, and damaged files of old torch.save formats."""
    page = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title>" + b" " * 2000
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n"
    good = streamed(state(tensor()))
    shorter = tensor(storage(count=3), size=numbers(3))
    cases: dict[str, tuple[bytes, str]] = {
        "nothing": (b"", "the file is empty"),
        "a web page": (page, "the file is a web page"),
        "a web page with a mark before": (b"\xef\xbb\xbf\r\n<html>", "the file is a web page"),
        "a Git LFS pointer": (pointer, "Git LFS pointer"),
        "an answer in JSON": (b'{"error":"Access denied"}', "JSON"),
        "packed with gzip": (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG picture"),
        "GGUF": (b"GGUF" + bytes(100), "GGUF"),
        "zeros": (bytes(5000), "unknown file format"),
        "text": (b"hello there, this is no model", "unknown file format"),
        "a pickle of a list": (pickle.dumps([1, 2], 2), "not from torch.save"),
        "a stream cut in its pickle": (good[:120], "damaged"),
        "a stream cut in its data": (good[:-1], "truncated"),
        "a stream that goes on": (good + b"x", "trailing data after the last tensor"),
        "a stream that lies of its count": (streamed(state(tensor()), after=struct.pack("<q", 1 << 40)), "not 4"),
        "a stream without a key": (streamed(state(tensor()), []), "list of storages"),
        "a stream with a key twice": (streamed(state(tensor()), ["0", "0"]), "duplicate entry"),
        "a stream of another byte order": (MAGIC + SYSTEM.replace(b"\x88", b"\x89") + state(tensor()), "byte order"),
        "a storage of two lengths": (streamed(state(tensor())[:-1] + shorter + b"."), "conflicting"),
        "a tar": (tarred(readme=b"x"), "a tar archive"),
    }
    return [Case(f"stranger: {name}", value, error=say) for name, (value, say) in cases.items()]


def corpus(canary: str) -> list[Case]:
    """Return all cases."""
    return [*programs(canary), *bombs(), *lies(), *zips(), *headers(), *strangers()]
