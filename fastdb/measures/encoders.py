"""CLIP and DINO, which embed pictures and texts as vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from PIL.Image import Image
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, CLIPModel, ImageProcessingMixin
from transformers.utils import logging as transformers_logging

from fastdb.errors import ModelError

CLIP = ("openai/clip-vit-base-patch32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
DINO = ("facebook/dinov2-small",)
"""Names on the Hub, in order of preference: CLIP ViT-B/32, the paper's if it is offered as safetensors, and the small
DINOv2 (Oquab et al. 2023), which tells instances of a class apart better than the paper's DINO."""

BATCH = 16

BYTES = 256
"""Least size of CLIP's vocabulary, which has an entry for each byte."""


class Encoder(Protocol):
    """Embeds pictures as vectors of length 1."""

    name: str

    def images(self, pictures: Sequence[Image]) -> torch.Tensor:
        """Embed pictures, (pictures, width), float32 on the CPU."""


class Clip:
    """CLIP model that embeds pictures and texts as vectors of length 1."""

    def __init__(self, name: str, device: str) -> None:
        """Load the model from a folder or the Hub.

        Raises:
            ModelError: it cannot be loaded or downloaded.
        """
        self.name, self._device = name, device
        # Downloaded pickles could run code, so only safetensors are accepted.
        load = CLIPModel.from_pretrained
        self._model = _load(load, name, "--clip", use_safetensors=True).to(device).eval()
        self._processor = _load(_image_processor, name, "--clip")
        self._tokenizer = _load(AutoTokenizer.from_pretrained, name, "--clip")
        if len(self._tokenizer) < BYTES:  # transformers makes an empty tokenizer if the file is missing
            raise ModelError(
                "the tokenizer is missing", where=name, fix="Save or download the model again with its tokenizer."
            )

    @torch.no_grad()
    def images(self, pictures: Sequence[Image]) -> torch.Tensor:
        """Embed pictures, (pictures, width), float32 on the CPU."""

        def embed(batch: list[Image]) -> torch.Tensor:
            inputs = self._processor(images=batch, return_tensors="pt").to(self._device)
            features: torch.Tensor = self._model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
            return features

        return _embed(pictures, embed)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embed prompts, (prompts, width), float32 on the CPU; long prompts are truncated."""
        longest = self._model.config.text_config.max_position_embeddings

        def embed(batch: list[str]) -> torch.Tensor:
            inputs = self._tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            inputs = inputs.to(self._device)
            outputs = self._model.get_text_features(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            )
            features: torch.Tensor = outputs.pooler_output
            return features

        return _embed(prompts, embed)


class Dino:
    """Self-supervised vision transformer that embeds pictures by its class token, vectors of length 1."""

    def __init__(self, name: str, device: str) -> None:
        """Load the model from a folder or the Hub.

        Raises:
            ModelError: it cannot be loaded or downloaded.
        """
        self.name, self._device = name, device
        load = AutoModel.from_pretrained
        self._model = _load(load, name, "--dino", use_safetensors=True).to(device).eval()
        self._processor = _load(_image_processor, name, "--dino")

    @torch.no_grad()
    def images(self, pictures: Sequence[Image]) -> torch.Tensor:
        """Embed pictures, (pictures, width), float32 on the CPU."""

        def embed(batch: list[Image]) -> torch.Tensor:
            inputs = self._processor(images=batch, return_tensors="pt").to(self._device)
            states: torch.Tensor = self._model(pixel_values=inputs["pixel_values"]).last_hidden_state
            return states[:, 0]

        return _embed(pictures, embed)


def _embed(items: Sequence[Any], embed: Callable[[list[Any]], torch.Tensor]) -> torch.Tensor:
    """Embed items in batches and normalise the embeddings."""
    batches = [embed(list(items[at : at + BATCH])) for at in range(0, len(items), BATCH)]
    return normalize(torch.cat(batches).float(), dim=1).cpu()


def _load(from_pretrained: Callable[..., Any], name: str, option: str, **options: Any) -> Any:
    """Load a part of a model from a folder, the local cache, or else the Hub.

    Args:
        option: the command line's option for the model, named in errors.

    Raises:
        ModelError: it cannot be loaded or downloaded.
    """
    path = Path(name).expanduser()
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1):
        raise ModelError("the folder does not exist", where=name, fix=f"Pass {option} the folder of a saved model.")
    reason = ""
    for local in (True,) if path.is_dir() else (True, False):
        try:
            with _hidden_bar(local):
                return from_pretrained(str(path) if path.is_dir() else name, local_files_only=local, **options)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    what = "the model could not be loaded" if path.is_dir() else "the model is not cached and could not be downloaded"
    raise ModelError(
        f"{what} ({reason[:200]})",
        where=name,
        fix=f"Pass {option} the folder of a saved model, or connect to the network and run the same command again.",
    )


def _image_processor(name: str, **options: Any) -> Any:
    """Load the image processor of a model in its PIL version, which does not need torchvision."""
    config, _ = ImageProcessingMixin.get_image_processor_dict(name, **options)
    # openai/clip-vit-base-patch32 has the old key and the old name CLIPFeatureExtractor.
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    kind = kind.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    processor = getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind, None)
    if processor is None:
        raise ValueError(f"transformers has no image processor {kind}")
    return processor.from_dict(config)


@contextmanager
def _hidden_bar(hide: bool) -> Iterator[None]:
    """Hide the progress bar of loading, which is short, but not that of downloads."""
    shown = transformers_logging.is_progress_bar_enabled()
    if hide:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
