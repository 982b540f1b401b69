"""Gallery rank, which tells a picture of the subject from one of its class.

A cosine says little by itself: pictures of any dog are near to those of one dog. So each picture of the subject is
ranked among pictures of the class by its mean cosine to the instance images. The mean rank is the share of pairs in
which the picture of the subject is the nearer one, the area under the ROC curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fastdb.measures.intervals import rank_interval
from fastdb.measures.values import Value

BLIND = 0.8
"""Share of pairs below which an embedding does not tell the instance images from pictures of the class."""


def gallery_rank(similarities: Mapping[int, float], gallery: Sequence[float]) -> Value:
    """Return the share of pairs in which a picture has the larger similarity; equal ones count half.

    Args:
        similarities: of pictures of the subject to the instance images, by the picture's number.
        gallery: the same of pictures of the class.

    Returns:
        The share with its interval, and each picture's own share as its reading.
    """
    others = np.asarray(gallery, np.float64)
    ranks = {
        number: float((others < similarity).mean() + (others == similarity).mean() / 2)
        for number, similarity in similarities.items()
    }
    share = sum(ranks.values()) / len(ranks)
    low, high = rank_interval(share, len(ranks), len(others))
    return Value(share, low, high, len(ranks), ranks)


def tells_photos(instances: torch.Tensor, gallery: torch.Tensor) -> Value | None:
    """Return the share of pairs in which an instance image is nearer to the others than a picture of the class is.

    Args:
        instances, gallery: embeddings of length 1, (images, width).

    Returns:
        None for fewer than two instance images, or no picture of the class.
    """
    count = len(instances)
    if count < 2 or not len(gallery):
        return None
    among = instances @ instances.T
    own = (among.sum(1) - among.diagonal()) / (count - 1)
    to_each = gallery @ instances.T
    ranks = {}
    for number in range(count):
        apart = (to_each.sum(1) - to_each[:, number]) / (count - 1)
        ranks[number] = float((apart < own[number]).float().mean() + (apart == own[number]).float().mean() / 2)
    share = sum(ranks.values()) / count
    low, high = rank_interval(share, count, len(gallery))
    return Value(share, low, high, count, ranks)
