"""Intervals of shares and means, and of their differences between two checkpoints on the same pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, bootstrap, norm, t

LEVEL = 0.95
"""Probability with which an interval covers the value of infinitely many pictures."""

_RESAMPLES, _SEED = 2000, 0

Interval = tuple[float, float]


def share_interval(successes: int, count: int) -> Interval:
    """Return Wilson's score interval of a share (Wilson 1927)."""
    interval = binomtest(successes, count).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(readings: Sequence[float]) -> Interval | None:
    """Return the seeded bootstrap interval of a mean; None for fewer than two readings.

    It is the percentile interval, expanded for few readings as in Hesterberg 2015 (What Teachers Should Know about the
    Bootstrap, section 5.2): its level is that at which a normal interval of the spread with n in the denominator is as
    wide as Student's.
    """
    count = len(readings)
    if count < 2:
        return None
    if min(readings) == max(readings):
        return float(readings[0]), float(readings[0])
    wide = math.sqrt(count / (count - 1)) * float(t.ppf((1 + LEVEL) / 2, count - 1))
    interval = bootstrap(
        (np.asarray(readings, np.float64),),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=2 * float(norm.cdf(wide)) - 1,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def share_difference(now: Sequence[bool], start: Sequence[bool]) -> Interval:
    """Return the interval of share(now) - share(start) over the same pictures.

    Method 10 of Newcombe 1998 (Statistics in Medicine 17, 2635-2650): Wilson's limits of both shares, with a correction
    for their correlation.
    """
    count = len(now)
    both = sum(one and other for one, other in zip(now, start, strict=True))
    first, second = sum(now), sum(start)
    neither = count - first - second + both
    product = first * (count - first) * second * (count - second)
    covariance = both * neither - (first - both) * (second - both)
    corrected = max(covariance - count / 2, 0.0) if covariance > 0 else float(covariance)
    correlation = corrected / math.sqrt(product) if product else 0.0
    (low, high), (below, above) = share_interval(first, count), share_interval(second, count)
    one, other = first / count, second / count
    return (
        one - other - _arm(one - low, above - other, correlation),
        one - other + _arm(high - one, other - below, correlation),
    )


def _arm(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(one * one - 2 * correlation * one * other + other * other, 0.0))


def sum_interval(strata: Sequence[tuple[Sequence[float], float]]) -> Interval:
    """Return the interval of a sum over pictures, each term the difference of two checkpoints on one picture.

    A normal interval, with two more pictures in each stratum of which one gained and one lost as much as a picture can:
    the interval of Bonett and Price 2012 (Statistics in Medicine 31, 479-488) where each difference is -1, 0 or 1. Few
    pictures that all agree thereby prove little.

    Args:
        strata: the terms of each kind of picture, and the largest that a share can contribute.
    """
    centre = variance = 0.0
    for terms, largest in strata:
        count, more = len(terms), 2 if largest else 0
        if count + more < 2:
            return -math.inf, math.inf
        mean = sum(terms) / (count + more)
        squares = (sum(term * term for term in terms) + more * largest * largest) / (count + more)
        centre += mean * count
        # Of n + 2 pictures, whose mean is scaled to the sum over n.
        variance += max(squares - mean * mean, 0.0) / (count + more if more else count - 1) * count * count
    arm = float(norm.ppf((1 + LEVEL) / 2)) * math.sqrt(variance)
    return centre - arm, centre + arm


def rank_interval(share: float, first: int, second: int) -> Interval:
    """Return the interval of the share of pairs in which the first sample's value is the larger (Mann-Whitney).

    Method 5 of Newcombe 2006 (Statistics in Medicine 25, 559-573): the values of the share from which it is as far as
    its standard error there, by Hanley and McNeil's formula. It depends on the sizes of both samples, because pairs
    that have a picture in common are not independent, and does not shrink to a point where all pairs agree.
    """
    wide, middle = float(norm.ppf((1 + LEVEL) / 2)), (first + second) / 2 - 1

    def beyond(value: float) -> float:
        spread = 1 + middle * ((1 - value) / (2 - value) + value / (1 + value))
        return abs(share - value) - wide * math.sqrt(value * (1 - value) * spread / (first * second))

    tiny = 1e-9
    low = brentq(beyond, 0.0, share - tiny) if share > tiny else 0.0
    high = brentq(beyond, share + tiny, 1.0) if share < 1 - tiny else 1.0
    return float(low), float(high)
