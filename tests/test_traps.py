import warnings

import numpy as np
import pytest
import torch
from torch import nn

from dm2_fast import DM2Config, Round, select
from dm2_fast.draws import uniform
from dm2_fast.model.passes import ForwardPass

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))


class Constant(nn.Module):
    """Gives the same logits for all rows but the first few."""

    def __init__(self, different: int = 0) -> None:
        super().__init__()
        self.head, self.different = nn.Linear(6, 3), different

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(0 * x)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(6, 3)


def test_a_constant_model_is_said_to_be_one_and_a_draw_can_decide() -> None:
    with pytest.warns(UserWarning, match="60 rows have the same score, and 5 of them were chosen for their lower row"):
        picked = select(Constant(), X, 5, "entropy", prepare="off")
    assert picked.indices.tolist() == [0, 1, 2, 3, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = select(Constant(), X, 5, "entropy", prepare="off", ties="random", seed=3, round=2)
    order = np.argsort(uniform(3, 2, np.arange(60), "ties"), kind="stable")
    assert drawn.indices.tolist() == order[:5].tolist()
    some = select(
        Constant(), X[10:], 50, "entropy", prepare="off", ties="random", seed=3, round=2, row_ids=np.arange(10, 60)
    )
    assert (some.indices + 10).tolist() == [row for row in order if row >= 10]  # a row's draw is its own


@pytest.mark.parametrize(("budget", "offset", "chosen"), [(4, 0, None), (5, 0, 1), (6, 3, 5), (4, 4, 4), (8, 4, None)])
def test_row_numbers_decide_where_equal_scores_are_left_out(budget: int, offset: int, chosen: int | None) -> None:
    scores = torch.tensor([9.0, 8, 7, 6, *8 * [5.0], 4, 3])
    asked = Round(ForwardPass(net(), X[:14]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rows = asked.highest(scores, budget, offset)
    assert rows.tolist() == list(range(offset, offset + budget))
    assert [str(each.message).split(":")[0] for each in said] == (
        [f"8 rows have the same score, and {chosen} of them were chosen for their lower row number"] if chosen else []
    )


def test_a_draw_changes_nothing_where_scores_differ() -> None:
    for options in (DM2Config(k=3), DM2Config(k=3, offset=4)):
        first, second = (select(net(), X, 9, options=options, ties=ties) for ties in ("lower", "random"))
        assert torch.equal(first.indices, second.indices)
    with pytest.raises(ValueError, match="ties must be lower or random, got 'first'"):
        select(net(), X, 9, ties="first")  # type: ignore[arg-type]


def test_a_pair_of_duplicates_at_the_end_of_the_choice_is_no_trap() -> None:
    scores = select(net(), X, 5, "entropy").scores
    assert scores is not None
    order = scores.sort(descending=True).indices
    twice = X.clone()
    twice[order[5]] = twice[order[4]]
    select(net(), twice, 5, "entropy")


def test_a_column_that_dominates_is_named() -> None:
    unscaled = X.clone()
    unscaled[:, 2] *= 1000
    with pytest.warns(UserWarning, match="feature 2 makes up 1..% of the length of the rows, .*StandardScaler"):
        select(net(), unscaled, 5, options=DM2Config(k=3))
    select(net(), X * 1000, 5, options=DM2Config.published(k=3))


def test_duplicates_beyond_k_are_counted() -> None:
    repeated = torch.cat([X, X[:2].repeat(4, 1)])
    select(net(), repeated, 5, options=DM2Config(k=5))
    with pytest.warns(UserWarning, match="10 rows have 4 others at distance 0"):
        select(net(), repeated, 5, options=DM2Config(k=4))
