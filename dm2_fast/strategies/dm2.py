"""DM2: the samples whose mixture with their neighbours is most uncertain (Algorithm 1, lines 8-20)."""

import warnings
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from dm2_fast.model.batches import check_mixable
from dm2_fast.operations.knn import Metric, knn, weights
from dm2_fast.operations.mix import Mix, check_mix, recipe
from dm2_fast.round import Picked, Round, check_budget, highest
from dm2_fast.strategy import FEATURES, Pass, Strategy


@dataclass(frozen=True)
class DM2Config:
    """Options of dm2 and dm2-at. The paper's own values of k, lambda and alpha are lost; these defaults are ours.

    Args:
        metric: Distance of features, Eqs. 4-6: literal = (L2/d + L1/d) / 2, rms = (L2/sqrt(d) + L1/d) / 2, l1, l2.
        k: Nearest neighbours of each sample; clamped, with a warning, where the pool has fewer.
        mix: What a sample is mixed with, Eq. 7: the mean of its k neighbours, one of them at random (Algorithm 1), or
            all, weighted by 1 / distance.
        lam: Lambda of Eq. 7, the weight of the sample itself, in [0, 1]; or beta, drawn per sample.
        alpha: Parameter of the Beta(alpha, alpha) that lam=beta draws from.
        score: Uncertainty of the mixed sample, Eq. 10: 1 - max softmax, or entropy.
        offset: Skip this many of the highest scores before choosing (Figure 1).
        space: What is mixed: the input of the model, or features = the input of its head, Eq. 7 on f in place of x;
            only the head runs on the mixtures, and anything that has features can be mixed.
    """

    metric: Metric = "literal"
    k: int = 10
    mix: Mix = "mean"
    lam: float | Literal["beta"] = 0.5
    alpha: float = 1.0
    score: Literal["least-confidence", "entropy"] = "least-confidence"
    offset: int = 0
    space: Literal["input", "features"] = "input"

    def __post_init__(self) -> None:
        weights(self.metric, 1)
        check_mix(self.mix, self.lam, self.alpha)
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        scores = get_args(DM2Config.__annotations__["score"])
        if self.score not in scores:
            raise ValueError(f"score must be one of {', '.join(scores)}, got {self.score!r}")
        if self.space not in ("input", "features"):
            raise ValueError(f"space must be input or features, got {self.space!r}")
        if self.offset < 0:
            raise ValueError(f"offset must be at least 0, got {self.offset}")


def choose(round: Round, budget: int, options: DM2Config) -> Picked:
    """Choose the budget rows whose mixtures score highest, after skipping options.offset, ties to the lower row."""
    m, forward = len(round), round.forward
    check_budget(budget, m, options.offset)
    if options.space == "features":
        forward = round.behind_head
    else:
        check_mixable(round.samples)
    features = round.features
    k = min(options.k, m - 1)
    if k < options.k:
        warnings.warn(f"k={options.k} is clamped to {k}: the pool has {m} row{'s' * (m > 1)}", stacklevel=4)
    with round.stage("neighbours"):
        distances, neighbours = torch.empty(m, 0), torch.empty(m, 0, dtype=torch.int64)
        if k:
            distances, neighbours = knn(features, k, options.metric, progress=forward.progress, **forward.compute)
    with round.stage("mixed"):
        mixture = recipe(
            distances, neighbours, options.mix, options.lam, options.alpha,
            seed=round.seed, round=round.round, row_ids=round.ids,
        )  # fmt: skip
        scores = round.once(
            "mixed", replace(options, offset=0), lambda: forward.mixed_uncertainty(mixture, options.score)
        )
    with round.stage("choose"):
        indices = highest(scores, budget, options.offset)
    return Picked(indices, scores, neighbours, distances, mixture)


MIXED = Pass("mixed", lambda round, options: choose(round, 1, replace(options, offset=0)))

STRATEGY = Strategy("dm2", choose, DM2Config, passes=(FEATURES, MIXED))
