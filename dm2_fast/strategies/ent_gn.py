"""Entropy-gradnorm: the samples whose entropy has the longest gradient in the parameters (Wang et al. 2022)."""

from dataclasses import dataclass
from typing import get_args

from dm2_fast.operations.arguments import one_of
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.batch import Batch, check_batch, choose_batch
from dm2_fast.strategies.gradient_norm import Layers, entropy_slope, gradient_norms
from dm2_fast.strategy import FEATURES, Pass, Strategy


@dataclass(frozen=True)
class EntGNConfig:
    """Options of ent-gn.

    Args:
        layers: all = the gradient in every parameter; last = in the head alone, which costs one forward pass.
        batch: The highest scores, or kmeans = the rows nearest to the centres of a k-means over ten times as many.
    """

    layers: Layers = "all"
    batch: Batch = "highest"

    def __post_init__(self) -> None:
        check_batch(self.batch)
        one_of("layers", self.layers, get_args(Layers))


def choose(round: Round, budget: int, options: EntGNConfig) -> Picked:
    """Choose the budget rows whose entropy has the largest gradient: its norms, summed over the parameter tensors.

    The model is in eval mode, each row on its own. Where the model is certain the gradient is zero, and so it is where
    the softmax is uniform: both are extremes of the entropy.

    Raises:
        TypeError: the model is a plain function.
        ValueError: layers is last, and the head is not linear.
    """
    norms = gradient_norms(round, "ent-gn", options.layers, entropy_slope)
    with round.stage("choose"):
        return Picked(choose_batch(round, norms[:, 0], budget, options.batch), norms[:, 0])


GRADIENT = Pass("entropy_slope", lambda round, options: gradient_norms(round, "ent-gn", "all", entropy_slope))
STRATEGY = Strategy("ent-gn", choose, EntGNConfig, passes=(FEATURES, GRADIENT))
