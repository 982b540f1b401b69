"""Valid files of every format are read as torch reads them."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from fastdb.errors import ModelError
from fastdb.formats.reader import open_tensors

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

from fastdb.formats import ckpt_writer
from fastdb.formats.safetensors_file import Entry, save_tensors

sys.path.insert(0, str(Path(__file__).parent))
import hostile


class Callback:
    """An object such as Lightning leaves in a checkpoint."""

    def __init__(self) -> None:
        self.best, self.weights = 0.25, torch.ones(2)


def tensors() -> dict[str, Any]:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    return OrderedDict(
        {
            "fp32": torch.randn(3, 4),
            "fp16": torch.randn(5).half(),
            "bf16": torch.randn(2, 2).bfloat16(),
            "fp64": torch.randn(2).double(),
            "int64": torch.arange(77)[None],
            "uint8": torch.arange(3, dtype=torch.uint8),
            "bool": torch.tensor([True, False, True]),
            "complex": torch.randn(2, dtype=torch.complex64),
            "whole": base,
            "transposed": base.t(),
            "inner": base[1:5, 1:3],
            "every other": base.flatten()[3::2],
            "scalar": torch.tensor(3.5),
            "empty": torch.empty(0, 3),
            "parameter": torch.nn.Parameter(torch.ones(2)),
        }
    )


def equal(found: Any, wanted: Any) -> bool:
    same = found.dtype == wanted.dtype and found.shape == wanted.shape and found.stride() == wanted.stride()
    return same and torch.equal(found, wanted)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
def test_files_of_torch_are_read_as_torch_reads_them(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "a.ckpt"
    state = {
        "state_dict": tensors(),
        "global_step": 470_000,
        "epoch": 3,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {Callback: {"best": Callback(), "score": np.float64(2.5)}},
        "lr_schedulers": [{"last_lr": [1e-4], "on": True}],
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.full((2,), 7.0)}}}],
    }
    torch.save(state, path, _use_new_zipfile_serialization=new)
    found = open_tensors(path)
    assert found.kind.startswith("zip" if new else "stream")
    wanted = torch.load(path, weights_only=False)["state_dict"]
    assert list(found.tensors) == [*wanted, "optimizer_states.0.state.0.exp_avg"]
    assert len(wanted) == 15
    for name, tensor in wanted.items():
        assert equal(found.read(name), tensor), name
        assert found.tensors[name].shape == tuple(tensor.shape)
        assert found.tensors[name].nbytes == tensor.nbytes
    assert equal(found.read("optimizer_states.0.state.0.exp_avg"), torch.full((2,), 7.0))
    assert found.values["global_step"] == 470_000
    assert found.values["lr_schedulers.0.last_lr.0"] == 1e-4
    assert found.values["lr_schedulers.0.on"] is True
    assert found.values["pytorch-lightning_version"] == "1.4.2"
    assert [name.rpartition(".")[2] for name in found.neutralised] == ["Callback"]


def test_numpy_numbers_are_read_as_python_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    values = {"a": np.float64(2.5), "b": np.int64(-3), "c": np.float32(0.5), "d": np.bool_(True), "e": np.uint8(200)}
    torch.save({**values, "t": torch.ones(1)}, path, pickle_protocol=2)
    assert dict(open_tensors(path).values) == {"a": 2.5, "b": -3, "c": 0.5, "d": True, "e": 200}


def test_an_old_parameter_dict_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    inside = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 768))})
    torch.save({"string_to_param": inside}, path)
    assert equal(open_tensors(path).read("string_to_param.*"), torch.ones(2, 768))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": tensors(), "note": "é", "raw": b"x"}, path, pickle_protocol=protocol)
    found = open_tensors(path)
    assert found.values == {"note": "é"}
    assert all(equal(found.read(name), tensor) for name, tensor in tensors().items())


def test_newer_dtypes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    state = {"u16": torch.tensor([1, 65535], dtype=torch.uint16), "f8": torch.ones(3).to(torch.float8_e4m3fn)}
    torch.save(state, path)
    found = open_tensors(path)
    assert equal(found.read("u16"), state["u16"])
    assert found.read("f8").dtype == torch.float8_e4m3fn
    assert torch.equal(found.read("f8").float(), torch.ones(3))


def test_files_of_our_writers_are_read(tmp_path: Path) -> None:
    weights = {name: tensors()[name].contiguous() for name in ("fp32", "fp16", "int64", "transposed", "empty")}
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()]
    ckpt_writer.write_ckpt(tmp_path / "a.ckpt", entries, iter(weights.values()))
    save_tensors(tmp_path / "a.safetensors", weights)
    for path in (tmp_path / "a.ckpt", tmp_path / "a.safetensors"):
        found = open_tensors(path)
        assert set(found.tensors) == set(weights)
        assert found.neutralised == ()
        assert all(equal(found.read(name), tensor) for name, tensor in weights.items())
    assert open_tensors(tmp_path / "a.safetensors").metadata == {"format": "pt"}


def test_a_record_with_a_zip64_header_is_found(tmp_path: Path) -> None:
    """torch.save and zipfile write the sizes of large records in an extra field or after the data."""
    weights = {name: tensors()[name] for name in ("fp32", "int64")}
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()]
    ckpt_writer.write_ckpt(tmp_path / "plain.ckpt", entries, iter(weights.values()))
    with zipfile.ZipFile(tmp_path / "plain.ckpt") as plain, zipfile.ZipFile(tmp_path / "a.ckpt", "w") as wide:
        for name in plain.namelist():
            with wide.open(name, "w", force_zip64=True) as record:
                record.write(plain.read(name))
    assert all(equal(open_tensors(tmp_path / "a.ckpt").read(name), tensor) for name, tensor in weights.items())


class Sparse(io.FileIO):
    """A file in which writes of a megabyte or more, here always zeros, become holes."""

    def write(self, data: Any) -> int:
        if len(data) < 1 << 20:
            return super().write(data)
        self.seek(len(data), io.SEEK_CUR)
        return len(data)


def test_a_record_beyond_4_gib_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        zipfile, "crc32", lambda data, before=0: 0 if len(data) >= 1 << 20 else zlib.crc32(data, before)
    )
    path, count, zeros = tmp_path / "a.ckpt", 5 << 28, bytes(1 << 26)
    large = hostile.tensor(hostile.storage(key="big", count=count), size=hostile.numbers(count))
    both = b"\x80\x02}" + hostile.text("small") + hostile.tensor() + b"s" + hostile.text("large") + large + b"s."
    with Sparse(path, "w") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", both)
        with archive.open("archive/data/big", "w", force_zip64=True) as record:
            for _ in range(4 * count // len(zeros)):
                record.write(zeros)
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    found = open_tensors(path)
    assert found.tensors["small"].start > 5 << 30
    assert equal(found.read("small"), torch.tensor([1.0, 2, 3, 4]))
    assert found.read("large").shape == (count,)


def test_tensors_are_mapped_copy_on_write(tmp_path: Path) -> None:
    """Two tensors of a storage share memory, and writing to them does not change the file."""
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": tensors()}, path)
    before = path.read_bytes()
    found = open_tensors(path)
    whole, inner = found.read("whole"), found.read("inner")
    whole[1, 1] = 42.0
    assert inner[0, 0] == 42.0
    assert path.read_bytes() == before


def test_a_missing_tensor_or_a_changed_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(4)})
    found = open_tensors(path)
    with pytest.raises(ModelError, match="contains no tensor 'b'"):
        found.read("b")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="the file has changed"):
        found.read("a")


def test_tensors_are_listed_without_torch(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(4)})
    torch.save({"a": torch.ones(4)}, tmp_path / "a.ckpt")
    code = """
import sys
from pathlib import Path
from fastdb.formats.reader import open_tensors
for name in sys.argv[1:]:
    assert open_tensors(Path(name)).tensors["a"].shape == (4,)
assert not {"torch", "numpy", "safetensors"} & set(sys.modules)
"""
    files = [str(tmp_path / "a.safetensors"), str(tmp_path / "a.ckpt")]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
