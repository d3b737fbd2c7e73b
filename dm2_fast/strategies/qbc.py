"""QBC, query by committee: the samples on which the members of a committee disagree (Seung et al. 1992)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dm2_fast.operations.arguments import one_of, whole
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.batch import Batch, check_batch, choose_batch
from dm2_fast.strategy import FEATURES, LOGITS, SAMPLED, Pass, Strategy

Committee = Literal["dropout", "networks"]
Measure = Literal["kl", "vote-entropy", "variation-ratio", "variance"]


@dataclass(frozen=True)
class QBCConfig:
    """Options of qbc.

    Args:
        committee: dropout = networks drawn by dropout; networks = the model and others, trained apart from it.
        passes: Members that dropout draws.
        networks: Members that are trained, the model among them.
        measure: kl = mean divergence of the members from their mean, which for dropout is the score of bald;
            vote-entropy = entropy of their votes; variation-ratio = the part that is not of the majority; variance =
            that of their probabilities, summed over the classes.
        batch: The highest scores, or kmeans = the rows nearest to the centres of a k-means over ten times as many.
    """

    committee: Committee = "dropout"
    passes: int = 30
    networks: int = 5
    measure: Measure = "kl"
    batch: Batch = "highest"

    def __post_init__(self) -> None:
        check_batch(self.batch)
        one_of("committee", self.committee, get_args(Committee))
        object.__setattr__(self, "passes", whole("passes", self.passes, 2))
        object.__setattr__(self, "networks", whole("networks", self.networks, 2))
        one_of("measure", self.measure, get_args(Measure))


def choose(round: Round, budget: int, options: QBCConfig) -> Picked:
    """Choose the budget rows on which the committee disagrees most, as measured by `disagreement`.

    Raises:
        TypeError: the model is a plain function, and dropout draws the committee.
        ValueError: it runs no dropout layer; or the committee is of networks, and the round has none but the model.
    """
    round.one_class()
    p = committee(round, options)
    with round.stage("choose"):
        scores = disagreement(p, options.measure)
        return Picked(choose_batch(round, scores, budget, options.batch), scores)


def committee(round: Round, options: QBCConfig) -> Tensor:
    """The softmax of each member for each row, (m, members, C) float64."""
    if options.committee == "dropout":
        round.module("qbc")
        return round.sampled(options.passes)
    if not round.companions:
        raise ValueError(
            "qbc with committee='networks' asks several trained networks: pass the others with companions=[...], let "
            "dm2-fast run train them, or choose committee='dropout'"
        )
    logits = round.only_logits

    def members() -> Tensor:
        others = [round.forward.through(model).logits() for model in round.companions]
        return torch.stack([logits, *others], 1).double().softmax(2)

    return round.once("committee", None, members)


def disagreement(p: Tensor, measure: Measure) -> Tensor:
    """How much members with the softmax p (m, members, C) disagree on each row, (m,).

    kl is `(p * (p / p.mean(1, keepdim=True)).log()).sum(2).mean(1)`, computed as the entropy of the mean less the mean
    entropy. A member votes for its most probable class, the lower of equals.
    """
    if measure == "kl":
        information: Tensor = torch.special.entr(p.mean(1)).sum(1) - torch.special.entr(p).sum(2).mean(1)
        return information.clamp(min=0)
    if measure == "variance":
        return p.var(1, correction=0).sum(1)
    # sorted, so that what is equal but for the names of the classes is so to the last digit
    votes: Tensor = F.one_hot(p.argmax(2), p.shape[2]).sum(1).sort(1).values.double() / p.shape[1]
    return torch.special.entr(votes).sum(1) if measure == "vote-entropy" else 1 - votes.amax(1)


def companions(options: QBCConfig) -> int:
    """How many networks a run trains beside the model."""
    return options.networks - 1 if options.committee == "networks" else 0


COMMITTEE = Pass("committee", committee)
STRATEGY = Strategy("qbc", choose, QBCConfig, passes=(LOGITS, FEATURES, SAMPLED, COMMITTEE), companions=companions)
