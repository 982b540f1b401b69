"""Likeness of real models by CLIP and DINO similarity.

As in DreamBooth (Ruiz et al. 2023, section 4), CLIP-I and DINO are the mean cosine similarity between the embeddings of
subject pictures and instance images by CLIP (Radford et al. 2021) and DINO (Caron et al. 2021); CLIP-T is that between
the CLIP embeddings of a picture and its prompt. The paper's PRES (similarity of class pictures to the subject) and DIV
(diversity of pictures of a prompt) are measured too, diversity as 1 - mean cosine instead of by LPIPS.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL.Image import Image
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, CLIPModel, ImageProcessingMixin
from transformers.utils import logging as transformers_logging

from fastdb.errors import ModelError
from fastdb.measures.shots import CLASS, CONTEXT, OTHERS, SUBJECT, without
from fastdb.measures.values import Figure, Limit, Measured, Taken, Value, values_of

CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
"""Names on the Hub of the paper's models, ViT-B/32 and ViT-S/16."""

BATCH = 16

BYTES = 256
"""Least size of CLIP's vocabulary, which has an entry for each byte."""

FIGURES = (
    Figure("dino", "similarity of subject and context pictures to instance images (DINO cosine)", True, goal=True),
    Figure("clip_i", "similarity of subject and context pictures to instance images (CLIP cosine)", True, goal=True),
    Figure(
        "clip_t",
        "similarity of context pictures to their prompts (CLIP cosine)",
        True,
        limit=Limit(times=1, plus=-0.03),
        broken="prompts are no longer followed",
    ),
    Figure("class_clip_i", "similarity of class pictures to instance images (CLIP cosine)", False),
    Figure(
        "leak",
        "increase of class_clip_i since step 0",
        False,
        limit=Limit(plus=0.05),
        broken="the class without the identifier turns into the subject",
        prior=True,
    ),
    Figure(
        "others",
        "similarity of unrelated pictures to their prompts (CLIP cosine)",
        True,
        limit=Limit(times=1, plus=-0.03),
        broken="unrelated pictures have drifted",
        prior=True,
    ),
    Figure(
        "copies",
        "share of context pictures as similar to an instance image as instance images are to each other",
        False,
        limit=Limit(plus=0.5),
        broken="pictures copy the instance images regardless of the prompt",
    ),
    Figure(
        "diversity",
        "dissimilarity of pictures of the same subject or context prompt (1 - mean CLIP cosine)",
        True,
        limit=Limit(times=0.5),
        broken="pictures of the same prompt are too similar",
    ),
)
"""The limits are our judgement, not results of the paper."""


class Likeness:
    """Measure by CLIP and, if available, DINO against the instance images of a session.

    Attributes:
        name: the models, see `Measure`.
        figures: without DINO its figure is left out. With it both count as likeness, as in the paper.
    """

    def __init__(self, clip: Clip, dino: Dino | None, instance_images: Sequence[Image], token: str) -> None:
        """Embed the instance images. `token` is removed from prompts because CLIP does not know it."""
        self.name = f"CLIP {clip.name}" + (f", DINO {dino.name}" if dino else "; no DINO")
        self.figures: tuple[Figure, ...] = FIGURES if dino else FIGURES[1:]
        self._clip, self._dino, self._token = clip, dino, token
        self._instances = clip.images(instance_images)
        self._dino_instances = dino.images(instance_images) if dino else None

    def read(self, taken: Sequence[Taken]) -> Measured:
        """Measure pictures; readings are CLIP-I, CLIP-T, DINO and the similarity to the nearest instance image."""
        if not taken:
            return Measured({})
        pictures = [item.picture for item in taken]
        embedded = self._clip.images(pictures)
        texts = self._clip.texts([without(item.shot.prompt, self._token) for item in taken])
        similarity = embedded @ self._instances.T
        readings = {
            "clip_i": similarity.mean(1).tolist(),
            "clip_t": (embedded * texts).sum(1).tolist(),
            "nearest": similarity.max(1).values.tolist(),
        }
        instances = self._instances
        if self._dino is not None and self._dino_instances is not None:
            instances = self._dino_instances
            similarity = self._dino.images(pictures) @ instances.T
            readings |= {"dino": similarity.mean(1).tolist(), "nearest": similarity.max(1).values.tolist()}
        lines = [dict(zip(readings, numbers, strict=True)) for numbers in zip(*readings.values(), strict=True)]
        values = _values(taken, lines, embedded, _nearest_of_instances(instances))
        return Measured(values, lines, [item.shot for item in taken])

    def compare(self, now: Mapping[str, Value], start: Mapping[str, Value]) -> dict[str, Value]:
        """Return the leak, the increase in similarity of class pictures to the instance images, picture by picture."""
        if "class_clip_i" not in now or "class_clip_i" not in start:
            return {}
        if now["class_clip_i"] is start["class_clip_i"]:
            return {"leak": Value(0.0, count=start["class_clip_i"].count)}
        return {"leak": now["class_clip_i"] - start["class_clip_i"]}


def _values(
    taken: Sequence[Taken], lines: Sequence[dict[str, float]], embedded: torch.Tensor, copy_threshold: float | None
) -> dict[str, Value]:
    """Return the figures from each picture's readings and CLIP embedding; no copies without a threshold."""

    def select(name: str, *groups: str) -> dict[int, float | bool]:
        pairs = enumerate(zip(taken, lines, strict=True))
        return {number: line[name] for number, (item, line) in pairs if item.shot.group in groups and name in line}

    nearest = select("nearest", CONTEXT) if copy_threshold is not None else {}
    return values_of(
        {
            "dino": select("dino", SUBJECT, CONTEXT),
            "clip_i": select("clip_i", SUBJECT, CONTEXT),
            "clip_t": select("clip_t", CONTEXT),
            "class_clip_i": select("clip_i", CLASS),
            "others": select("clip_t", OTHERS),
            "copies": {number: similarity >= (copy_threshold or 0.0) for number, similarity in nearest.items()},
            "diversity": _diversity(taken, embedded),
        }
    )


def _nearest_of_instances(instances: torch.Tensor) -> float | None:
    """Return the mean cosine of each instance image to the nearest other instance image.

    Args:
        instances: embeddings of length 1, (images, width); None is returned for fewer than two.
    """
    if len(instances) < 2:
        return None
    similarity = instances @ instances.T
    similarity.fill_diagonal_(-1.0)
    return float(similarity.max(1).values.mean())


def _diversity(taken: Sequence[Taken], embedded: torch.Tensor) -> dict[int, float | bool]:
    """Return 1 - the mean cosine of two pictures of each subject or context prompt (DIV, with cosine for LPIPS).

    Each is given by the number of the prompt's first picture.
    """
    numbers_by_prompt: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(taken):
        if item.shot.group in (SUBJECT, CONTEXT):
            numbers_by_prompt[item.shot.prompt].append(number)
    similarity = embedded @ embedded.T
    values: dict[int, float | bool] = {}
    for numbers in numbers_by_prompt.values():
        pairs = [float(similarity[first, second]) for first, second in combinations(numbers, 2)]
        if pairs:
            values[numbers[0]] = 1 - sum(pairs) / len(pairs)
    return values


class Clip:
    """CLIP model that embeds pictures and texts as vectors of length 1."""

    def __init__(self, name: str, device: str, *, local_only: bool = False) -> None:
        """Load the model from a folder or the Hub; `local_only` does not download.

        Raises:
            ModelError: it cannot be loaded or downloaded.
        """
        self.name, self._device = name, device
        # Downloaded pickles could run code, so only safetensors are accepted.
        load = CLIPModel.from_pretrained
        self._model = _load(load, name, "--clip", local_only=local_only, use_safetensors=True).to(device).eval()
        self._processor = _load(_image_processor, name, "--clip", local_only=local_only)
        self._tokenizer = _load(AutoTokenizer.from_pretrained, name, "--clip", local_only=local_only)
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

    def __init__(self, name: str, device: str, *, local_only: bool = False) -> None:
        """Load the model from a folder or the Hub; `local_only` does not download.

        Raises:
            ModelError: it cannot be loaded or downloaded.
        """
        self.name, self._device = name, device
        load = AutoModel.from_pretrained
        self._model = _load(load, name, "--dino", local_only=local_only, use_safetensors=True).to(device).eval()
        self._processor = _load(_image_processor, name, "--dino", local_only=local_only)

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


def _load(
    from_pretrained: Callable[..., Any], name: str, option: str, *, local_only: bool = False, **options: Any
) -> Any:
    """Load a part of a model from a folder, the local cache, or else the Hub.

    Args:
        option: the command line's option for the model, named in errors.
        local_only: do not download.

    Raises:
        ModelError: it cannot be loaded or downloaded.
    """
    path = Path(name).expanduser()
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1):
        raise ModelError("the folder does not exist", where=name, fix=f"Pass {option} the folder of a saved model.")
    reason = ""
    for local in (True,) if path.is_dir() or local_only else (True, False):
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
