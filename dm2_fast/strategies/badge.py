"""BADGE: k-means++ seeding on the gradients that the predicted label would cause at the head (Ash et al. 2020).

The gradient of a row is q x h, with h its feature vector and q = softmax - one-hot of the predicted class. It is never
written: with u = q - q', v = h - h', the squared distance of two gradients is
    |q x h - q' x h'|^2 = |u|^2 (|h|^2 + |h'|^2) / 2 + (q.q') |v|^2 + (|q|^2 - |q'|^2) (|h|^2 - |h'|^2) / 2,
with q.q' = (|q|^2 + |q'|^2 - |u|^2) / 2. Unlike |q|^2 |h|^2 + |q'|^2 |h'|^2 - 2 (q.q') (h.h'), it keeps its digits
where two rows are alike, since |u|^2 and |v|^2 are sums of squared differences; equal rows are at exactly 0.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dm2_fast import draws
from dm2_fast.operations.nearest import lower_to_nearest, nearest_squared
from dm2_fast.round import Picked, Round
from dm2_fast.share import Share, Whole
from dm2_fast.strategy import FEATURES, Strategy


def choose(round: Round, budget: int, options: None) -> Picked:
    """Choose budget rows: first the longest gradient, then each with probability proportional to its squared distance.

    The distance is that to the nearest chosen gradient. Labelled samples are not centres. Once every gradient that is
    left equals a chosen one, rows are drawn uniformly from those not yet chosen. It has no options; rows have no score
    of their own.
    """
    round.one_class()
    features, logits = round.features, round.logits
    with round.stage("choose"):
        uniforms = draws.uniform(round.seed, round.round, np.arange(budget), "seeding").tolist()
        gradients = Gradients(features, logits, round.share, **round.forward.compute)
        weights = gradients.squared_norms
        free = torch.ones(round.share.total, dtype=torch.bool, device=weights.device)
        picks: list[int] = []
        for u in uniforms:
            every = round.share.gather(weights)
            row = int(every.argmax()) if not picks and every.max() > 0 else draw(every, free, u)
            weights = gradients.nearer(weights if picks else torch.full_like(weights, torch.inf), row)
            free[row] = False
            picks.append(row)
    return Picked(torch.tensor(picks, device=features.device), None)


def draw(weights: Tensor, free: Tensor, u: float) -> int:
    """The row that u in (0, 1) draws with probability proportional to weights; uniformly from the free if all are 0."""
    weights = weights if weights.max() > 0 else free.double()
    cumulative = weights.cumsum(0)
    below = int(torch.searchsorted(cumulative, u * cumulative[-1:], right=True))
    return min(below, int(weights.nonzero()[-1]))  # u may be rounded to 1


class Gradients:
    """The gradients of a pool, as the factors q (m, C) in float64 and h (m, d), or of its share."""

    def __init__(self, features: Tensor, logits: Tensor, share: Share | None = None, **compute: Any) -> None:
        self.share = share or Whole(len(features))
        self.h = features if features.dtype == torch.float64 else features.float()
        self.q = logits.double().softmax(1)
        self.q[torch.arange(len(logits), device=logits.device), logits.argmax(1)] -= 1
        self.compute = compute  # backend and num_threads
        self.q_squared = nearest_squared(self.q, torch.zeros_like(self.q[:1]), **compute)
        self.h_squared = torch.cat([part.double().square().sum(1) for part in torch.split(self.h, 1024)])
        self.h_norm = self.h_squared.sqrt()
        self.squares = torch.stack((self.q_squared, self.h_squared, self.h_norm), 1)

    @property
    def squared_norms(self) -> Tensor:
        """|q|^2 |h|^2, (m,) float64."""
        return self.q_squared * self.h_squared

    def nearer(self, squared: Tensor, row: int) -> Tensor:
        """The smaller of squared (m,) and the squared distance of each gradient to that of a row, which gets 0."""
        q, h, squares = (self.share.row(x, row) for x in (self.q, self.h, self.squares))
        q_squared, h_squared, h_norm = squares[0]
        u = nearest_squared(self.q, q, **self.compute)
        slope = (self.q_squared + q_squared - u) / 2
        constant = u * (self.h_squared + h_squared) / 2
        constant += (self.q_squared - q_squared) * (self.h_squared - h_squared) / 2

        # The distance constant + slope |v|^2 is below squared only where |v|^2 is below a limit, rounded up here. Where
        # it falls with |v|, it is not below squared if it is not for the longest v that there can be.
        room = squared - constant
        falls = (slope <= 0) & (slope * (self.h_norm + h_norm).square() < room)
        limit = torch.where(slope > 0, room / slope * (1 + 1e-6), torch.where(falls, torch.inf, 0)).to(self.h.dtype)
        v = limit.clone()
        lower_to_nearest(self.h, h, v, **self.compute)
        nearer = torch.where(limit > 0, constant + slope * v.double(), squared).clamp(min=0).minimum(squared)
        if 0 <= row - self.share.first < len(nearer):
            nearer[row - self.share.first] = 0
        return nearer


STRATEGY = Strategy("badge", choose, passes=(FEATURES,), in_parts=True)
