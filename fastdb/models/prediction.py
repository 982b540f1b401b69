"""What a UNet predicts, noise (epsilon) or velocity (v): as its file says, or asked of the UNet itself.

The files of Stable Diffusion 2.x for 512 px (epsilon) and for 768 px (v) hold tensors of the same names and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch

from fastdb.errors import ModelError
from fastdb.formats.reader import TensorFile, open_tensors
from fastdb.models.inspect import UNKNOWN_V, inspect
from fastdb.models.layouts.families import layout_of
from fastdb.models.layouts.layout import AGAIN, UNET_ROOT, Line, Shape
from fastdb.models.layouts.sd2_sizes import unet_sizes

Prediction = Literal["epsilon", "v_prediction"]
Progress = Callable[[int, int], None]

LATENT, TOKENS, VALUE, LAST_STEP = (4, 64, 64), 77, 0.5, 999
LIMIT = -1.0
"""A mean below it is that of a UNet that predicts v."""
DTYPE = torch.bfloat16
"""Half the memory, and a CPU is quick with it: one pass took 4 s on two cores, and in float16 more than 100 s."""


def prediction_of(path: Path, progress: Progress | None = None) -> tuple[Prediction, str]:
    """What the UNet of a model predicts, and what tells it, as `by modelspec.prediction_type`.

    Where metadata, keys or the scheduler tell, nothing is loaded; else see `ask_unet`.

    Raises:
        ModelError: it cannot be read, has no UNet, or predicts neither noise nor v.
        StorageError: the disk fails, or reading is forbidden.
    """
    said = inspect(path).prediction
    return ask_unet(path, progress) if said == UNKNOWN_V else told(path, said)


def told(path: Path, said: str) -> tuple[Prediction, str]:
    """The prediction that an inspection tells, and by what.

    Raises:
        ModelError: it tells of none of these.
    """
    kind, _, reason = said.partition(", ")
    if kind == "epsilon":
        return "epsilon", reason
    if kind in ("v", "v_prediction"):
        return "v_prediction", reason
    raise ModelError(
        f"predicts neither noise nor v, but {kind}" if said else "has no UNet",
        where=path,
        fix="Give a whole Stable Diffusion 1.x, 2.x or SDXL.",
    )


def ask_unet(path: Path, progress: Progress | None = None) -> tuple[Prediction, str]:
    """Find out what the UNet of a Stable Diffusion 2.x predicts by one pass on the CPU; only the UNet is loaded.

    A latent that is 0.5 everywhere, [1, 4, 64, 64], at the last step, 999, with text states that are 0.5 everywhere,
    [1, 77, width]: from a UNet that predicts noise comes about the latent again, from one that predicts v, of which at
    this step hardly anything but the picture's negative is left, something far below. So v where the mean of (output -
    latent) < -1, as in the fast-DreamBooth notebooks; AUTOMATIC1111's `is_using_v_parameterization_for_sd2` has it too.

    Args:
        path: an original file or one of diffusers, with or without the other parts.
        progress: called with (done, total): the UNet's tensors, and the pass as one more.

    Raises:
        ModelError: there is no whole UNet of a Stable Diffusion 2.x in it, or no number comes out.
        StorageError: the disk fails, or reading is forbidden.
    """
    from diffusers import UNet2DConditionModel

    file = open_tensors(path)
    stored = _stored(file)
    shapes: dict[str, Shape] = {line.original: file.tensors[name].shape for line, name in stored.items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_sizes(shapes).config())
    _fill(unet, file, stored, progress)
    latent = torch.full((1, *LATENT), VALUE, dtype=DTYPE)
    text = torch.full((1, TOKENS, unet.config["cross_attention_dim"]), VALUE, dtype=DTYPE)
    with torch.no_grad():
        out = unet(latent, torch.tensor([LAST_STEP]), text).sample
    if progress is not None:
        progress(len(stored) + 1, len(stored) + 1)
    mean = float((out.float() - VALUE).mean())
    if mean != mean or abs(mean) == float("inf"):
        raise ModelError("its UNet gives no numbers", where=path, fix="Choose another copy of this model.")
    kind: Prediction = "v_prediction" if mean < LIMIT else "epsilon"
    return kind, f"by asking its UNet (a mean of {mean:.2f}; below {LIMIT:.0f} is v)"


def _stored(file: TensorFile) -> dict[Line, str]:
    """Each line of the UNet's table, and the file's name for it: of an original file, of its UNet alone, of diffusers.

    Raises:
        ModelError: one is missing.
    """
    found = {}
    for line in layout_of("sd2").lines.values():
        if line.part == "unet":
            names = (line.original, line.original.removeprefix(f"{UNET_ROOT}."), line.names[0])
            name = next((name for name in names if name in file.tensors), None)
            if name is None:
                what = f"lacks a tensor of the UNet of a Stable Diffusion 2.x, {line.original}"
                raise ModelError(what, where=file.path, fix=AGAIN)
            found[line] = name
    return found


def _fill(unet: torch.nn.Module, file: TensorFile, stored: Mapping[Line, str], progress: Progress | None) -> None:
    """Give an empty UNet its weights in half precision, tensor by tensor.

    Raises:
        ModelError: a tensor has not the shape that follows from the others.
    """
    wanted, state = unet.state_dict(), {}
    for done, (line, name) in enumerate(stored.items(), start=1):
        (tensor,), (ours,) = line.split(file.read(name)), line.names
        if tensor.shape != wanted[ours].shape:
            what = f"{name} has the shape {list(tensor.shape)}, not {list(wanted[ours].shape)}"
            raise ModelError(what, where=file.path, fix=AGAIN)
        state[ours] = tensor.to(DTYPE, copy=True)
        file.forget()
        if progress is not None:
            progress(done, len(stored) + 1)
    unet.load_state_dict(state, strict=True, assign=True)
    unet.eval()
