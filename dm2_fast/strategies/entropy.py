"""Entropy: the samples with the highest entropy of the softmax (Shannon 1948)."""

from dm2_fast.acquire import Picked
from dm2_fast.strategies.round import Round


def choose(round: Round, budget: int, options: None = None) -> Picked:
    """Choose budget rows of the pool; it has no options."""
    return round.most_uncertain(budget, "entropy")
