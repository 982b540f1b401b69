"""What may lie where checkpoints lie, as data: how each is made, the reason it is passed over with, what is used.

Made in any folder of checkpoints that has at least two, each as `fastdb.checkpoints.checkpoint.save` leaves it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdb.storage import MANIFEST
from fastdb.storage.manifest import sha256

STATE = "state.json"


@dataclass(frozen=True)
class Case:
    """A leftover: `make(folder, last)` makes it of the checkpoint `last`, the newest of its stage in `folder`.

    said: how its line begins after the thing's name, or nothing where it is not told apart.
    older: whether the state before `last` is the one to use; else `last` itself still is.
    seen_by_size: whether it shows without reading every byte.
    """

    make: Callable[[Path, str], None]
    said: str
    older: bool = True
    seen_by_size: bool = True


def weights(folder: Path, last: str) -> Path:
    """The weights of a checkpoint, packed or raw."""
    stem = folder / last / last.rpartition("-")[0]
    packed = stem.with_suffix(".packed")
    return packed if os.path.lexists(packed) else stem.with_suffix(".safetensors")


def rewrite(folder: Path, last: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a checkpoint's manifest as data."""
    path = folder / last / MANIFEST
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def cut(path: Path, size: int) -> None:
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


def names_elsewhere(folder: Path, last: str, name: str) -> None:
    """The manifest names a file that is there and fits, and lies elsewhere."""
    other = folder.parent / "elsewhere"
    other.write_bytes(b"secret")
    entry = {"bytes": 6, "sha256": sha256(other)}
    rewrite(folder, last, lambda record: record["files"].update({name.format(other): entry}))


def link_out(folder: Path, last: str) -> None:
    path, other = weights(folder, last), folder.parent / "elsewhere"
    path.rename(other)
    path.symlink_to(other)


def other_state(folder: Path, last: str, text: str) -> None:
    """Another state, and a manifest that fits it."""
    path = folder / last / STATE
    path.write_text(text)
    entry = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    rewrite(folder, last, lambda record: record["files"].update({STATE: entry}))


def higher(last: str) -> str:
    """The name of a later checkpoint."""
    stage, _, step = last.rpartition("-")
    return f"{stage}-{int(step) + 1:06d}"


def in_place_of(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


LEADS_OUT = "its manifest lists "
TWIN = "Google Drive shows it as a second {last}"

CASES: dict[str, Case] = {
    "no manifest": Case(lambda f, n: (f / n / MANIFEST).unlink(), "it has no manifest, so it was never finished"),
    "half a manifest": Case(
        lambda f, n: cut(f / n / MANIFEST, (f / n / MANIFEST).stat().st_size // 2), "its manifest cannot be read"
    ),
    "empty manifest": Case(lambda f, n: cut(f / n / MANIFEST, 0), "its manifest cannot be read"),
    "manifest of nothing": Case(
        lambda f, n: rewrite(f, n, lambda record: record["files"].clear()), "its manifest does not name state.json"
    ),
    "manifest without weights": Case(
        lambda f, n: rewrite(f, n, lambda record: record["files"].pop(weights(f, n).name)),
        "its manifest does not name {stage}.safetensors",
    ),
    "manifest that is a list": Case(lambda f, n: (f / n / MANIFEST).write_text("[1]") and None, "its manifest cannot"),
    "deep manifest": Case(lambda f, n: (f / n / MANIFEST).write_text("[" * 99_999) and None, "its manifest cannot"),
    "manifest that is a folder": Case(
        lambda f, n: in_place_of(f / n / MANIFEST, Path.mkdir), "its manifest cannot be read"
    ),
    "manifest that is a pipe": Case(
        lambda f, n: in_place_of(f / n / MANIFEST, os.mkfifo), "its manifest cannot be read"
    ),
    "newer format": Case(
        lambda f, n: rewrite(f, n, lambda record: record.update(format=2)),
        "its manifest has format 2; this version knows 1",
    ),
    "missing file": Case(lambda f, n: weights(f, n).unlink(), "{file} is missing"),
    "missing state": Case(lambda f, n: (f / n / STATE).unlink(), "state.json is missing"),
    "short file": Case(lambda f, n: cut(weights(f, n), -1), "{file} has "),
    "long file": Case(
        lambda f, n: weights(f, n).write_bytes(weights(f, n).read_bytes() + b"x") and None, "{file} has "
    ),
    "zero-byte placeholder": Case(lambda f, n: cut(weights(f, n), 0), "{file} has 0 bytes instead of"),
    "wrong hash": Case(lambda f, n: flip(weights(f, n)), "{file} has changed since it was written", seen_by_size=False),
    "wrong hash of the state": Case(lambda f, n: flip(f / n / STATE), "state.json has changed since it was written"),
    "weights that are a folder": Case(lambda f, n: in_place_of(weights(f, n), Path.mkdir), "{file} is no"),
    "weights that are a pipe": Case(lambda f, n: in_place_of(weights(f, n), os.mkfifo), "{file} is no"),
    "file became a twin": Case(
        lambda f, n: rename(weights(f, n), f"{weights(f, n).stem} (1){weights(f, n).suffix}"), "{file} is missing"
    ),
    "manifest became a twin": Case(
        lambda f, n: rename(f / n / MANIFEST, "MANIFEST (1).json"), "it has no manifest, so it was never finished"
    ),
    "checkpoint became a twin": Case(lambda f, n: rename(f / n, f"{n} (1)"), TWIN),
    "twin of a checkpoint": Case(lambda f, n: shutil.copytree(f / n, f / f"{n} (1)") and None, TWIN, older=False),
    "twin of a file": Case(
        lambda f, n: (f / n / f"{weights(f, n).stem} (1){weights(f, n).suffix}").write_bytes(b"") or None,
        "",
        older=False,
    ),
    "empty folder": Case(lambda f, n: (f / higher(n)).mkdir(), "it has no manifest, so it was", older=False),
    "file of a checkpoint's name": Case(
        lambda f, n: (f / higher(n)).touch(), "it has a checkpoint's name but is not a folder", older=False
    ),
    "stray file": Case(lambda f, n: (f / "notes.txt").touch(), "not a checkpoint", older=False),
    "stray file of an awkward name": Case(lambda f, n: (f / "a\nb\u202e").touch(), "not a checkpoint", older=False),
    "stray folder": Case(lambda f, n: (f / "checkpoint-500").mkdir(), "not a checkpoint", older=False),
    "stray average of the weights": Case(
        lambda f, n: (f / n / f"{weights(f, n).stem}_ema.safetensors").write_bytes(b"no weights") and None,
        "",
        older=False,
    ),
    "manifest that leads out": Case(lambda f, n: names_elsewhere(f, n, "../../elsewhere"), LEADS_OUT),
    "manifest that leads away": Case(lambda f, n: names_elsewhere(f, n, "{}"), LEADS_OUT),
    "manifest of Windows": Case(lambda f, n: names_elsewhere(f, n, "C:\\elsewhere"), LEADS_OUT),
    "link that leads out": Case(link_out, "{file} is a link to another folder"),
    "state that is a list": Case(lambda f, n: other_state(f, n, "[1]"), "its state.json cannot be read"),
    "state of another step": Case(
        lambda f, n: other_state(f, n, json.dumps({"stage": "unet", "step": 2})),
        "it contains the state of 'unet' step 2: it was renamed or copied from elsewhere",
    ),
    "checkpoint of an earlier step under a later name": Case(
        lambda f, n: shutil.copytree(f / n, f / higher(n)) and None,
        "it contains the state of '{stage}' step {step}: it was renamed or copied from elsewhere",
        older=False,
    ),
}
"""By name. Where the name has a twin or another checkpoint beside it, `last` stays what is used."""


def expected(case: Case, last: str, suffix: str = ".safetensors") -> str:
    """What is said of a case made of the checkpoint `last`, whose weights have a name that ends so."""
    stage, _, step = last.rpartition("-")
    return case.said.format(last=last, stage=stage, step=int(step), file=f"{stage}{suffix}")
