"""Each strategy's choice from a small pool; what strategies share is in the round beforehand."""

from collections.abc import Callable

import pytest
import torch
from strategies import make_round, options_of, synthetic

from dm2_fast import strategies


@pytest.mark.parametrize("name", strategies.names())
def bench_strategy(timed: Callable, name: str) -> None:
    budget, passes = 50, 10
    round = make_round(name, synthetic(2000, 64), classes=10, labelled=100, passes=passes)
    choose, options = strategies.get(name).choose, options_of(name, passes)
    first = choose(round, budget, options).indices
    assert len(first.unique()) == budget
    assert torch.equal(choose(round, budget, options).indices, first)
    timed(lambda: choose(round, budget, options), rows=2000, budget=budget)
