"""Least Confidence: the samples with the lowest maximum softmax value (Lewis and Gale 1994)."""

from dataclasses import dataclass

from dm2_fast.round import Picked, Round
from dm2_fast.strategies.batch import Batch, check_batch, most_uncertain
from dm2_fast.strategy import LOGITS, Strategy


@dataclass(frozen=True)
class LeastConfidenceConfig:
    """Options of least-confidence.

    Args:
        batch: The highest scores, or kmeans = the rows nearest to the centres of a k-means over ten times as many.
    """

    batch: Batch = "highest"

    def __post_init__(self) -> None:
        check_batch(self.batch)


def choose(round: Round, budget: int, options: LeastConfidenceConfig) -> Picked:
    """Choose budget rows of the pool."""
    return most_uncertain(round, budget, "least-confidence", options.batch)


STRATEGY = Strategy("least-confidence", choose, LeastConfidenceConfig, passes=(LOGITS,), in_parts=True)
