"""Likeness for real models: CLIP and DINO similarities, as DreamBooth's authors measure (Ruiz et al. 2023, section 4).

CLIP-I and DINO are the mean cosine similarity between pictures of the subject and the instance images, of CLIP's
(Radford et al. 2021) and DINO's (Caron et al. 2021) image embeddings; CLIP-T is that between a picture's and its
prompt's CLIP embeddings. Their similarity of class pictures to the subject (PRES) and their diversity of pictures of
one prompt (DIV) are here, too, diversity as 1 - mean cosine in place of LPIPS.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL.Image import Image
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, CLIPModel, ImageProcessingMixin
from transformers.utils import logging as remarks

from fastdb.errors import ModelError
from fastdb.evaluation.measures import Figure, Limit, Measured, Taken, Value, difference, gathered
from fastdb.evaluation.prompts import CLASS, CONTEXT, OTHERS, SUBJECT, without

CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
"""ViT-B/32 and ViT-S/16, those of the paper, by their names on the Hub."""

BATCH = 16

BYTES = 256
"""CLIP's vocabulary has at least an entry for each."""

FIGURES = (
    Figure("dino", "subject and context pictures like the instance images (DINO cosine)", True, goal=True),
    Figure("clip_i", "subject and context pictures like the instance images (CLIP cosine)", True, goal=True),
    Figure(
        "clip_t",
        "context pictures like their prompts (CLIP cosine)",
        True,
        limit=Limit(times=1, plus=-0.03),
        broken="the prompts are no longer followed",
    ),
    Figure("class_clip_i", "class pictures like the instance images (CLIP cosine)", False),
    Figure(
        "leak",
        "how much more class pictures are like the instance images than at step 0",
        False,
        limit=Limit(plus=0.05),
        broken="the class without the identifier turns into the subject",
        prior=True,
    ),
    Figure(
        "others",
        "unrelated pictures like their prompts (CLIP cosine)",
        True,
        limit=Limit(times=1, plus=-0.03),
        broken="what has nothing to do with the subject has drifted",
        prior=True,
    ),
    Figure(
        "copies",
        "share of context pictures as near to an instance image as those are to each other",
        False,
        limit=Limit(plus=0.5),
        broken="pictures nearly equal the instance images whatever is asked for",
    ),
    Figure(
        "diversity",
        "how different pictures of one subject or context prompt are (1 - mean CLIP cosine)",
        True,
        limit=Limit(times=0.5),
        broken="pictures of one prompt are too much alike",
    ),
)
"""Where the limits lie is our judgement, and no result of the paper's."""


class Likeness:
    """The measure of CLIP and, where there is one, DINO, held against a session's instance images."""

    def __init__(self, clip: Clip, dino: Dino | None, instance_images: Sequence[Image], token: str) -> None:
        """Embed the instance images; `token` is left out of prompts, since CLIP cannot know what it stands for."""
        self._clip, self._dino, self._token = clip, dino, token
        self._instances = clip.images(instance_images)
        self._dino_instances = dino.images(instance_images) if dino else None

    @property
    def about(self) -> str:
        """Which models measure."""
        return f"CLIP {self._clip.name}" + (f", DINO {self._dino.name}" if self._dino else "; no DINO")

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Those with DINO only where there is one: the paper's authors trust it more, so both count as likeness."""
        return FIGURES if self._dino else FIGURES[1:]

    def read(self, taken: Sequence[Taken]) -> Measured:
        """Measure pictures; each is told its CLIP-I, CLIP-T, DINO and its nearest instance image's similarity."""
        if not taken:
            return Measured({})
        pictures = [one.picture for one in taken]
        embedded = self._clip.images(pictures)
        texts = self._clip.texts([without(one.shot.prompt, self._token) for one in taken])
        alike = embedded @ self._instances.T
        told = {
            "clip_i": alike.mean(1).tolist(),
            "clip_t": (embedded * texts).sum(1).tolist(),
            "nearest": alike.max(1).values.tolist(),
        }
        near = self._instances
        if self._dino is not None and self._dino_instances is not None:
            seen = self._dino.images(pictures) @ self._dino_instances.T
            told |= {"dino": seen.mean(1).tolist(), "nearest": seen.max(1).values.tolist()}
            near = self._dino_instances
        lines = [dict(zip(told, numbers, strict=True)) for numbers in zip(*told.values(), strict=True)]
        return Measured(self._values(taken, lines, embedded, mutual(near)), lines)

    def compare(self, now: Mapping[str, Value], start: Mapping[str, Value]) -> dict[str, Value]:
        """The leak: by how much class pictures have come nearer to the instance images."""
        both = "class_clip_i" in now and "class_clip_i" in start
        return {"leak": difference(now["class_clip_i"], start["class_clip_i"])} if both else {}

    def _values(
        self, taken: Sequence[Taken], lines: Sequence[dict[str, float]], embedded: torch.Tensor, known: float | None
    ) -> dict[str, Value]:
        def of(name: str, *groups: str) -> list[float]:
            pairs = zip(taken, lines, strict=True)
            return [line[name] for one, line in pairs if one.shot.group in groups and name in line]

        nearest = of("nearest", CONTEXT) if known is not None else []
        return gathered(
            {
                "dino": of("dino", SUBJECT, CONTEXT),
                "clip_i": of("clip_i", SUBJECT, CONTEXT),
                "clip_t": of("clip_t", CONTEXT),
                "class_clip_i": of("clip_i", CLASS),
                "others": of("clip_t", OTHERS),
                "copies": [float(one >= (known or 0.0)) for one in nearest],
                "diversity": diversity(taken, embedded),
            }
        )


def mutual(instances: torch.Tensor) -> float | None:
    """How near instance images are to each other: the mean over them of the cosine to their nearest other one.

    Args:
        instances: embeddings of length 1, (images, width). One image alone gives None.
    """
    if len(instances) < 2:
        return None
    alike = instances @ instances.T
    alike.fill_diagonal_(-1.0)
    return float(alike.max(1).values.mean())


def diversity(taken: Sequence[Taken], embedded: torch.Tensor) -> list[float]:
    """For each subject or context prompt, 1 - the mean cosine of two pictures of it (DIV, with cosine for LPIPS)."""
    places: dict[str, list[int]] = defaultdict(list)
    for number, one in enumerate(taken):
        if one.shot.group in (SUBJECT, CONTEXT):
            places[one.shot.prompt].append(number)
    alike = embedded @ embedded.T
    found = []
    for numbers in places.values():
        pairs = [float(alike[one, other]) for one, other in combinations(numbers, 2)]
        if pairs:
            found.append(1 - sum(pairs) / len(pairs))
    return found


class Clip:
    """A CLIP model: pictures and texts as embeddings of length 1."""

    def __init__(self, name: str, device: str) -> None:
        """Load it from a folder or the Hub.

        Raises:
            ModelError: it cannot be had.
        """
        self.name, self._device = name, device
        self._model = load(CLIPModel, name, "--clip").to(device).eval()
        self._eyes = load(_Eyes, name, "--clip")
        self._tokenizer = load(AutoTokenizer, name, "--clip")
        if len(self._tokenizer) < BYTES:  # transformers makes an empty one where it finds no file
            raise ModelError("has no vocabulary", where=name, fix="Save or download the model again, tokenizer too.")

    @torch.no_grad()
    def images(self, pictures: Sequence[Image]) -> torch.Tensor:
        """Embeddings of pictures, (pictures, width), float32 on the CPU."""
        found = []
        for at in range(0, len(pictures), BATCH):
            seen = self._eyes(images=list(pictures[at : at + BATCH]), return_tensors="pt").to(self._device)
            found.append(self._model.get_image_features(pixel_values=seen["pixel_values"]).pooler_output)
        return normalize(torch.cat(found).float(), dim=1).cpu()

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings of prompts, (prompts, width), float32 on the CPU; what is too long for CLIP is cut."""
        found, longest = [], self._model.config.text_config.max_position_embeddings
        for at in range(0, len(prompts), BATCH):
            said = self._tokenizer(
                list(prompts[at : at + BATCH]), padding=True, truncation=True, max_length=longest, return_tensors="pt"
            ).to(self._device)
            answer = self._model.get_text_features(input_ids=said["input_ids"], attention_mask=said["attention_mask"])
            found.append(answer.pooler_output)
        return normalize(torch.cat(found).float(), dim=1).cpu()


class Dino:
    """A self-supervised vision transformer: pictures as the last state of its class token, of length 1."""

    def __init__(self, name: str, device: str, *, here: bool = False) -> None:
        """Load it from a folder or the Hub; `here` allows only what is on this machine.

        Raises:
            ModelError: it cannot be had.
        """
        self.name, self._device = name, device
        self._model = load(AutoModel, name, "--dino", here=here).to(device).eval()
        self._eyes = load(_Eyes, name, "--dino", here=here)

    @torch.no_grad()
    def images(self, pictures: Sequence[Image]) -> torch.Tensor:
        """Embeddings of pictures, (pictures, width), float32 on the CPU."""
        found = []
        for at in range(0, len(pictures), BATCH):
            seen = self._eyes(images=list(pictures[at : at + BATCH]), return_tensors="pt").to(self._device)
            found.append(self._model(pixel_values=seen["pixel_values"]).last_hidden_state[:, 0])
        return normalize(torch.cat(found).float(), dim=1).cpu()


def load(kind: Any, name: str, option: str, *, here: bool = False) -> Any:
    """Something of transformers by its folder or its name on the Hub; what lies on this machine goes first.

    Args:
        kind: has `from_pretrained`.
        option: of the command line, which takes a folder; the message names it.
        here: do not fetch.

    Raises:
        ModelError: it cannot be had.
    """
    path = Path(name).expanduser()
    # From a download only what can run no code: weights as safetensors, no pickle.
    options = {"use_safetensors": True} if kind in (CLIPModel, AutoModel) else {}
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1):
        raise ModelError("there is no such folder", where=name, fix=f"Give {option} the folder of a saved model.")
    said = ""
    for local in (True,) if path.is_dir() or here else (True, False):
        try:
            with _without_bar(local):
                return kind.from_pretrained(str(path) if path.is_dir() else name, local_files_only=local, **options)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            said = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    what = "cannot be loaded" if path.is_dir() else "is not on this machine and cannot be fetched"
    raise ModelError(
        f"{what} ({said[:200]})",
        where=name,
        fix=f"Give {option} the folder of a saved model, or connect to the network and run the same command again.",
    )


class _Eyes:
    """The image processor that a model was saved with, as transformers has it for PIL: torchvision is not needed."""

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> Any:
        """The processor by what `preprocessor_config.json` calls it, in one of its names over the years."""
        told, _ = ImageProcessingMixin.get_image_processor_dict(name, **options)
        kind = str(told.get("image_processor_type") or told.get("feature_extractor_type"))
        kind = kind.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
        processor = getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind, None)
        if processor is None:
            raise ValueError(f"transformers knows no image processor {kind}")
        return processor.from_dict(told)


@contextmanager
def _without_bar(wanted: bool) -> Iterator[None]:
    """Hide the bar of loading, which takes a moment; that of fetching stays."""
    shown = remarks.is_progress_bar_enabled()
    if wanted:
        remarks.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            remarks.enable_progress_bar()
