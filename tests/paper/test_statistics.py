"""The statistics against scipy, brute force, and planted data with known effects."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import trapezoid

from dm2_fast.paper import statistics


def drawn(n: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, n)


def test_the_area_is_the_mean_height() -> None:
    assert statistics.area([10, 20, 40], [0.5, 0.7, 0.7]) == pytest.approx((0.6 * 10 + 0.7 * 20) / 30)
    assert statistics.area([10, 20, 40], [0.5, 0.7, 0.7], 15, 30) == pytest.approx((0.65 * 5 + 0.7 * 10) / 15)
    x, y = np.linspace(0, 7, 30), drawn(30)
    assert statistics.area(x, y) == pytest.approx(trapezoid(y, x) / 7)
    fine = np.linspace(1.3, 5.1, 200_001)
    assert statistics.area(x, y, 1.3, 5.1) == pytest.approx(np.interp(fine, x, y).mean(), abs=1e-4)
    with pytest.raises(ValueError, match="must reach from 5 to 50 labels, got 10 to 40"):
        statistics.area([10, 40], [0.1, 0.2], 5, 50)


@pytest.mark.parametrize("n", [2, 5, 40])
def test_the_interval_is_that_of_students_t(n: int) -> None:
    d = drawn(n, shift=0.3)
    low, high = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    found = statistics.interval(d)
    assert (found.mean, found.low, found.high) == pytest.approx((d.mean(), low, high))


def test_one_pair_has_no_interval() -> None:
    found = statistics.interval([0.25])
    assert found.mean == 0.25
    assert math.isnan(found.low)
    assert math.isnan(statistics.smallest_detectable([0.25]))


@pytest.mark.parametrize("d", [drawn(7, 1, 0.5), drawn(10, 2), np.array([1.0, 1, 1, -1, 0]), np.zeros(4), drawn(1)])
def test_the_exact_test_counts_all_permutations(d: np.ndarray) -> None:
    sums = [abs(sum(s * value for s, value in zip(signs, d, strict=True))) for signs in
            itertools.product((1, -1), repeat=len(d))]  # fmt: skip
    expected = sum(total >= abs(d.sum()) - 1e-12 for total in sums) / len(sums)
    assert statistics.permutation_test(d) == expected


def test_the_exact_test_agrees_with_scipy() -> None:
    d = drawn(9, 3, 0.4)
    theirs = stats.permutation_test(
        (d, np.zeros(9)), lambda x, y, axis: (x - y).sum(axis), permutation_type="samples", vectorized=True
    )
    assert statistics.permutation_test(d) == pytest.approx(theirs.pvalue)


def test_the_drawn_test_is_near_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    d = drawn(14, 4, 0.5)
    exact = statistics.permutation_test(d)
    statistics._signs.cache_clear()
    monkeypatch.setattr(statistics, "EXACT", 3)
    found = statistics.permutation_test(d)
    statistics._signs.cache_clear()
    assert statistics.permutation_test(np.ones(40)) == 1 / (statistics.DRAWN + 1)  # what was seen is one of them
    assert 0.001 < exact < 0.5
    assert abs(found - exact) < 5 * math.sqrt(exact * (1 - exact) / statistics.DRAWN)
    assert found > 0


def test_holm_is_his_procedure() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.7, 0.9]).tolist() == [1.0, 1.0]
    p = np.random.default_rng(5).uniform(size=12) ** 3
    adjusted = statistics.holm(p)
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for step, i in enumerate(sorted(range(12), key=lambda i: p[i])):
            if p[i] > alpha / (12 - step):
                break
            rejected.add(i)
        assert {i for i in range(12) if adjusted[i] <= alpha} == rejected


def test_the_power_is_what_a_simulation_finds() -> None:
    found = stats.ttest_1samp(np.random.default_rng(6).normal(0.6, 1, (20_000, 12)), 0, axis=1).pvalue < 0.05
    assert statistics.power(0.6, 1, 12) == pytest.approx(found.mean(), abs=0.015)
    for n in (3, 10, 50):
        theirs = stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, 0.8 * math.sqrt(n))
        assert statistics.power(0.8, 1, n) == pytest.approx(theirs, abs=2e-3)
    d = drawn(12, 7)
    effect = statistics.smallest_detectable(d)
    assert statistics.power(effect, d.std(ddof=1), 12) == pytest.approx(0.8)


def test_labels_saved_at_the_last_accuracy_of_the_baseline() -> None:
    x = [100, 200, 300, 400]
    assert statistics.labels_saved(x, [0.5, 0.7, 0.8, 0.9], [0.5, 0.6, 0.7, 0.75]) == pytest.approx(150)
    assert statistics.labels_saved(x, [0.5, 0.6, 0.7, 0.75], [0.5, 0.6, 0.7, 0.75]) == pytest.approx(0)
    assert math.isnan(statistics.labels_saved(x, [0.5, 0.6, 0.7, 0.74], [0.5, 0.6, 0.7, 0.75]))
    assert statistics.labels_saved(x, [0.8, 0.8, 0.8, 0.8], [0.5, 0.6, 0.7, 0.75]) == 300


def test_the_penalty_matrix_counts_the_rounds_won() -> None:
    rng = np.random.default_rng(8)
    settings = [rng.normal(size=(4, 6, 5)) + np.array([0, 0, 2, 0])[:, None, None] for _ in range(3)]
    expected = np.zeros((4, 4))
    for accuracy in settings:
        for i, j in itertools.permutations(range(4), 2):
            for r in range(5):
                test = stats.ttest_rel(accuracy[i, :, r], accuracy[j, :, r])
                expected[i, j] += (test.pvalue < 0.05 and test.statistic > 0) / 5 / 3
    found = statistics.penalty_matrix(settings)
    np.testing.assert_allclose(found, expected)
    assert found[2].sum() > found[0].sum()
    same = np.repeat(rng.normal(size=(1, 6, 5)), 2, axis=0)
    assert statistics.penalty_matrix([same]).tolist() == [[0, 0], [0, 0]]


def test_ranks_and_their_critical_difference() -> None:
    scores = np.random.default_rng(9).normal(size=(14, 5)) + np.array([0, 0, 0, 0, 1.5])
    found = statistics.ranks(scores)
    naive = np.mean([[1 + sum(other > score for other in row) for score in row] for row in scores], axis=0)
    np.testing.assert_allclose(found.mean, naive)
    assert found.critical == pytest.approx(2.728 * math.sqrt(5 * 6 / (6 * 14)), abs=1e-3)  # Demsar 2006, table 5
    assert found.p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    assert statistics.ranks(np.array([[1.0, 1.0, 0.0]])).mean.tolist() == [1.5, 1.5, 3.0]


STUDIES, METHODS = 1000, 6


def within(count: int, rate: float) -> bool:
    """Whether so many of `STUDIES` are what a rate gives in all but one of 10,000 cases."""
    return stats.binomtest(count, STUDIES, rate).pvalue > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [8, 25])
def test_studies_without_an_effect_find_one_as_rarely_as_stated(seeds: int) -> None:
    """Six methods that equal random: seeds are shared, so that their differences are correlated, as in a study."""
    rng = np.random.default_rng(seeds)
    alone = family = 0
    for _ in range(STUDIES):
        random = rng.normal(size=seeds)
        p = [statistics.permutation_test(rng.normal(size=seeds) - random) for _ in range(METHODS)]
        alone += p[0] <= 0.05
        family += statistics.holm(p).min() <= 0.05
    exact = 2 * math.floor(0.05 * 2 ** (seeds - 1)) / 2**seeds if seeds <= statistics.EXACT else 0.05
    assert within(alone, exact)
    assert stats.binomtest(family, STUDIES, 0.05, alternative="greater").pvalue > 1e-4
    assert family > alone / METHODS


@pytest.mark.slow
def test_planted_effects_are_found_with_the_power_predicted() -> None:
    rng, seeds, effect = np.random.default_rng(3), 25, 0.6
    differences = rng.normal(effect, 1, (STUDIES, seeds))
    by_interval = sum(statistics.interval(d).low > 0 or statistics.interval(d).high < 0 for d in differences)
    by_permutation = sum(statistics.permutation_test(d) <= 0.05 for d in differences)
    predicted = statistics.power(effect, 1, seeds)
    assert 0.7 < predicted < 0.9
    assert within(by_interval, predicted)
    assert abs(by_permutation - by_interval) < 0.03 * STUDIES
    covered = sum(statistics.interval(d).low <= effect <= statistics.interval(d).high for d in differences)
    assert within(covered, 0.95)
    detectable = np.mean([statistics.smallest_detectable(d) for d in differences])
    assert statistics.power(detectable, 1, seeds) == pytest.approx(0.8, abs=0.02)
