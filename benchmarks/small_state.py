"""Measure the size of compressed checkpoints and the cost of compressing, verifying and restoring them.

    python benchmarks/small_state.py session FOLDER        a session's newest checkpoints, against its base model
    python benchmarks/small_state.py full FOLDER [--rate 1e-5] [--steps 6] [--base fp16]   SD 1.5's UNet
    python benchmarks/small_state.py moved                 bits per weight by distance from the base

`full` has the UNet's true shapes with random weights and gradients: weights with the standard deviation of torch's
initialisation, rounded to fp16, gradients of rows and columns of different sizes. AdamW8bit makes `--steps` updates of
`--rate`, which stand for a whole run: only the distance that the weights have moved matters, and it is printed. FOLDER
needs 14 GB. Every compressed tensor is read again and compared bit by bit. Seconds are CPU time of all threads; peak
memory is that of this process, including mapped pages of the files it reads.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from full_size import WIDTHS

from fastdb.checkpoints.compressed_file import Base, Packed, write_packed
from fastdb.checkpoints.progress import standing
from fastdb.formats.reader import open_tensors
from fastdb.formats.safetensors_file import Entry, write_safetensors
from fastdb.formats.tensor_bits import Numbers
from fastdb.models.diffusers_folder import read_config, weight_file
from fastdb.models.resolve import ensure_base, resolve_base
from fastdb.reporting import format_bytes
from fastdb.sessions.session import Session
from fastdb.storage.manifest import sha256
from fastdb.training.optimizers import state_tensors

THREADS = 2
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def main() -> None:
    """Run the chosen measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["session", "full", "moved"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--base", choices=list(DTYPES), default="fp16")
    given = parser.parse_args()
    if given.what == "session":
        of_session(given.folder)
    elif given.what == "full":
        full(given.folder, given.rate, given.steps, DTYPES[given.base])
    else:
        moved()


def of_session(folder: Path) -> None:
    """Compress the files of the newest checkpoint of each stage, beside the session."""
    session = Session.open(folder.name, folder.parent)
    model = ensure_base(session).folder
    for stage, checkpoint in standing(session).checkpoints.items():
        for file in sorted(checkpoint.path.glob("*.safetensors")):
            weights = file.stem != "optimizer"
            base = Base.of(weight_file(model, stage), lambda name: name) if weights else None
            measure(f"{checkpoint.path.name}/{file.stem}", file, folder.parent / f"{file.stem}.packed", base)


def full(folder: Path, rate: float, steps: int, base_type: torch.dtype) -> None:
    """Compress the UNet's weights and moments, which are created unless the folder contains them."""
    folder.mkdir(parents=True, exist_ok=True)
    base, weights, moments = (folder / f"{name}.safetensors" for name in ("base", "unet", "optimizer"))
    if not moments.is_file():
        make(base, weights, moments, rate, steps, base_type)
    print_movement(base, weights)
    known = Base.of(base)
    total = sum(measure(file.stem, file, file.with_suffix(".packed"), known) for file in (weights, moments))
    print(f"together {total / 1e9:.3f} GB")


def measure(name: str, file: Path, target: Path, base: Base | None) -> int:
    """Compress, verify, restore and compare a file; return the size of the compressed file in bytes."""
    source = open_tensors(file)

    def tensors() -> Iterator[tuple[str, Numbers]]:
        for name in source.tensors:
            yield name, source.numbers(name)
            source.forget()

    with timed() as compressing:
        written = write_packed(target, tensors(), base=base, threads=THREADS)
    with timed() as verifying:
        if sha256(target) != written.sha256:
            raise SystemExit("the file does not match what was written")
    packed = Packed.open(target, base, threads=THREADS)
    with timed() as restoring:
        for tensor in packed.tensors:
            packed.numbers(tensor)
    for tensor in packed.tensors:
        if packed.numbers(tensor).bits.tobytes() != source.numbers(tensor).bits.tobytes():
            raise SystemExit(f"{tensor} was not restored exactly")
        source.forget()
    raw = file.stat().st_size
    print(
        f"{name}: {raw / 1e6:.2f} MB -> {written.bytes / 1e6:.2f} MB ({written.bytes / raw:.3f}); CPU s (wall s): "
        f"compressing {compressing()}, verifying {verifying()}, restoring {restoring()}; peak {format_bytes(peak())}",
        flush=True,
    )
    return written.bytes


@contextmanager
def timed() -> Iterator[Callable[[], str]]:
    """Measure CPU time and wall time of the block."""
    cpu, clock = time.process_time(), time.perf_counter()
    seconds: list[float] = []
    yield lambda: f"{seconds[0]:.2f} ({seconds[1]:.2f})"
    seconds += [time.process_time() - cpu, time.perf_counter() - clock]


def peak() -> int:
    """Return the peak memory of this process in bytes, including mapped files."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the UNet's tensors in the order of its parameters."""
    from diffusers import UNet2DConditionModel

    config = read_config(resolve_base("mini").folder / "unet" / "config.json") | WIDTHS["unet"]
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(config)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def make(base: Path, weights: Path, moments: Path, rate: float, steps: int, base_type: torch.dtype) -> None:
    """Write a base, and the weights and moments of a training from it, tensor by tensor."""
    named = shapes()
    plain = write_safetensors
    plain(base, [Entry(name, base_type, shape) for name, shape in named.items()], drawn(named, base_type), {})
    source, state = open_tensors(base), {}

    def trained() -> Iterator[torch.Tensor]:
        for number, name in enumerate(named):
            weight, tensors = update(source.read(name).float(), rate, steps, number)
            state.update({f"{number}/{key.split('/', 1)[1]}": value for key, value in tensors.items()})
            yield weight
            source.forget()

    plain(weights, [Entry(name, torch.float32, shape) for name, shape in named.items()], trained(), {})
    ordered = sorted(state.items(), key=lambda one: -one[1].dtype.itemsize)
    plain(
        moments,
        [Entry(name, one.dtype, tuple(one.shape)) for name, one in ordered],
        (one for _, one in ordered),
        {},
    )


def drawn(named: dict[str, tuple[int, ...]], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield weights with the standard deviation of torch's initialisation, and weights of norms about 1."""
    torch.manual_seed(0)
    for name, shape in named.items():
        inputs = torch.Size(shape[1:]).numel()
        wide = torch.randn(shape) * (0.02 if len(shape) == 1 else (3 * inputs) ** -0.5)
        yield (wide + 1 if len(shape) == 1 and name.endswith("weight") else wide).to(dtype)


def update(weight: torch.Tensor, rate: float, steps: int, seed: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return a tensor after some updates by AdamW in 8 bit, and its moments."""
    import bitsandbytes

    torch.manual_seed(seed + 1)
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = bitsandbytes.optim.AdamW8bit([parameter], lr=rate, weight_decay=1e-2)
    flat = weight.reshape(len(weight), -1)
    sizes = 1e-5 * torch.exp(torch.randn(len(flat), 1) + torch.randn(1, flat.shape[1]))
    drift = 0.3 * torch.randn_like(flat)
    for step in range(steps):
        parameter.grad = ((drift + torch.randn_like(flat)) * sizes).reshape(weight.shape)
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.step()
    return parameter.detach(), state_tensors(optimizer)[0]


def print_movement(base: Path, weights: Path) -> None:
    """Print the mean distance of the weights from the base."""
    before, after = open_tensors(base), open_tensors(weights)
    total, count = 0.0, 0
    for name in after.tensors:
        total += float((after.read(name) - before.read(name).float()).abs().sum(dtype=torch.float64))
        count += after.tensors[name].elements
        before.forget()
        after.forget()
    print(f"{count / 1e6:.1f} million weights, which moved by {total / count:.2e} on average", flush=True)


def moved() -> None:
    """Print bits per weight of 1,280 x 1,280 weights by their distance from a base in either precision."""
    torch.manual_seed(0)
    target = Path("moved.packed")
    start = torch.randn(1280, 1280) * (3 * 1280) ** -0.5
    for distance in (1e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 1e-3):
        row = []
        for dtype in DTYPES.values():
            known = start.to(dtype)
            weight = known.float() + torch.randn_like(start) * distance * (torch.pi / 2) ** 0.5
            base = Base("0" * 64, {"weight": lambda known=known: Numbers.of(known)})
            stored = write_packed(target, [("weight", Numbers.of(weight))], base=base).bytes
            row.append(f"{stored * 8 / start.numel():.2f}")
        print(f"moved {distance:.1e}: {' / '.join(row)} bits a weight from a base in {' / '.join(DTYPES)}")
    target.unlink()


if __name__ == "__main__":
    main()
