"""The bound of an audit holds as often as it says, and the recall counts what it should."""

import numpy as np
import pytest
import torch

from dm2_fast.operations.audit import lower_bound, recall_of


def test_recall_counts_a_neighbour_that_is_as_far_as_the_last_one() -> None:
    exact = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    found = torch.tensor([[1.0, 2.0, 2.5], [0.0, 0.0, torch.inf], [1.0, 2.0, 3.0]])
    assert recall_of(found, exact).tolist() == pytest.approx([2 / 3, 2 / 3, 1.0])


def test_the_bound_is_below_the_mean_and_above_zero() -> None:
    assert lower_bound(torch.ones(500, dtype=torch.float64)) == pytest.approx(500 / 501 - 2.3263 / 501, abs=1e-4)
    assert lower_bound(torch.zeros(500, dtype=torch.float64)) == 0.0


@pytest.mark.parametrize(
    ("missing", "share"), [(10, 0.0015), (10, 0.02), (3, 0.05), (1, 0.3), (5, 0.1), (10, 0.0005), (2, 0.5)]
)
def test_the_bound_holds_for_recalls_of_many_shapes(missing: int, share: float) -> None:
    """Some rows lack `missing` of 10 neighbours. The bound at one look may fail for 1 % of the samples."""
    rng = np.random.default_rng(0)
    recalls = np.where(rng.random(20_000) < share, 1 - missing / 10, 1.0)
    bounds = [lower_bound(torch.from_numpy(rng.choice(recalls, 500, replace=False))) for _ in range(2000)]
    assert np.mean(np.array(bounds) > recalls.mean()) <= 0.01 + 3 * (0.01 * 0.99 / 2000) ** 0.5
