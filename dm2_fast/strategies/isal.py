"""ISAL: the samples whose labels, guessed, would lower the loss of the labelled set most (Liu et al. 2021)."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dm2_fast import draws
from dm2_fast.model.derivatives import Derivatives, Direction
from dm2_fast.operations.arguments import number, whole
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.batch import Batch, check_batch, choose_batch
from dm2_fast.strategy import FEATURES, Pass, Strategy


@dataclass(frozen=True)
class ISALConfig:
    """Options of isal; the defaults are the authors', but for the samples of a step, one there.

    Args:
        damping: What is left out of the direction at each step.
        scale: What the Hessian is divided by, so that the steps converge.
        steps: Steps towards the Hessian's inverse times the gradient.
        restarts: Times that this is done, with other samples, to take the mean.
        samples: Labelled samples of a step.
        batch: The highest scores, or kmeans = the rows nearest to the centres of a k-means over ten times as many.
    """

    damping: float = 0.01
    scale: float = 1e4
    steps: int = 250
    restarts: int = 4
    samples: int = 8
    batch: Batch = "highest"

    def __post_init__(self) -> None:
        check_batch(self.batch)
        number("damping", self.damping, "in [0, 1)", lambda value: 0 <= value < 1)
        number("scale", self.scale, "positive and finite", lambda value: value > 0)
        for name in ("steps", "restarts", "samples"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 1))


def choose(round: Round, budget: int, options: ISALConfig) -> Picked:
    """Choose the budget rows with the largest scores g @ s, the least influence on the loss of the labelled set.

    Here g is the gradient of the row's cross-entropy with the predicted class as its label, and s the direction of
    `direction`, both in the parameters of more than one dimension. The reference set is the labelled set itself: the
    test set is never looked at.

    Raises:
        TypeError: the model is a plain function.
        ValueError: there is no labelled set with its labels, or no such parameter is trained.
    """
    scores = influence(round, options)
    with round.stage("choose"):
        return Picked(choose_batch(round, scores, budget, options.batch), scores)


def influence(round: Round, options: ISALConfig) -> Tensor:
    """How fast the loss of the labelled set falls as each row is given more weight, with its guessed label; (m,)."""
    round.one_class()
    round.module("isal")
    if round.labels is None:
        raise ValueError("this strategy follows the loss of labelled samples: pass labels= with their classes")
    labels, labelled, pool = round.labels, round.derivatives(True, labelled=True), round.derivatives(True)

    def run() -> Tensor:
        s = direction(labelled, labels, options, round.seed, round.round)
        return pool.along(s, lambda logits: F.cross_entropy(logits, logits.argmax(1), reduction="none")).double()

    return round.once("influence", replace(options, batch="highest"), run)


def direction(labelled: Derivatives, labels: Tensor, options: ISALConfig, seed: int, round: int) -> Direction:
    """The inverse of the damped Hessian of the loss times its gradient v, as LiSSA estimates it (Agarwal et al. 2017).

    Each restart starts from s = v, takes `s = v + (1 - damping) * s - H @ s / scale` with the Hessian H of a batch of
    other labelled samples at each step, and divides by scale in the end. The batches of a restart go through the
    labelled set in an order of its own, again and again.
    """
    v = labelled.gradient(labels)
    total = {name: torch.zeros_like(part) for name, part in v.items()}
    n = len(labels)
    batch = min(options.samples, n)
    for restart in range(options.restarts):
        generator = draws.generator(seed, round, "influence", restart)
        passes = -(-options.steps * batch // n)
        order = torch.cat([torch.from_numpy(generator.permutation(n)) for _ in range(passes)])
        s = v
        for rows in order[: options.steps * batch].view(options.steps, batch):
            curved = labelled.hessian_times(s, labels, rows)
            s = {k: v[k] + (1 - options.damping) * s[k] - curved[k] / options.scale for k in v}
        for name, part in s.items():
            total[name] += part / options.scale / options.restarts
    return total


INFLUENCE = Pass("influence", influence)
STRATEGY = Strategy("isal", choose, ISALConfig, passes=(FEATURES, INFLUENCE))
