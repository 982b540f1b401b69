"""Adapters and metadata for the export of a session's LoRA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fastdb.checkpoints.export_parts import export_metadata
from fastdb.checkpoints.progress import STAGES
from fastdb.config import LoRAConfig
from fastdb.formats.reader import open_tensors
from fastdb.images.photo_files import photos_in
from fastdb.models.diffusers_folder import BaseModel
from fastdb.models.lora.adapter import is_adapter, read_adapter
from fastdb.models.lora.forms import Adapters, Form
from fastdb.sessions.session import Session


def adapters_of(parts: Mapping[str, Path]) -> Adapters:
    """Return the adapters among the weight files of `export_parts`."""
    opened = {part: open_tensors(parts[part]) for part in STAGES}
    return {part: read_adapter(file) for part, file in opened.items() if is_adapter(file.tensors)}


def lora_metadata(
    session: Session, base: BaseModel, adapters: Adapters, done: Mapping[str, int], stem: str, form: Form
) -> dict[str, str]:
    """Return the header metadata of a LoRA, in the diffusers form without the keys of sd-scripts.

    Web UIs take the family from `ss_base_model_version` and `modelspec.architecture`, the alias in prompts from
    `ss_output_name`, and the trigger from `ss_tag_frequency`, which contains no captions here.

    Args:
        stem: of the file's name.
    """
    config = session.config
    metadata = {**export_metadata(session, base, done), "modelspec.architecture": "stable-diffusion-v1/lora"}
    if form == "diffusers":
        return metadata
    trigger, images = session.record.subject.token, len(photos_in(session.instance_images))
    size = config.resolution
    tags = {session.name: {trigger: images}} if trigger else {}
    return {
        **metadata,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.lora.rank),
        "ss_network_alpha": f"{_alpha(config.lora):g}",
        "ss_network_args": json.dumps(_convolutions(config.lora)),
        "ss_base_model_version": f"sd_v1{'_v' if base.prediction_type == 'v_prediction' else ''}",
        "ss_v2": "False",
        "ss_sd_model_name": Path(session.record.base_model.source or session.record.base_model.folder).name,
        "ss_output_name": stem,
        "ss_resolution": f"({size}, {size})",
        "ss_steps": str(done["unet"]),
        "ss_max_train_steps": str(config.unet.all_steps),
        "ss_num_train_images": str(images),
        "ss_num_reg_images": str(config.prior.class_images),
        "ss_learning_rate": f"{config.unet.learning_rate:g}",
        "ss_unet_lr": f"{config.unet.learning_rate:g}" if "unet" in adapters else "None",
        "ss_text_encoder_lr": f"{config.text_encoder.learning_rate:g}" if "text_encoder" in adapters else "None",
        "ss_seed": str(config.seed),
        "ss_tag_frequency": json.dumps(tags),
        "ss_dataset_dirs": json.dumps({session.name: {"n_repeats": 1, "img_count": images}}),
    }


def _alpha(config: LoRAConfig) -> float:
    """Return the alpha of every layer, whose ratio to the rank is the scale in training."""
    return config.scale * config.rank


def _convolutions(config: LoRAConfig) -> dict[str, str]:
    """Return the arguments of sd-scripts' network for the ResNet blocks."""
    if config.targets != "kohya-conv":
        return {}
    return {"conv_dim": str(config.rank), "conv_alpha": f"{_alpha(config):g}"}
