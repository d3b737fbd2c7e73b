"""Alpha-Mix: diverse samples whose prediction flips when labelled features are mixed in (Parvaneh et al. 2022).

A row u mixed with an anchor a is `u + cap / d**0.5 * (a - u).norm() * g / g.norm()`, the paper's closed form; g is the
gradient in u of the cross-entropy of the class that is predicted for u. `flipping_caps` finds the cap from which on the
prediction of the mixture is another one.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast import draws
from dm2_fast.model.head import check_labels
from dm2_fast.operations.arguments import number, one_of, whole
from dm2_fast.round import Picked, Round
from dm2_fast.strategies import alpha_learned
from dm2_fast.strategies.clusters import nearest_to_centres
from dm2_fast.strategy import FEATURES, LABELLED, Strategy

_CAP_STEPS = {"closed": 0.2, "learned": 0.03125}  # what the authors recommend, and the default of their code
_BLOCK = 1 << 20  # elements of the features that are in float64 at once


@dataclass(frozen=True)
class AlphaMixConfig:
    """Options of alpha-mix.

    Args:
        alpha: closed = the closed form of the paper; learned = optimised for each sample and anchor, many times slower.
        cap_step: The cap on alpha grows by this much until more than budget samples change their prediction; null for
            the authors' values, 0.2 for the closed form and 0.03125 for the learned one.
        iterations: Most iterations of k-means.
    """

    cap_step: float | None = None
    iterations: int = 20
    alpha: Literal["closed", "learned"] = "closed"

    def __post_init__(self) -> None:
        one_of("alpha", self.alpha, tuple(_CAP_STEPS))
        if self.cap_step is not None:
            number("cap_step", self.cap_step, "in (0, 1]", lambda value: 0 < value <= 1)
        object.__setattr__(self, "iterations", whole("iterations", self.iterations, 1))


def choose(round: Round, budget: int, options: AlphaMixConfig) -> Picked:
    """Choose, among the rows that mixing with an anchor can flip, the one nearest to each of budget k-means centres.

    An anchor is the mean feature vector of a class's labelled samples. The candidates are the rows that flip (see
    `flipping_caps` and `learned_flips`) at the smallest multiple of cap_step at which more than budget do; the first
    multiple from 1 on is the last. k-means runs on all their L2-normalised features: scikit-learn's, one start
    (n_init=1). The centres that it starts from are sub-sampled: k-means++ finds them among 3 * budget of the candidates
    drawn at random, as scikit-learn's MiniBatchKMeans does, since to search all would take longer than all iterations.
    Where clusters are empty or candidates too few, rows drawn at random fill up, candidates first.

    Raises:
        ValueError: there is no labelled set, or the head is not linear.
    """
    round.one_class()
    if not isinstance(round.head, nn.Linear):
        raise ValueError(f"head must be a linear layer for alpha-mix, got {type(round.head).__name__}")
    if round.labels is None:
        raise ValueError("this strategy compares classes: pass labels= with those of the labelled samples")
    features, logits, labelled = round.features, round.logits, round.labelled_features
    check_labels(round.labels, logits.shape[1])
    with round.stage("choose"):
        centres = anchors(labelled, round.labels, logits.shape[1])
        step = options.cap_step or _CAP_STEPS[options.alpha]
        if options.alpha == "closed":
            caps = flipping_caps(features, logits, round.head.weight, centres)
            candidates = _candidates(caps.cpu(), budget, step)
        else:
            candidates = _learned(round, round.head, features, centres, budget, step)
        order = torch.from_numpy(draws.uniform(round.seed, round.round, round.ids, "clusters"))
        seed = int(draws.generator(round.seed, round.round, "clusters").integers(2**32))
        sample = order[candidates].argsort(stable=True)[: 3 * budget]
        nearest = nearest_to_centres(
            features[candidates], budget, seed, sample=sample, iterations=options.iterations,
            num_threads=round.forward.compute["num_threads"],
        )  # fmt: skip
        picks = candidates[nearest]
        order[candidates] -= 1
        order[picks] = torch.inf
        fill = order.argsort(stable=True)[: budget - len(picks)]
    return Picked(torch.cat([picks, fill]).to(features.device), None)


def _learned(round: Round, head: nn.Linear, features: Tensor, centres: Tensor, budget: int, step: float) -> Tensor:
    """The rows that flip in `learned_flips` at the smallest multiple of step at which more than budget do."""
    noise = alpha_learned.start(round, features)
    for times in range(1, math.ceil(1 / step) + 1):
        flipped = alpha_learned.learned_flips(features, head, centres, min(1.0, times * step), noise)
        if int(flipped.sum()) > budget:
            break
    return torch.nonzero(flipped.cpu())[:, 0]


def anchors(labelled: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean of each class's labelled features, (C, d) float64; a class without any has the mean of all."""
    x, labels = labelled.double(), labels.to(labelled.device)
    members = F.one_hot(labels, classes).double()
    counts = members.sum(0)[:, None]
    return torch.where(counts > 0, members.T @ x / counts.clamp(min=1), x.mean(0))


def flipping_caps(features: Tensor, logits: Tensor, weight: Tensor, anchors: Tensor) -> Tensor:
    """The cap on alpha from which on each row's prediction flips, (m,) float64; infinite where it never does.

    The closed form of the paper mixes u = features[i] with anchor a into `(1 - alpha) * u + alpha * a`, where
        alpha = cap / sqrt(d) * (a - u).norm() / g.norm() * g / (a - u)
    and g is the gradient in u of the cross-entropy of u's own prediction y. So the mixture is u, moved along g by
    cap / sqrt(d) * (a - u).norm(), and the farthest anchor moves it most. A linear head's logits change linearly on the
    way: the prediction flips where the first of the other classes overtakes y. One pass so serves all caps and anchors.

    Args:
        features, logits: (m, d) and (m, C) of the pool.
        weight: (C, d) of the linear head.
        anchors: (C, d).
    """
    centred = weight.detach().double()
    centred = centred - centred.mean(0)  # the gradient's coefficients sum to 0: the common part only costs digits
    gram = centred @ centred.T
    size = max(1, _BLOCK // max(features.shape[1], len(weight)))
    caps = torch.cat(
        [
            _flip_distance(y.double(), gram) / torch.cdist(u.double(), anchors.double()).amax(1)
            for u, y in zip(torch.split(features, size), torch.split(logits, size), strict=True)
        ]
    )
    return (math.sqrt(features.shape[1]) * caps).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _flip_distance(logits: Tensor, gram: Tensor) -> Tensor:
    """How far features move along the gradient of the loss before another class overtakes the predicted one."""
    top, predicted = logits.max(1, keepdim=True)
    others = logits.scatter(1, predicted, -torch.inf)
    # p - onehot, up to a factor that keeps it from underflowing for confident rows
    r = (others - others.amax(1, keepdim=True)).exp()
    r.scatter_(1, predicted, -r.sum(1, keepdim=True))
    slopes = r @ gram
    length = (r * slopes).sum(1, keepdim=True).clamp(min=0).sqrt()
    approach = (slopes - slopes.gather(1, predicted)) / length
    gap = (top - logits).masked_fill((approach > 0).logical_not(), torch.inf)
    gap.scatter_(1, predicted, torch.inf)
    return (gap / approach.clamp(min=torch.finfo(approach.dtype).tiny)).amin(1)


def _candidates(caps: Tensor, budget: int, step: float) -> Tensor:
    """The rows that flip at the smallest multiple of step at which more than budget do; at most the first from 1 on."""
    limits = step * torch.arange(1, math.ceil(1 / step) + 1, dtype=caps.dtype)
    needed = caps.kthvalue(budget + 1).values if budget < len(caps) else torch.inf
    enough = limits[limits > needed]
    return torch.nonzero(caps < (enough if len(enough) else limits[-1:])[0])[:, 0]


STRATEGY = Strategy("alpha-mix", choose, AlphaMixConfig, passes=(FEATURES, LABELLED))
