"""Random: uniform without replacement, each row ranked by a number that depends on the row alone."""

import torch

from dm2_fast import draws
from dm2_fast.acquire import Picked, check_budget, highest
from dm2_fast.strategies.round import Round


def choose(round: Round, budget: int, options: None = None) -> Picked:
    """Choose budget rows of the pool; it has no options."""
    check_budget(budget, len(round))
    scores = torch.from_numpy(draws.uniform(round.seed, round.round, round.ids, "order"))
    return Picked(highest(scores, budget), scores)
