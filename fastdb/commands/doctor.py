"""Verb about this host: doctor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fastdb.commands.space import disks
from fastdb.downloads import small_models
from fastdb.errors import FastDBError
from fastdb.models.diffusers_folder import open_base_model
from fastdb.reporting import SILENT, Report, format_bytes
from fastdb.runtime.doctor import Check, Examination, examine, this_device
from fastdb.runtime.paths import cache_folder, sessions_root
from fastdb.storage.atomic_write import make_folder, write_bytes


def doctor(*, verify: bool = False, root: str | Path | None = None, report: Report = SILENT) -> Examination:
    """Return facts and problems of this host.

    Args:
        verify: also compute on the device, detect faces, write a file and generate a picture with mini.

    Raises:
        StorageError: a disk does not answer.
    """
    base = sessions_root(root)
    examination = examine()
    facts = [
        *examination.facts,
        ("sessions", str(base)),
        *(
            ("disk", f"{format_bytes(disk.free)} of {format_bytes(disk.total)} free at {disk.folder}")
            for disk in disks([base, cache_folder()])
        ),
        *(("model file", f"{name}: {small_models.find(name) or 'missing'}") for name in small_models.small_models()),
    ]
    return replace(examination, facts=tuple(facts), checks=tuple(_tried(base, report)) if verify else ())


def _tried(base: Path, report: Report) -> list[Check]:
    trials: list[tuple[str, Callable[[], str]]] = [
        ("device", _compute),
        ("8-bit optimizer", _optimize),
        ("faces", _detect),
        ("sessions folder", lambda: _write(base)),
        ("picture", _generate),
    ]
    checks = []
    with report.progress("verify", "check") as update:
        for done, (name, trial) in enumerate(trials, start=1):
            try:
                checks.append(Check(name, trial()))
            except (FastDBError, RuntimeError, ImportError, OSError) as error:
                checks.append(Check(name, "", " ".join(str(error).split()) or type(error).__name__))
            update(done, len(trials))
    return checks


def _compute() -> str:
    """Multiply matrices on the device in its precision, and compare with the CPU."""
    import torch

    device = this_device()
    factors = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    product = (factors[0].to(device.kind, device.half) @ factors[1].to(device.kind, device.half)).float().cpu()
    difference = float((product - factors[0] @ factors[1]).abs().max())
    # bf16 has 8 bits: sums of 64 products of about 1 differ by at most some tenths.
    if not difference < 0.5:
        raise RuntimeError(f"products on the {device.kind} device differ from the CPU's by {difference:.3g}")
    return f"{device.kind} computes in {device.precision}"


def _optimize() -> str:
    from fastdb.training.optimizers import choose_optimizer

    name, reason = choose_optimizer("auto", this_device().kind)
    return f"{name}: {reason}"


def _detect() -> str:
    from fastdb.images.faces import face_detector

    detector = face_detector()
    return f"{detector.name}: {detector.reason}"


def _write(base: Path) -> str:
    """Write, read and delete a file in the folder of the sessions."""
    make_folder(base)
    file = base / ".fastdb-doctor"
    try:
        write_bytes(file, b"fastdb")
        if file.read_bytes() != b"fastdb":
            raise OSError(f"{base} returned other bytes than were written")
    finally:
        file.unlink(missing_ok=True)
    return f"{base} accepts files"


def _generate() -> str:
    from fastdb.inference.engine import Engine, Request
    from fastdb.models.diffusers_configs import MINI

    engine = Engine.from_base(open_base_model(MINI))
    (picture,) = engine.generate(Request("a photo of a mug", steps=2, width=64, height=64))
    if len(picture.getcolors(64 * 64) or ()) < 2:
        raise RuntimeError("the picture of mini has a single colour")
    return f"mini generates pictures of {picture.width} x {picture.height} pixels"
