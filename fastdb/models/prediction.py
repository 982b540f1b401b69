"""Prediction types of UNets, from metadata, from a `.yaml` file or by a probe.

The files of Stable Diffusion 2.x for 512 px (epsilon) and for 768 px (v) hold tensors of the same names and shapes.
AUTOMATIC1111 and other programs read `<name>.yaml` beside such a file; `write_yaml` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdb.errors import ModelError
from fastdb.models.detect import FLUX, SD2, SD3, Recognised
from fastdb.models.layouts.layout import AGAIN, UNET_ROOT, Line, Shape
from fastdb.models.layouts.sd2_sizes import UNetSizes, VAESizes, unet_sizes, vae_sizes
from fastdb.models.layouts.tables import layout_of
from fastdb.reporting import Progress
from fastdb.storage.atomic_write import explained, write_text

if TYPE_CHECKING:
    from torch.nn import Module

    from fastdb.formats.reader import TensorFile

LATENT, TOKENS, VALUE, LAST_STEP = (4, 64, 64), 77, 0.5, 999
PROBE_LIMIT = -1.0
"""A UNet with a mean below this predicts v."""

YAML_LIMIT = 1 << 16
"""Bytes of a `.yaml` file that are searched; the usual files have 2,000."""
YAML_HEAD = (
    "# The configuration of the model file of the same name, for programs that use the code of latent diffusion:\n"
    "# a Stable Diffusion 2.x whose UNet predicts {kind}. Made by fastdb from the shapes of the tensors.\n"
)
ATTENTION_RESOLUTIONS = [4, 2, 1]
"""The UNet has attention at these fractions of the latent's side."""


@dataclass(frozen=True)
class Prediction:
    """The prediction type of a model, and where it was found."""

    kind: str
    """`epsilon`, `v_prediction`, `flow` or another value of a scheduler; empty if unknown."""
    zero_snr: bool = False
    """Whether the last step of the noise schedule has a signal-to-noise ratio of zero."""
    source: str = ""
    """`key v_pred`, `modelspec.prediction_type`, `modelspec.architecture`, `yaml`, `scheduler`, `UNet probe`,
    `inpainting`, `family` (all models of the family have it) or `default` (most models of the family have it)."""
    mean: float | None = None
    """The mean that the UNet probe measured."""


UNKNOWN = Prediction("")


def declared_prediction(
    what: Recognised, names: Iterable[str], metadata: Mapping[str, str], path: Path
) -> Prediction | None:
    """Return the prediction type by a file's keys, metadata, family or `.yaml` file; None without a UNet."""
    if not what.parts or what.parts[0] not in ("UNet", "transformer"):
        return None
    if what.family in (SD3, FLUX):
        return Prediction("flow", source="family")
    names = set(names)
    # ComfyUI's markers: empty tensors of these names.
    zero_snr = "ztsnr" in names
    kinds = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
    if kind := kinds.get(metadata.get("modelspec.prediction_type", "").lower()):
        return Prediction(kind, zero_snr, "modelspec.prediction_type")
    if "v_pred" in names:
        return Prediction("v_prediction", zero_snr, "key v_pred")
    architecture = metadata.get("modelspec.architecture", "")
    for ending, kind in (("v2-768-v", "v_prediction"), ("v2-512", "epsilon")):
        if architecture.endswith(ending):
            return Prediction(kind, zero_snr, "modelspec.architecture")
    if what.family == SD2:
        return Prediction("epsilon", source="inpainting") if what.inpainting else _read_yaml(path) or UNKNOWN
    return Prediction("epsilon", zero_snr, "default") if what.family else UNKNOWN


def probe_unet(file: TensorFile, progress: Progress | None = None) -> Prediction:
    """Measure what the UNet of a Stable Diffusion 2.x predicts, by one pass on the CPU.

    The inputs are a latent of 0.5 everywhere, [1, 4, 64, 64], the last step, 999, and text states of 0.5 everywhere,
    [1, 77, width]. A UNet that predicts noise returns about the latent. The output of a UNet that predicts v is far
    below it: at this step v is almost the negative of the picture. So it predicts v if the mean of (output - latent) is
    below -1, as in the fast-DreamBooth notebooks and in AUTOMATIC1111's `is_using_v_parameterization_for_sd2`.

    Args:
        file: an original file or a file of diffusers, with or without the other parts; only the UNet is loaded.
        progress: called with (done, total): the UNet's tensors, and the pass as one more.

    Raises:
        ModelError: the file has no whole UNet of a Stable Diffusion 2.x, or the output is not finite.
        StorageError: the disk fails, or reading is forbidden.
    """
    import torch
    from diffusers import UNet2DConditionModel

    stored = _stored_names(file)
    shapes: dict[str, Shape] = {line.original: file.tensors[name].shape for line, name in stored.items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_sizes(shapes).config())
    # Half the memory of float32; on two CPU cores a pass took 4 s, and more than 100 s in float16.
    dtype = torch.bfloat16
    _load_weights(unet, file, stored, dtype, progress)
    latent = torch.full((1, *LATENT), VALUE, dtype=dtype)
    text = torch.full((1, TOKENS, unet.config["cross_attention_dim"]), VALUE, dtype=dtype)
    with torch.no_grad():
        out = unet(latent, torch.tensor([LAST_STEP]), text).sample
    if progress is not None:
        progress(len(stored) + 1, len(stored) + 1)
    mean = float((out.float() - VALUE).mean())
    if mean != mean or abs(mean) == float("inf"):
        raise ModelError("its UNet returns NaN or infinity", where=file.path, fix="Choose another copy of this model.")
    return Prediction("v_prediction" if mean < PROBE_LIMIT else "epsilon", source="UNet probe", mean=mean)


def _stored_names(file: TensorFile) -> dict[Line, str]:
    """Return the name of each tensor of the UNet in an original file, in a file of the UNet alone or of diffusers.

    Raises:
        ModelError: a tensor is missing.
    """
    stored = {}
    for line in layout_of("sd2").lines.values():
        if line.part == "unet":
            names = (line.original, line.original.removeprefix(f"{UNET_ROOT}."), line.names[0])
            name = next((name for name in names if name in file.tensors), None)
            if name is None:
                what = f"lacks a tensor of the UNet of a Stable Diffusion 2.x, {line.original}"
                raise ModelError(what, subject=file.path, fix=AGAIN)
            stored[line] = name
    return stored


def _load_weights(
    unet: Module, file: TensorFile, stored: Mapping[Line, str], dtype: Any, progress: Progress | None
) -> None:
    """Load an empty UNet tensor by tensor.

    Raises:
        ModelError: the shape of a tensor does not follow from the others.
    """
    expected, state = unet.state_dict(), {}
    for done, (line, name) in enumerate(stored.items(), start=1):
        (tensor,), (modern,) = line.split(file.read(name)), line.names
        if tensor.shape != expected[modern].shape:
            what = f"{name} has the shape {list(tensor.shape)}, not {list(expected[modern].shape)}"
            raise ModelError(what, where=file.path, fix=AGAIN)
        state[modern] = tensor.to(dtype, copy=True)
        file.forget()
        if progress is not None:
            progress(done, len(stored) + 1)
    unet.load_state_dict(state, strict=True, assign=True)
    unet.eval()


# The `.yaml` file of the same name.


def _read_yaml(path: Path) -> Prediction | None:
    """Return the prediction type by the `.yaml` file beside a model, as latent diffusion reads it."""
    file = path.with_suffix(".yaml")
    if not file.is_file():
        return None
    with explained(file), file.open("rb") as stream:
        text = stream.read(YAML_LIMIT)
    if b"LatentDiffusion" not in text:
        return None
    velocity = re.search(rb"""^[ ]*parameterization:[ ]*["']?v["']?[ ]*(#.*)?\r?$""", text, re.MULTILINE)
    return Prediction("v_prediction" if velocity else "epsilon", source="yaml")


def write_yaml(target: Path, shapes: Mapping[str, Shape], kind: str) -> Path:
    """Write the `.yaml` file of a Stable Diffusion 2.x beside `target`, and return its path.

    A file of that name described the model that `target` replaces, and is replaced too.

    Args:
        shapes: of the model's tensors, by the keys of an original file.
        kind: `epsilon` or `v_prediction`.

    Raises:
        ModelError: a tensor that determines the model's size is missing.
        StorageError: it cannot be written.
    """
    import yaml

    name = "v (velocity)" if kind == "v_prediction" else "noise (epsilon)"
    text = yaml.safe_dump(_ldm_config(shapes, kind), sort_keys=False, default_flow_style=None)
    file = target.with_suffix(".yaml")
    write_text(file, YAML_HEAD.format(kind=name) + text)
    return file


def _ldm_config(shapes: Mapping[str, Shape], kind: str) -> dict[str, Any]:
    """Return the configuration of a Stable Diffusion 2.x for the code of latent diffusion (`ldm`).

    The keys and all values that no shape determines (noise schedule, scale of latents, the text encoder, of which the
    last layer but one is read) are those of Stability's `v2-inference.yaml` and `v2-inference-v.yaml`. The text encoder
    is always OpenCLIP ViT-H/14: such a file has no field for its sizes.

    Raises:
        ModelError: a tensor that determines the model's size is missing.
    """
    vae = vae_sizes(shapes)
    params = {
        **({"parameterization": "v"} if kind == "v_prediction" else {}),
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": vae.latent,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": 0.18215,
        "use_ema": False,
        "unet_config": _unet_config(unet_sizes(shapes)),
        "first_stage_config": _vae_config(vae),
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
            "params": {"freeze": True, "layer": "penultimate"},
        },
    }
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    return {"model": {"base_learning_rate": 1.0e-4, "target": target, "params": params}}


def _unet_config(unet: UNetSizes) -> dict[str, Any]:
    return {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {
            "use_checkpoint": True,
            "use_fp16": True,
            "image_size": 32,
            "in_channels": unet.takes,
            "out_channels": unet.gives,
            "model_channels": unet.widths[0],
            "attention_resolutions": ATTENTION_RESOLUTIONS,
            "num_res_blocks": 2,
            "channel_mult": [width // unet.widths[0] for width in unet.widths],
            "num_head_channels": unet.head,
            "use_spatial_transformer": True,
            "use_linear_in_transformer": True,
            "transformer_depth": 1,
            "context_dim": unet.context,
            "legacy": False,
        },
    }


def _vae_config(vae: VAESizes) -> dict[str, Any]:
    return {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": vae.latent,
            "monitor": "val/rec_loss",
            "ddconfig": {
                "double_z": True,
                "z_channels": vae.latent,
                "resolution": 256,
                "in_channels": vae.picture,
                "out_ch": vae.picture,
                "ch": vae.widths[0],
                "ch_mult": [width // vae.widths[0] for width in vae.widths],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
            },
            "lossconfig": {"target": "torch.nn.Identity"},
        },
    }
