"""Margin: the samples with the smallest gap between the two largest softmax values (Scheffer et al. 2001)."""

from dm2_fast.round import Picked, Round
from dm2_fast.strategy import LOGITS, Strategy


def choose(round: Round, budget: int, options: None) -> Picked:
    """Choose budget rows of the pool; it has no options."""
    return round.most_uncertain(budget, "margin")


STRATEGY = Strategy("margin", choose, passes=(LOGITS,), in_parts=True)
