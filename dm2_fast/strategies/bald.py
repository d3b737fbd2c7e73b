"""BALD: the samples on which networks drawn by dropout disagree (Houlsby et al. 2011; Gal et al. 2017)."""

from dataclasses import dataclass

import torch

from dm2_fast.operations.arguments import whole
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.batch import Batch, check_batch, choose_batch
from dm2_fast.strategy import DROPOUT, FEATURES, Strategy


@dataclass(frozen=True)
class BALDConfig:
    """Options of bald.

    Args:
        passes: Forward passes with dropout on.
        batch: The highest scores, or kmeans = the rows nearest to the centres of a k-means over ten times as many.
    """

    passes: int = 30
    batch: Batch = "highest"

    def __post_init__(self) -> None:
        check_batch(self.batch)
        object.__setattr__(self, "passes", whole("passes", self.passes, 1))


def choose(round: Round, budget: int, options: BALDConfig) -> Picked:
    """Choose the budget rows with the largest mutual information of prediction and network.

    Specifically, with p[t] the softmax of pass t, the score is `entropy(p.mean(0)) - entropy(p).mean(0)`.

    Raises:
        ValueError: the model runs no dropout layer.
    """
    mean, entropy = round.dropout(options.passes)
    with round.stage("choose"):
        scores = torch.special.entr(mean).sum(1) - entropy
        indices = choose_batch(round, scores, budget, options.batch)
    return Picked(indices, scores)


STRATEGY = Strategy("bald", choose, BALDConfig, passes=(FEATURES, DROPOUT), in_parts=True)
