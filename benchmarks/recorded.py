"""Run training once, ours or that of diffusers' script, and record its losses, gradients, draws, times and memory.

    python benchmarks/recorded.py ours SESSION RECORD [--gradients]
    python benchmarks/recorded.py script SCRIPT RECORD [--gradients] [--draws RECORD] -- ARGUMENTS OF THE SCRIPT

SCRIPT is diffusers' `examples/dreambooth/train_dreambooth.py` or `train_dreambooth_lora.py` as it was fetched. Its file
is not changed: stand-ins for the transforms of torchvision and for `check_min_version` are put before it, and with
`--draws` it receives the images, posterior noise, noise, timesteps and initial adapters of our run, instead of drawing
its own. Both factors of these adapters are random, because the gradient of the first is zero while the second is.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import runpy
import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class Record:
    """What a run did.

    Attributes:
        losses: of each microbatch, before it is divided by their number.
        gradients: of each step before clipping, in the order of the parameters.
        adapters: initial values of a LoRA, by part, layer and factor.
        draws: of each row: its group, the name of its image, timestep, noise and posterior noise.
        start: CPU seconds of the process when its first backward pass began.
        cpu: CPU seconds of the process when the gradient of each step was complete.
        peak: resident bytes.
    """

    losses: list[float] = field(default_factory=list)
    gradients: list[list[torch.Tensor]] = field(default_factory=list)
    draws: list[dict[str, Any]] = field(default_factory=list)
    adapters: dict[str, torch.Tensor] = field(default_factory=dict)
    start: float = 0.0
    cpu: list[float] = field(default_factory=list)
    peak: int = 0

    def save(self, path: Path) -> None:
        """Write the record as a file of torch."""
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        torch.save(vars(self), path)

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record that this program wrote."""
        return cls(**torch.load(path, weights_only=True))


NAMES: dict[torch.nn.Parameter, str] = {}
"""Names of a LoRA's weights, by which their gradients are sorted, the UNet's first."""


def record_steps(record: Record, gradients: bool, wanted: Callable[[], bool] = lambda: True) -> None:
    """Record from the two methods of the accelerator that both loops call in each step."""
    backward, clip = Accelerator.backward, Accelerator.clip_grad_norm_

    def backward_recorded(self: Accelerator, loss: torch.Tensor, **options: Any) -> None:
        record.start = record.start or time.process_time()
        if wanted():
            record.losses.append(float(loss.detach()))
        backward(self, loss, **options)

    def clip_recorded(self: Accelerator, parameters: Any, *arguments: Any, **options: Any) -> Any:
        parameters = sorted(parameters, key=lambda weight: NAMES.get(weight, ""))
        if wanted():
            record.cpu.append(time.process_time())
            if gradients:
                record.gradients.append([weight.grad.clone() for weight in parameters if weight.grad is not None])
        return clip(self, parameters, *arguments, **options)

    Accelerator.backward, Accelerator.clip_grad_norm_ = backward_recorded, clip_recorded  # type: ignore[method-assign]


def run_ours(folder: Path, target: Path, gradients: bool) -> None:
    """Train a session in this process, and record its first stage."""
    from fastdb.checkpoints.publisher_process import Publisher
    from fastdb.sessions.session import Session
    from fastdb.training import batches, prepare
    from fastdb.training.trainer import Trainer

    session, record = Session.open(folder), Record()
    stages: set[str] = set()
    names: dict[int, list[str]] = {}
    record_steps(record, gradients, lambda: len(stages) == 1)
    record_adapters(record, lambda: not stages)
    draw, groups = batches.Batches._draw, prepare.cache_latents

    def drawn(self: Any, group: Any, *address: int) -> Any:
        row = draw(self, group, *address)
        stages.add(self.stage)
        if len(stages) == 1:
            image = names[group.latents.mean.data_ptr()][row.image]
            numbers = {"timestep": row.timestep, "noise": row.noise, "posterior": row.posterior}
            record.draws.append({"group": group.name, "image": image, **numbers})
        return row

    def named(paths: Any, **options: Any) -> Any:
        cache = groups(paths, **options)
        names[cache.mean.data_ptr()] = [path.name for path in paths]
        return cache

    batches.Batches._draw, prepare.cache_latents = drawn, named  # type: ignore[method-assign]
    prepare.cpu_threads = lambda weights: 1
    # A process of its own, which would take the other core for minutes.
    Publisher.wake = Publisher.wake_if_pending = Publisher.finish = lambda *_: None  # type: ignore[assignment,method-assign]
    fused = session.config.optimizer.fused_backward_pass

    def emit(event: str, /, **_: Any) -> None:
        # Its gradients are never complete together: the end of a step counts instead.
        if fused and event == "step" and len(stages) == 1:
            record.cpu.append(time.process_time())

    outcome = Trainer(session, emit, threading.Event()).run()
    if outcome != "finished":
        sys.exit(f"training ended as {outcome}")
    record.save(target)


def record_adapters(record: Record, wanted: Callable[[], bool]) -> None:
    """Fill both factors of a LoRA that is loaded to train, and record them."""
    from fastdb.training.batches import generator
    from fastdb.training.methods import LoRA

    load = LoRA.load

    def loaded(self: LoRA, folder: Path, part: str, *arguments: Any) -> Any:
        module = load(self, folder, part, *arguments)
        for name, weight in self.weights(module).items() if wanted() else ():
            with torch.no_grad():
                weight += 0.02 * torch.randn(weight.shape, generator=generator(name))
            NAMES[weight] = f"{part != 'unet'} {name}"
            record.adapters[f"{part}.{name}"] = weight.detach().clone()
        return module

    LoRA.load = loaded  # type: ignore[method-assign]


def feed_adapters(adapters: dict[str, torch.Tensor]) -> None:
    """Give the script's adapters, once it prepares its models, the values of ours."""
    prepare = Accelerator.prepare

    def prepared(self: Accelerator, *parts: Any, **options: Any) -> Any:
        for module in (part for part in parts if isinstance(part, torch.nn.Module)):
            for name, weight in module.named_parameters():
                layer, found, factor = name.partition(".lora_")
                if not found:
                    continue
                part = "text_encoder" if ".self_attn." in name else "unet"
                layer = f"text_model.{layer.removeprefix('text_model.')}" if part == "text_encoder" else layer
                ours = f"{layer}.lora_{'down' if factor[0] == 'A' else 'up'}"
                NAMES[weight] = f"{part != 'unet'} {ours}"
                # A part that ours does not train in this stage keeps its own.
                if (values := adapters.get(f"{part}.{ours}")) is not None:
                    with torch.no_grad():
                        weight.copy_(values)
                elif factor[0] == "B":
                    torch.nn.init.zeros_(weight)
        return prepare(self, *parts, **options)

    Accelerator.prepare = prepared  # type: ignore[method-assign]


def run_script(script: Path, target: Path, gradients: bool, draws: Path | None, arguments: list[str]) -> None:
    """Run the script as a program, and record it."""
    record = Record()
    record_steps(record, gradients)
    stand_in()
    if draws is not None:
        ours = Record.load(draws)
        feed(ours.draws, str(script))
        feed_adapters(ours.adapters)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")
    record.save(target)


def stand_in() -> None:
    """Put stand-ins for the parts of torchvision that the script uses, and for diffusers' check of its own version."""
    import diffusers.utils
    import numpy as np
    from PIL import Image
    from transformers.utils import is_torchvision_available

    # The libraries look for torchvision once, and must not take the stand-in for it.
    if is_torchvision_available():
        sys.exit("torchvision is installed: this program puts a stand-in for it, and is for environments without it")

    def resize(size: int, interpolation: Image.Resampling) -> Callable[[Image.Image], Image.Image]:
        def resized(image: Image.Image) -> Image.Image:
            scale = size / min(image.size)
            return image.resize((round(image.width * scale), round(image.height * scale)), interpolation)

        return resized

    def crop(size: int) -> Callable[[Image.Image], Image.Image]:
        def cropped(image: Image.Image) -> Image.Image:
            left, top = (image.width - size) // 2, (image.height - size) // 2
            return image.crop((left, top, left + size, top + size))

        return cropped

    def compose(parts: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
        def composed(value: Any) -> Any:
            for part in parts:
                value = part(value)
            return value

        return composed

    transforms = types.ModuleType("torchvision.transforms")
    stand_ins = {
        "InterpolationMode": types.SimpleNamespace(
            BILINEAR=Image.Resampling.BILINEAR, LANCZOS=Image.Resampling.LANCZOS
        ),
        "Resize": resize,
        "CenterCrop": crop,
        "ToTensor": lambda: lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255),
        "Normalize": lambda mean, std: lambda pixels: (pixels - mean[0]) / std[0],
        "Compose": compose,
    }
    vars(transforms).update(stand_ins)
    torchvision = types.ModuleType("torchvision")
    torchvision.transforms = transforms  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": torchvision, "torchvision.transforms": transforms}
    diffusers.utils.check_min_version = lambda version: None
    # After training the script reads its own file, which fails with transformers 5.6 and later.
    diffusers.StableDiffusionPipeline.load_lora_weights = lambda *_, **__: None


def feed(draws: list[dict[str, Any]], script: str) -> None:
    """Make the script's data loader and random numbers those of `draws`."""
    from diffusers.models.autoencoders import vae

    batches: list[list[dict[str, Any]]] = []

    class Loader(torch.utils.data.DataLoader):  # type: ignore[type-arg]
        def __init__(self, dataset: Any, batch_size: int, collate_fn: Any, **_: Any) -> None:
            size = batch_size * (2 if dataset.class_data_root else 1)
            batches.extend(draws[first : first + size] for first in range(0, len(draws), size))
            whole = [collate_fn(examples(dataset, batch)) for batch in batches]
            super().__init__(whole, batch_size=1, collate_fn=lambda single: single[0])

    def examples(dataset: Any, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        paths = {"instance": dataset.instance_images_path, "class": getattr(dataset, "class_images_path", [])}
        numbers = {group: {path.name: number for number, path in enumerate(paths[group])} for group in paths}
        rows = {
            group: [dataset[numbers[group][row["image"]]] for row in batch if row["group"] == group] for group in paths
        }
        if not rows["class"]:
            return rows["instance"]
        return [
            {name: (prior if name.startswith("class") else instance)[name] for name in instance}
            for instance, prior in zip(rows["instance"], rows["class"], strict=True)
        ]

    def series(name: str) -> Callable[[], torch.Tensor]:
        """Return a function that returns these numbers of the next batch; accelerate fetches batches in advance."""
        count = itertools.count()
        return lambda: torch.stack([torch.as_tensor(row[name]) for row in batches[next(count)]])

    def from_script(ours: Callable[[], torch.Tensor], original: Callable[..., torch.Tensor]) -> Callable[..., Any]:
        def chosen(*arguments: Any, **options: Any) -> torch.Tensor:
            called_by_script = sys._getframe(1).f_code.co_filename == script
            return ours() if called_by_script else original(*arguments, **options)

        return chosen

    torch.utils.data.DataLoader = Loader  # type: ignore[misc]
    torch.randn_like = from_script(series("noise"), torch.randn_like)
    torch.randint = from_script(series("timestep"), torch.randint)
    posterior = series("posterior")
    vae.randn_tensor = lambda *_, **__: posterior()


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ours", "script"])
    parser.add_argument("subject", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("--gradients", action="store_true")
    parser.add_argument("--draws", type=Path)
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    chosen = parser.parse_args(own)
    torch.set_num_threads(1)
    if chosen.what == "ours":
        run_ours(chosen.subject, chosen.record, chosen.gradients)
    else:
        rest = sys.argv[len(own) + 2 :]
        run_script(chosen.subject.absolute(), chosen.record, chosen.gradients, chosen.draws, rest)


if __name__ == "__main__":
    main()
