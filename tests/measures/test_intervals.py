"""Intervals against published examples, other code, and their own promise."""

from __future__ import annotations

import numpy as np
import pytest

from fastdb.measures.intervals import mean_interval, share_difference, share_interval, sum_interval


def paired(both: int, gained: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Readings of the same pictures, now and at the start."""
    now = [True] * (both + gained) + [False] * (lost + neither)
    return now, [True] * both + [False] * gained + [True] * lost + [False] * neither


def test_a_share_has_wilsons_interval() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I: 81 of 263, 15 of 148, 0 of 20 and 1 of 29.
    for successes, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert share_interval(successes, count) == pytest.approx((low, high), abs=5e-5)
    assert share_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert share_interval(16, 16)[1] == 1
    assert share_interval(16, 16)[0] < 0.85, "16 of 16 is not certainty"


def test_a_difference_of_shares_has_newcombes_interval() -> None:
    # Altman et al. 2000 (Statistics with Confidence), table 6.2.
    assert share_difference(*paired(14, 5, 0, 22)) == pytest.approx((0.011, 0.226), abs=5e-4)
    # Fagerland et al. 2014 (Statistics in Medicine 33, 2850-2875), the data of Bentur et al. 2009.
    assert share_difference(*paired(1, 1, 7, 12)) == pytest.approx((-0.507, -0.026), abs=5e-4)
    low, high = share_difference(*paired(1, 7, 1, 12))
    assert (-high, -low) == pytest.approx((-0.507, -0.026), abs=5e-4)
    assert np.ptp(share_difference(*paired(4, 0, 0, 0))) > 0.5, "four pictures that agree prove little"


def test_a_sum_over_pictures_of_one_kind_has_the_interval_of_bonett_and_price() -> None:
    # The same table in Fagerland et al. 2014.
    terms = [1 / 21] * 1 + [-1 / 21] * 7 + [0.0] * 13
    assert sum_interval([(terms, 1 / 21)]) == pytest.approx((-0.508, -0.013), abs=1e-3)
    assert sum_interval([([0.1, 0.1, 0.1], 0.0)]) == pytest.approx((0.3, 0.3))
    assert sum_interval([([0.1], 0.0)]) == (-np.inf, np.inf)


def test_a_mean_has_a_seeded_interval() -> None:
    readings = [0.61, 0.7, 0.58, 0.9, 0.77, 0.64]
    low, high = mean_interval(readings) or (1, 0)
    assert low < np.mean(readings) < high
    assert mean_interval(readings) == (low, high)
    assert mean_interval([0.5]) is None


@pytest.mark.parametrize("count", [8, 64])
def test_intervals_cover_what_they_promise(count: int) -> None:
    """95 of 100, up to the error of 300 trials; few pictures of shares near 1 are covered more often."""
    chance, hits = np.random.default_rng(count), {"mean": 0, "share": 0, "difference": 0, "sum": 0}

    def covers(interval: tuple[float, float] | None, truth: float) -> bool:
        low, high = interval or (1.0, 0.0)
        return low <= truth <= high

    for _ in range(300):
        hits["mean"] += covers(mean_interval(chance.normal(0.7, 0.1, count).tolist()), 0.7)
        same = chance.random(count)
        start = same < 0.6
        now = np.where(chance.random(count) < 0.5, same, chance.random(count)) < 0.8
        hits["share"] += covers(share_interval(int(now.sum()), count), 0.8)
        hits["difference"] += covers(share_difference(now.tolist(), start.tolist()), 0.2)
        terms = (now.astype(float) - start) / count
        hits["sum"] += covers(sum_interval([(terms.tolist(), 1 / count)]), 0.2)
    assert all(hit >= 270 for hit in hits.values()), hits
