"""Each strategy's choice from a small pool; what strategies share is in the round beforehand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import make_round, options_of, synthetic

from dm2_fast import select_from, strategies


@pytest.mark.parametrize("name", strategies.names())
def bench_strategy(timed: Callable[..., Any], name: str) -> None:
    budget, strategy = 50, strategies.get(name)
    options = options_of(strategy, passes=10)
    round = make_round(strategy, options, synthetic(2000, 64), classes=10, labelled=100)
    first = select_from(round, budget, strategy, options).indices
    assert len(first.unique()) == budget
    assert torch.equal(select_from(round, budget, strategy, options).indices, first)
    timed(lambda: select_from(round, budget, strategy, options), rows=2000, budget=budget)
