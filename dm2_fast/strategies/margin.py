"""Margin: the samples with the smallest gap between the two largest softmax values (Scheffer et al. 2001)."""

from dm2_fast.acquire import Picked
from dm2_fast.strategies.round import Round


def choose(round: Round, budget: int, options: None = None) -> Picked:
    """Choose budget rows of the pool; it has no options."""
    return round.most_uncertain(budget, "margin")
