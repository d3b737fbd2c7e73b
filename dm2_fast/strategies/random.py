"""Random: uniform without replacement, each row ranked by a number that depends on the row alone."""

import torch

from dm2_fast import draws
from dm2_fast.round import Picked, Round, highest
from dm2_fast.strategy import Strategy


def choose(round: Round, budget: int, options: None) -> Picked:
    """Choose budget rows of the pool; it has no options."""
    scores = torch.from_numpy(draws.uniform(round.seed, round.round, round.ids, "order"))
    return Picked(highest(round.share.gather(scores), budget), scores)


STRATEGY = Strategy("random", choose, passes=(), in_parts=True)
