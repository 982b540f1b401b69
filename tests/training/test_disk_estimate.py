"""Disk space predicted before a run."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdb.checkpoints.checkpoint import complete
from fastdb.errors import StorageError
from fastdb.models.diffusers_folder import WEIGHTS, weight_file
from fastdb.models.resolve import ensure_base
from fastdb.reporting import Note
from fastdb.sessions.session import Session
from fastdb.storage.delete import bytes_of
from fastdb.training import process
from fastdb.training.disk_estimate import check_space, need
from fastdb.training.preflight import preflight

from .conftest import outcome


def with_optimizer(session: Session, name: str) -> Session:
    config = session.config.changed({"optimizer.name": name})
    return Session(session.path, session.record.model_copy(update={"config": config}))


def check_sizes(session: Session, base: Path) -> None:
    """Compare every checkpoint with its estimate: raw within a tenth, compressed no larger and not much smaller."""
    raw, compressed = complete(session.local_checkpoints), complete(session.checkpoints)
    assert min(len(raw), len(compressed)) >= (1 if session.config.text_encoder.mode == "joint" else 2)
    for checkpoint in raw:
        estimate = need(with_optimizer(session, checkpoint.state["host"]["optimizer"]), base, restart=True)
        size = bytes_of(checkpoint.path)
        assert estimate.here[checkpoint.stage] == pytest.approx(size, rel=0.1), checkpoint.path.name
    for checkpoint in compressed:
        estimate = need(with_optimizer(session, checkpoint.state["host"]["optimizer"]), base, restart=True)
        ratio = estimate.checkpoints[checkpoint.stage] / bytes_of(checkpoint.path)
        assert 0.97 < ratio < 1.5, checkpoint.path.name


def base_of(folder: Path, unet: list[tuple[int, ...]]) -> Path:
    """A base model whose UNet has tensors of these shapes; the files have headers and holes."""
    for part, shapes in {"unet": unet, "text_encoder": [(8,)], "vae": [(8,)]}.items():
        header, end = {}, 0
        for number, shape in enumerate(shapes):
            begin, end = end, end + 2 * math.prod(shape)
            header[f"{number}"] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
        data = json.dumps(header).encode()
        path = folder / part / f"{WEIGHTS[part]}.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(len(data).to_bytes(8, "little") + data)
        os.truncate(path, 8 + len(data) + end)
    return folder


def test_checkpoints_have_the_bytes_that_were_told(straight: Session, mini: Path) -> None:
    check_sizes(straight, mini)


@pytest.mark.parametrize(
    "settings", [{"unet__ema_decay": 0.99}, {"text_encoder__mode": "joint", "optimizer__name": "adamw8bit"}]
)
def test_so_have_those_of_other_ways(
    settings: dict[str, Any], make_session: Callable[..., Session], mini: Path
) -> None:
    session = make_session(
        unet__steps=3, text_encoder__steps=2, prior__class_images=0, checkpoints__every_steps=2, **settings
    )
    assert outcome(process.start(session)) == "finished"
    check_sizes(Session.open(session.path), mini)


def test_moments_in_8_bit_are_as_large_as_bitsandbytes_writes_them(
    make_session: Callable[..., Session], tmp_path: Path
) -> None:
    """Without a GPU no step is made: the state is that which a first step begins from."""
    pytest.importorskip("bitsandbytes")
    import torch
    from safetensors.torch import save_file

    from fastdb.config import OptimizerConfig
    from fastdb.training.optimizers import make_optimizer, state_tensors

    shapes = [(320, 320, 3, 3), (1280, 320), (320,), (4095,), (4096,), (64, 64)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    optimizer: Any = make_optimizer("adamw8bit", [parameters], OptimizerConfig())
    optimizer.fill_qmap()
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
    tensors, _ = state_tensors(optimizer)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, tmp_path / "state")
    save_file({str(number): parameter.data for number, parameter in enumerate(parameters)}, tmp_path / "weights")
    session, base = make_session(optimizer__name="adamw8bit"), base_of(tmp_path / "base", shapes)
    moments = need(session, base).here["unet"] - bytes_of(tmp_path / "weights")
    assert moments == pytest.approx(bytes_of(tmp_path / "state"), rel=0.02)


def test_what_lies_there_is_not_needed_again(
    straight: Session, make_session: Callable[..., Session], copy: Callable[[Session], Session], mini: Path
) -> None:
    fresh = make_session()
    told = need(fresh, mini)
    assert list(told.checkpoints) == ["text_encoder", "unet"]
    assert told.first > sum(told.checkpoints.values()), "class images are to be made"
    # Two of the text encoder and three of the UNet at once, or two of each and both files of the export.
    unet, encoder = told.checkpoints["unet"], told.checkpoints["text_encoder"]
    assert told.most >= 2 * encoder + 3 * unet
    done = need(straight, mini)
    assert (done.checkpoints, done.first, done.most) == ({}, 0, 0)
    session = copy(straight)
    session = session.with_config(session.config.changed({"unet.steps": 40}))
    going_on = need(session, mini)
    assert going_on.checkpoints == {"unet": unet}
    assert going_on.first == unet, "one more while two are kept; class images and the text encoder's are there"
    anew = need(session, mini, restart=True)
    assert anew.checkpoints == told.checkpoints
    shutil.rmtree(session.checkpoints / "unet-000009")
    assert need(session, mini).most > going_on.most, "a second one has to find room"


def test_milestones_and_averages_count(make_session: Callable[..., Session], mini: Path) -> None:
    steps = {"text_encoder__steps": 8, "unet__steps": 16}
    plain = need(make_session(**steps), mini)
    unet = plain.checkpoints["unet"]
    milestones = need(make_session(checkpoints__keep_every=4, **steps), mini)
    # 4, 8 and 12 of the UNet and 4 of the text encoder; the last of each is among the newest anyway.
    assert milestones.most - plain.most == 3 * unet + plain.checkpoints["text_encoder"]
    assert milestones.first == plain.first
    average = need(make_session(unet__ema_decay=0.9, **steps), mini)
    # mini's file has the weights in half precision.
    added = 2 * bytes_of(weight_file(mini, "unet"))
    assert average.here["unet"] == pytest.approx(plain.here["unet"] + added, rel=0.01)
    assert unet < average.checkpoints["unet"] < unet + added


def on_disk(session: Session, disk: Path) -> Session:
    return Session.open(shutil.copytree(session.path, disk / session.name))


def leave(disk: Path, free: int) -> None:
    """Fill a disk but for so many bytes."""
    (disk / "filling").unlink(missing_ok=True)
    (disk / "filling").write_bytes(bytes(shutil.disk_usage(disk).free - free))


def test_a_disk_without_room_is_refused_and_a_tight_one_told(
    make_session: Callable[..., Session],
    small_disk: Callable[[str], Path],
    mini: Path,
) -> None:
    disk = small_disk("200m")
    session = on_disk(make_session(), disk)
    told = need(session, mini)
    leave(disk, told.first - 100_000)
    with pytest.raises(StorageError) as caught:
        preflight(session, ensure_base(session))
    line = str(caught.value)
    assert line.startswith("cup: the first checkpoints need ")
    assert "text_encoder 4." in line
    assert " free. Free some: fastdb free cup" in line
    assert "optimizer.name=adamw8bit" in line
    (session.checkpoints / ".unfinished-unet-000004").mkdir()
    (disk / "filling").rename(session.checkpoints / ".unfinished-unet-000004" / "unet.safetensors")
    assert check_space(session, mini) is None, "unfinished checkpoints of a killed trainer will be deleted"
    (session.checkpoints / ".unfinished-unet-000004" / "unet.safetensors").rename(disk / "filling")
    leave(disk, told.first + 100_000)
    [note] = preflight(session, ensure_base(session))
    assert isinstance(note, Note)
    assert (note.kind, note.subject.startswith("up to ")) == ("disk space tight", True)
    leave(disk, told.most + 100_000)
    assert preflight(session, ensure_base(session)) == []


def test_what_was_told_to_fit_does_fit_and_less_does_not(
    make_session: Callable[..., Session], small_disk: Callable[[str], Path], mini: Path
) -> None:
    """With the room for the first checkpoints training gets that far; with all that may be needed it ends."""
    disk = small_disk("200m")
    steps = {"text_encoder__steps": 2, "unet__steps": 4, "prior__class_images": 0}
    session = on_disk(make_session(**steps, checkpoints__every_steps=1), disk)
    leave(disk, int(need(session, mini).most * 1.1))
    assert outcome(process.start(session)) == "finished"
    shutil.rmtree(session.path)
    session = on_disk(make_session(**steps, checkpoints__every_steps=100), disk)
    leave(disk, int(need(session, mini).first * 1.1))
    assert outcome(process.start(session)) == "finished", "one checkpoint a stage"


def test_a_session_that_can_go_on_is_not_refused(
    straight: Session, small_disk: Callable[[str], Path], mini: Path
) -> None:
    """Two checkpoints lie there: room for one more is enough, however large a new session would be."""
    disk = small_disk("200m")
    session = on_disk(straight, disk)
    # Its UNet stage is cut back, so that steps are left to do.
    shutil.rmtree(session.checkpoints / "unet-000010")
    left = need(session, mini)
    leave(disk, int(left.first * 1.1))
    preflight(session, ensure_base(session))
    with pytest.raises(StorageError, match="first checkpoints need"):
        preflight(session, ensure_base(session), restart=True)
    assert outcome(process.start(session)) == "finished"


def test_the_estimate_needs_no_torch(mini: Path, make_session: Callable[..., Session]) -> None:
    code = (
        "import sys; from pathlib import Path; from fastdb.sessions.session import Session; "
        "from fastdb.training.disk_estimate import check_space; "
        f"check_space(Session.open({str(make_session().path)!r}), Path({str(mini)!r})); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def test_the_sizes_of_stable_diffusion_1(make_session: Callable[..., Session], tmp_path: Path) -> None:
    """A checkpoint of the real size: 859.5 million weights of the UNet, 3.4 GB and 1.7 or 6.9 GB of moments."""
    base, session = base_of(tmp_path, [(859_520_964 // 686,)] * 686), make_session()
    plain, small = (need(with_optimizer(session, name), base) for name in ("adamw", "adamw8bit"))
    assert plain.here["unet"] == pytest.approx(10.3e9, rel=0.01)
    assert small.here["unet"] == pytest.approx(5.2e9, rel=0.01)
    assert 3.16e9 < small.checkpoints["unet"] < 4.2e9
