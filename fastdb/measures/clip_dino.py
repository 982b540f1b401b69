"""Likeness of real models by CLIP and DINO similarity.

As in DreamBooth (Ruiz et al. 2023, section 4), CLIP-I and DINO are the mean cosine similarity between the embeddings of
subject pictures and instance images by CLIP (Radford et al. 2021) and DINO (Caron et al. 2021); CLIP-T is that between
the CLIP embeddings of a picture and its prompt. The paper's PRES (similarity of class pictures to the subject) and DIV
(diversity of pictures of a prompt) are measured too, diversity as 1 - mean cosine instead of by LPIPS.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from PIL.Image import Image

from fastdb.measures.encoders import Clip, Encoder
from fastdb.measures.gallery import BLIND, gallery_rank, tells_photos
from fastdb.measures.shots import CLASS, CONTEXT, GOALS, OTHERS, SUBJECT, Shot, without
from fastdb.measures.values import Figure, Limit, Measured, Taken, Value, values_of
from fastdb.reporting import Note

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
    Figure("gallery", "share of pairs in which a subject's picture is nearer to the photos than a class image", True),
    Figure(
        "gallery_base",
        "share of pairs in which a subject's picture is nearer to the photos than step 0's class picture",
        True,
    ),
    Figure(
        "photos_told",
        "share of pairs in which a photo is nearer to the others than a picture of the class; below 0.8 the embedding "
        "cannot tell the subject",
        True,
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
    Figure("drift", "change of unrelated pictures since step 0 with the same seeds (1 - cosine)", False),
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

    The pictures that are read first are those of the untrained base, with which later ones are compared.

    Attributes:
        name: the models, see `Measure`.
        figures: without DINO its figure is left out. With it both count as likeness, as in the paper.
    """

    def __init__(
        self,
        clip: Clip,
        dino: Encoder | None,
        instance_images: Sequence[Image],
        token: str,
        class_images: Sequence[Image] = (),
    ) -> None:
        """Embed the instance images. `token` is removed from prompts because CLIP does not know it."""
        self.name = f"CLIP {clip.name}" + (f", DINO {dino.name}" if dino else "; no DINO")
        self.figures: tuple[Figure, ...] = FIGURES if dino else FIGURES[1:]
        self._clip, self._dino, self._token = clip, dino, token
        self._clip_instances = clip.images(instance_images)
        # DINO where it is there: CLIP is trained to see the class, not the instance.
        self._embedding: Encoder = dino or clip
        self._instances = dino.images(instance_images) if dino else self._clip_instances
        self._class_images = self._embedding.images(class_images) if class_images else None
        self._start: dict[Shot, torch.Tensor] | None = None
        self._photos_told: Value | None = None

    def read(self, taken: Sequence[Taken]) -> Measured:
        """Measure pictures; readings are CLIP-I, CLIP-T, DINO and the similarity to the nearest instance image."""
        if not taken:
            return Measured({})
        pictures = [item.picture for item in taken]
        embedded = self._clip.images(pictures)
        texts = self._clip.texts([without(item.shot.prompt, self._token) for item in taken])
        similarity = embedded @ self._clip_instances.T
        readings = {
            "clip_i": similarity.mean(1).tolist(),
            "clip_t": (embedded * texts).sum(1).tolist(),
            "nearest": similarity.max(1).values.tolist(),
        }
        own = embedded
        if self._dino is not None:
            own = self._dino.images(pictures)
            similarity = own @ self._instances.T
            readings |= {"dino": similarity.mean(1).tolist(), "nearest": similarity.max(1).values.tolist()}
        lines = [dict(zip(readings, numbers, strict=True)) for numbers in zip(*readings.values(), strict=True)]
        values = _values(taken, lines, embedded, _nearest_of_instances(self._instances))
        return Measured({**values, **self._compared(taken, own)}, lines, [item.shot for item in taken])

    def remarks(self) -> list[Note]:
        """Return a note if the embedding cannot tell the instance images from pictures of their class."""
        share = self._photos_told
        if share is None or share.mean >= BLIND:
            return []
        return [Note("embedding blind", self._embedding.name, f"{share.mean:.0%}")]

    def _compared(self, taken: Sequence[Taken], embedded: torch.Tensor) -> dict[str, Value]:
        """Return the figures by class images and by the pictures of step 0, which are read first."""
        now = dict(zip((item.shot for item in taken), embedded, strict=True))
        begins, self._start = self._start is None, self._start or now
        base = _of_class(self._start)
        subject = {
            number: float((row @ self._instances.T).mean())
            for number, (item, row) in enumerate(zip(taken, embedded, strict=True))
            if item.shot.group in GOALS
        }
        values: dict[str, Value] = {}
        for name, gallery in (("gallery", self._class_images), ("gallery_base", base)):
            if gallery is not None and subject:
                values[name] = gallery_rank(subject, (gallery @ self._instances.T).mean(1).tolist())
        if begins:
            gallery = base if self._class_images is None else self._class_images
            if gallery is not None and (share := tells_photos(self._instances, gallery)) is not None:
                self._photos_told = values["photos_told"] = share
            return values
        drift: dict[int, float | bool] = {
            number: 1 - float(now[item.shot] @ self._start[item.shot])
            for number, item in enumerate(taken)
            if item.shot.group == OTHERS and item.shot in self._start
        }
        return {**values, **values_of({"drift": drift})}

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


def _of_class(embedded: Mapping[Shot, torch.Tensor]) -> torch.Tensor | None:
    """Return the embeddings of pictures of the class, (pictures, width); None if there are none."""
    rows = [row for shot, row in embedded.items() if shot.group == CLASS]
    return torch.stack(rows) if rows else None
