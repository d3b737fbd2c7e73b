"""Margin: the samples with the smallest gap between the two largest softmax values (Scheffer et al. 2001)."""

from dataclasses import dataclass

from dm2_fast.round import Picked, Round
from dm2_fast.strategies.batch import Batch, check_batch, most_uncertain
from dm2_fast.strategy import LOGITS, Strategy


@dataclass(frozen=True)
class MarginConfig:
    """Options of margin.

    Args:
        batch: The highest scores, or kmeans = the rows nearest to the centres of a k-means over ten times as many.
    """

    batch: Batch = "highest"

    def __post_init__(self) -> None:
        check_batch(self.batch)


def choose(round: Round, budget: int, options: MarginConfig) -> Picked:
    """Choose budget rows of the pool."""
    return most_uncertain(round, budget, "margin", options.batch)


STRATEGY = Strategy("margin", choose, MarginConfig, passes=(LOGITS,), in_parts=True)
