"""Gallery rank, the share of pairs in which a picture of the subject is nearer than one of the class."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scipy.stats import norm

from fastdb.measures.gallery import gallery_rank, tells_photos
from fastdb.measures.intervals import rank_interval


def test_the_rank_is_the_share_of_pairs() -> None:
    found = gallery_rank({3: 0.9, 5: 0.4, 8: 0.1}, [0.2, 0.4, 0.6])
    assert found.readings == pytest.approx({3: 1.0, 5: 0.5, 8: 0.0})
    assert (found.mean, found.count) == (pytest.approx(0.5), 3)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < 0.2 < 0.8 < found.high < 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_pairs_that_all_agree_leave_an_interval(share: float) -> None:
    low, high = rank_interval(share, 16, 16)
    assert (low == 0.0) == (share == 0.0)
    assert (high == 1.0) == (share == 1.0)
    assert 0.1 < high - low < 0.25
    wide = rank_interval(share, 4, 4)
    assert wide[1] - wide[0] > 0.3


@pytest.mark.parametrize(("first", "second", "apart"), [(16, 16, 1.5), (48, 16, 0.5), (8, 64, 1.0), (24, 24, 0.0)])
def test_intervals_cover_the_true_share(first: int, second: int, apart: float) -> None:
    draw, true, covered = np.random.default_rng(1), norm.cdf(apart / np.sqrt(2)), 0
    for _ in range(300):
        one, other = draw.normal(apart, 1, first), draw.normal(0, 1, second)
        low, high = rank_interval(float((one[:, None] > other).mean()), first, second)
        covered += low <= true <= high
    assert covered / 300 >= 0.92


def test_photos_are_told_from_the_class_without_comparing_a_photo_with_itself() -> None:
    generator = torch.Generator().manual_seed(3)
    normalize = torch.nn.functional.normalize
    centre = torch.randn(8, generator=generator)
    photos = normalize(centre + 0.8 * torch.randn(5, 8, generator=generator), dim=1)
    others = normalize(centre + 1.2 * torch.randn(7, 8, generator=generator), dim=1)
    pairs = []
    for number in range(5):
        rest = [photos[other] for other in range(5) if other != number]
        own = sum(float(photos[number] @ each) for each in rest) / 4
        pairs += [own > sum(float(picture @ each) for each in rest) / 4 for picture in others]
    found = tells_photos(photos, others)
    assert found is not None
    assert found.mean == pytest.approx(np.mean(pairs))
    assert 0 < found.mean < 1
    assert tells_photos(photos[:1], others) is None
    assert tells_photos(photos, others[:0]) is None
