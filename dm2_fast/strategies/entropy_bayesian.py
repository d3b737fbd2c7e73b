"""EntropyBayesian: the samples with the highest entropy under dropout (Gal et al. 2017)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from dm2_fast.operations.arguments import one_of, whole
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.batch import Batch, check_batch, choose_batch
from dm2_fast.strategy import DROPOUT, FEATURES, Strategy


@dataclass(frozen=True)
class EntropyBayesianConfig:
    """Options of entropy-bayesian.

    Args:
        passes: Forward passes with dropout on.
        reading: predictive = entropy of the mean softmax; expected = mean of the passes' entropies.
        batch: The highest scores, or kmeans = the rows nearest to the centres of a k-means over ten times as many.
    """

    passes: int = 30
    reading: Literal["predictive", "expected"] = "predictive"
    batch: Batch = "highest"

    def __post_init__(self) -> None:
        check_batch(self.batch)
        object.__setattr__(self, "passes", whole("passes", self.passes, 1))
        one_of("reading", self.reading, get_args(EntropyBayesianConfig.__annotations__["reading"]))


def choose(round: Round, budget: int, options: EntropyBayesianConfig) -> Picked:
    """Choose the budget rows with the highest entropy under dropout.

    Specifically, with p[t] the softmax of pass t, the score is `entropy(p.mean(0))` (predictive) or
    `entropy(p).mean(0)` (expected). The first is the default: it is the whole uncertainty of the Bayesian prediction.
    The second, which some published code computes, leaves out what the networks disagree about (the score of BALD):
    what a label would teach.

    Raises:
        ValueError: the model runs no dropout layer.
    """
    mean, entropy = round.dropout(options.passes)
    with round.stage("choose"):
        scores = torch.special.entr(mean).sum(1) if options.reading == "predictive" else entropy
        indices = choose_batch(round, scores, budget, options.batch)
    return Picked(indices, scores)


STRATEGY = Strategy("entropy-bayesian", choose, EntropyBayesianConfig, passes=(FEATURES, DROPOUT), in_parts=True)
