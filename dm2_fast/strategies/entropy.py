"""Entropy: the samples with the highest entropy of the softmax (Shannon 1948)."""

from dm2_fast.round import Picked, Round
from dm2_fast.strategy import LOGITS, Strategy


def choose(round: Round, budget: int, options: None) -> Picked:
    """Choose budget rows of the pool; it has no options."""
    return round.most_uncertain(budget, "entropy")


STRATEGY = Strategy("entropy", choose, passes=(LOGITS,), in_parts=True)
