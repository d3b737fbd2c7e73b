"""Entropy: the samples with the highest entropy of the softmax (Shannon 1948)."""

from dataclasses import dataclass

from dm2_fast.round import Picked, Round
from dm2_fast.strategies.batch import Batch, check_batch, most_uncertain
from dm2_fast.strategy import LOGITS, Strategy


@dataclass(frozen=True)
class EntropyConfig:
    """Options of entropy.

    Args:
        batch: The highest scores, or kmeans = the rows nearest to the centres of a k-means over ten times as many.
    """

    batch: Batch = "highest"

    def __post_init__(self) -> None:
        check_batch(self.batch)


def choose(round: Round, budget: int, options: EntropyConfig) -> Picked:
    """Choose budget rows of the pool."""
    return most_uncertain(round, budget, "entropy", options.batch)


STRATEGY = Strategy("entropy", choose, EntropyConfig, passes=(LOGITS,), in_parts=True)
