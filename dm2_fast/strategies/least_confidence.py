"""Least Confidence: the samples with the lowest maximum softmax value (Lewis and Gale 1994)."""

from dm2_fast.round import Picked, Round
from dm2_fast.strategy import LOGITS, Strategy


def choose(round: Round, budget: int, options: None) -> Picked:
    """Choose budget rows of the pool; it has no options."""
    return round.most_uncertain(budget, "least-confidence")


STRATEGY = Strategy("least-confidence", choose, passes=(LOGITS,), in_parts=True)
