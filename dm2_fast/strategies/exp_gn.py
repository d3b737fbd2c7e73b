"""Expected-gradnorm: the samples whose loss has the longest gradient, as the model expects it (Wang et al. 2022)."""

from dataclasses import dataclass
from typing import Literal, get_args

from dm2_fast.operations.arguments import one_of
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.batch import Batch, check_batch, choose_batch
from dm2_fast.strategies.gradient_norm import Layers, entropy_slope, gradient_norms, label_slopes
from dm2_fast.strategy import FEATURES, LOGITS, Pass, Strategy

Expected = Literal["norm", "loss"]


@dataclass(frozen=True)
class ExpGNConfig:
    """Options of exp-gn.

    Args:
        expected: norm = the norms that the gradient of the loss has for each label, averaged as the model expects the
            labels; loss = the norm of the gradient of the loss so averaged, which is the entropy: the score of ent-gn.
        layers: all = the gradient in every parameter; last = in the head alone, which costs one forward pass.
        batch: The highest scores, or kmeans = the rows nearest to the centres of a k-means over ten times as many.
    """

    expected: Expected = "norm"
    layers: Layers = "all"
    batch: Batch = "highest"

    def __post_init__(self) -> None:
        check_batch(self.batch)
        one_of("expected", self.expected, get_args(Expected))
        one_of("layers", self.layers, get_args(Layers))


def choose(round: Round, budget: int, options: ExpGNConfig) -> Picked:
    """Choose the budget rows with the largest expected gradient of the loss, norms summed over the parameter tensors.

    Specifically, with p the softmax and g[c] the norm of the gradient of the cross-entropy with c as the label, the
    score is `(p * g).sum(1)`, the expected gradient length of Settles et al. (2008). The expected loss of the paper,
    `-(p * log(p)).sum(1)`, is the entropy, and its gradient that of ent-gn; with p held fixed, it would be zero. So the
    default is the reading that says something of its own.

    Raises:
        TypeError: the model is a plain function.
        ValueError: layers is last, and the head is not linear.
    """
    if options.expected == "loss":
        scores = gradient_norms(round, "exp-gn", options.layers, entropy_slope)[:, 0]
    else:
        norms = gradient_norms(round, "exp-gn", options.layers, label_slopes)
        logits = round.only_logits
        scores = (logits.double().softmax(1) * norms).sum(1)
    with round.stage("choose"):
        return Picked(choose_batch(round, scores, budget, options.batch), scores)


GRADIENTS = Pass("label_slopes", lambda round, options: gradient_norms(round, "exp-gn", "all", label_slopes))
STRATEGY = Strategy("exp-gn", choose, ExpGNConfig, passes=(LOGITS, FEATURES, GRADIENTS))
