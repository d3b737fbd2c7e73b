"""Statistics of learning curves and of paired differences: numbers in, numbers out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dm2_fast import extras

with extras.needed("run", "the statistics of a report"):
    from scipy import optimize, stats

Numbers = Sequence[float] | NDArray[np.float64]

EXACT = 16  # pairs; with more, the permutations are drawn
DRAWN = 20_000


def area(labelled: Numbers, accuracy: Numbers, low: float | None = None, high: float | None = None) -> float:
    """The mean height of a curve, linear between its points, from `low` to `high` labels (the whole curve for None).

    For two curves with other steps, the same low and high make their areas comparable.

    Raises:
        ValueError: the curve does not reach from low to high, or has one point.
    """
    x, y = np.asarray(labelled, float), np.asarray(accuracy, float)
    low, high = x[0] if low is None else low, x[-1] if high is None else high
    if not x[0] <= low < high <= x[-1]:
        raise ValueError(f"the curve must reach from {low:g} to {high:g} labels, got {x[0]:g} to {x[-1]:g}")
    places = np.concatenate([[low], x[(x > low) & (x < high)], [high]])
    heights = np.interp(places, x, y)
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(places)).sum() / (high - low))


@dataclass(frozen=True)
class Interval:
    """The mean of paired differences with its 95 % interval by Student's t; without one for a single pair."""

    mean: float
    low: float
    high: float


def interval(differences: Numbers, level: float = 0.95) -> Interval:
    """The mean of differences and its interval; NaN bounds for fewer than two."""
    d = np.asarray(differences, float)
    mean, n = float(d.mean()), len(d)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * d.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half)


@lru_cache(maxsize=8)
def _signs(n: int, seed: int) -> NDArray[np.float64]:
    """Every choice of n signs, (2^n, n); with more than `EXACT` pairs, `DRAWN` of them at random."""
    if n <= EXACT:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return 1.0 - 2.0 * bits.astype(np.float64)
    return np.random.default_rng(seed).choice((-1.0, 1.0), (DRAWN, n))


def permutation_test(differences: Numbers, seed: int = 0) -> float:
    """The two-sided p-value of paired differences under random exchange of each pair.

    Specifically, the part of all sign vectors s with `abs((s * d).sum()) >= abs(d.sum())`: of all 2^n for n <= 16; of
    20,000 drawn ones and the one that was seen for more.
    """
    d = np.asarray(differences, float)
    signs = _signs(len(d), seed)
    reached = np.abs(signs @ d) >= abs(d.sum()) - 1e-9 * np.abs(d).sum()
    return float(reached.mean() if len(d) <= EXACT else (reached.sum() + 1) / (len(signs) + 1))


def holm(p_values: Numbers) -> NDArray[np.float64]:
    """The p-values adjusted for their number, so that all at once are wrong with at most the level (Holm 1979)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, (len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def power(effect: float, std: float, pairs: int, alpha: float = 0.05) -> float:
    """How often a two-sided paired t-test finds a mean difference of `effect`, for differences of this deviation."""
    if pairs < 2 or std == 0:
        return math.nan if pairs < 2 else float(effect != 0)
    shift, critical = effect / std * math.sqrt(pairs), stats.t.ppf(1 - alpha / 2, pairs - 1)
    scale = critical * _deviations(pairs - 1)  # the mean over them: scipy's noncentral t has no value for large shifts
    return float((stats.norm.cdf(shift - scale) + stats.norm.cdf(-shift - scale)).mean())


@lru_cache(maxsize=64)
def _deviations(freedom: int) -> NDArray[np.float64]:
    """Equally likely sample deviations of standard normal numbers with so many degrees of freedom."""
    quantiles = (np.arange(4000) + 0.5) / 4000
    return np.asarray(np.sqrt(stats.chi2.ppf(quantiles, freedom) / freedom))


def smallest_detectable(differences: Numbers, alpha: float = 0.05, wanted: float = 0.8) -> float:
    """The mean difference that a study of this size and scatter finds with the wanted power; NaN for one pair."""
    d = np.asarray(differences, float)
    if len(d) < 2:
        return math.nan
    std, n = float(d.std(ddof=1)), len(d)
    if std == 0:
        return 0.0
    unit = optimize.brentq(lambda effect: power(effect, 1.0, n, alpha) - wanted, 1e-6, 60.0)
    return float(unit * std)


def labels_saved(labelled: Numbers, accuracy: Numbers, baseline: Numbers) -> float:
    """How many labels fewer a curve needs for the last accuracy of the baseline's, at the same numbers of labels.

    Both are linear between their points. NaN where the curve never reaches it.
    """
    x, y, goal = np.asarray(labelled, float), np.asarray(accuracy, float), float(np.asarray(baseline, float)[-1])
    reached = np.flatnonzero(y >= goal)
    if len(reached) == 0:
        return math.nan
    i = int(reached[0])
    if i == 0:
        return float(x[-1] - x[0])
    at = x[i - 1] + (goal - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1])
    return float(x[-1] - at)


def penalty_matrix(settings: Sequence[NDArray[np.float64]], alpha: float = 0.05) -> NDArray[np.float64]:
    """How often each method beats each other (Ash et al. 2020), (k, k).

    Entry (i, j) is the mean over settings of the part of the rounds at which method i is better than j by a two-sided
    paired t-test over the seeds at this level. The mean of a column is how much a method is beaten: less is better.

    Args:
        settings: One array (methods, seeds, rounds) of accuracies per setting; seeds are paired.
    """
    total = np.zeros((settings[0].shape[0],) * 2)
    for accuracy in settings:
        d = accuracy[:, None] - accuracy[None]
        n = d.shape[2]
        mean, error = d.mean(2), d.std(2, ddof=1) / math.sqrt(n)
        total += (mean > stats.t.ppf(1 - alpha / 2, n - 1) * error).mean(2) * (np.abs(mean) > 1e-12).any(2)
    return total / len(settings)


@dataclass(frozen=True)
class Ranks:
    """Average ranks of methods over settings, 1 for the best.

    Attributes:
        mean: (k,), equal scores share their mean rank.
        critical: Two methods whose mean ranks differ by less are not told apart (Nemenyi, Demsar 2006).
        p: Friedman's test that no method differs; NaN for fewer than three methods or two settings.
    """

    mean: NDArray[np.float64]
    critical: float
    p: float


def ranks(scores: NDArray[np.float64], alpha: float = 0.05) -> Ranks:
    """Rank the methods in every setting by their scores (settings, methods), higher is better."""
    settings, methods = scores.shape
    mean = np.mean([stats.rankdata(-row) for row in scores], axis=0)
    studentised = stats.studentized_range.ppf(1 - alpha, methods, np.inf) / math.sqrt(2)
    critical = float(studentised * math.sqrt(methods * (methods + 1) / (6 * settings)))
    p = float(stats.friedmanchisquare(*scores.T).pvalue) if methods > 2 and settings > 1 else math.nan
    return Ranks(mean, critical, p)
