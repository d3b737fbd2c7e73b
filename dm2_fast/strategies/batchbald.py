"""BatchBALD: a batch whose labels together would tell most about the network (Kirsch et al. 2019).

Networks t = 1..T are drawn by dropout; p[x, t] is the softmax of row x by network t, and the label of each row is
drawn from it. The information of a batch about the network is I(y_1..y_b; t) = H(y_1..y_b) - H(y_1..y_b | t), and by
the chain rule it grows with a row x by
    I(y_x; t | y_1..y_b) = E[H(y_x | y_1..y_b)] - mean over t of H(p[x, t]).
So all that has to be known of a batch is, for each configuration k of its labels, how probable it is and what it says
about the networks: w[k, t] = P(t | k), with which P(y_x | k) is the sum over t of w[k, t] p[x, t]. Nothing underflows,
however long the batch.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dm2_fast import draws
from dm2_fast.operations.arguments import whole
from dm2_fast.round import Picked, Round
from dm2_fast.strategy import FEATURES, SAMPLED, Strategy

_BLOCK = 2**22  # elements of P(y_x | k) that are there at once
_ROUNDING = 1e-12  # nats
_LARGE = 100  # budgets beyond which the cost is said


@dataclass(frozen=True)
class BatchBALDConfig:
    """Options of batchbald.

    Args:
        passes: Networks drawn by dropout. The labels of a batch hold at most the logarithm of this about them.
        configurations: The labels of the batch are all looked at while they have at most this many configurations;
            then as many of these are drawn as there are whole multiples of passes in it.
    """

    passes: int = 30
    configurations: int = 10_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", whole("passes", self.passes, 2))
        object.__setattr__(self, "configurations", whole("configurations", self.configurations, self.passes))


def choose(round: Round, budget: int, options: BatchBALDConfig) -> Picked:
    """Choose budget rows, each the one that adds most to the information of those before about the network.

    The first is that of bald. Of rows that add the same but for rounding, 1e-12 nats, the lower one is chosen. Rows
    have no score of their own.

    Raises:
        TypeError: the model is a plain function.
        ValueError: it runs no dropout layer.
    """
    round.module("batchbald")
    p = round.sampled(options.passes)
    if budget > _LARGE:
        terms = float(budget) * options.configurations * p.numel()
        warnings.warn(
            f"batchbald with a budget of {budget} takes about {terms:.0e} multiplications, and its estimates saturate: "
            f"all labels together tell at most log({options.passes}) = {np.log(options.passes):.2f} nats about the "
            "networks; for a large budget bald or badge cost less",
            stacklevel=3,
        )
    with round.stage("choose"):
        return Picked(greedy(p, budget, options.configurations, round.seed, round.round), None)


def greedy(p: Tensor, budget: int, configurations: int, seed: int, round: int) -> Tensor:
    """The rows chosen, (budget,).

    Args:
        p: Softmax of each row by each network, (m, T, C) float64.
        budget: How many to choose.
        configurations: The most configurations of labels.
        seed, round: Key of the labels that are drawn.
    """
    conditional = torch.special.entr(p).sum(2).mean(1)
    batch = Labels(p, configurations, seed, round)
    chosen = torch.zeros(len(p), dtype=torch.bool, device=p.device)
    picks: list[int] = []
    while True:
        gains = batch.entropies() - conditional
        gains = gains.masked_fill(chosen, -torch.inf)
        picks.append(int((gains >= gains.max() - _ROUNDING).to(torch.uint8).argmax()))
        chosen[picks[-1]] = True
        if len(picks) == budget:
            return torch.tensor(picks, device=p.device)
        batch.add(picks[-1])


class Labels:
    """The configurations of the labels of a batch: all of them, with their probabilities, or equally probable draws.

    Attributes:
        weights: Probability of each configuration, (K,).
        networks: That of each network, given the configuration, (K, T).
    """

    def __init__(self, p: Tensor, configurations: int, seed: int, round: int) -> None:
        self.p, self.configurations, self.seed, self.round = p, configurations, seed, round
        self.rows: list[int] = []
        self.drawn_from: Tensor | None = None
        self.weights = p.new_ones(1)
        self.networks = p.new_full((1, p.shape[1]), 1 / p.shape[1])

    def entropies(self) -> Tensor:
        """The entropy of each row's label, given the configuration, in the mean over these; (m,)."""
        m, t, c = self.p.shape
        found, size = self.p.new_zeros(m), max(1, _BLOCK // (len(self.weights) * c))
        for start in range(0, m, size):
            some = self.p[start : start + size]
            given = self.networks @ some.transpose(0, 1).reshape(t, -1)
            found[start : start + size] = self.weights @ torch.special.entr(given).view(-1, len(some), c).sum(2)
        return found

    def add(self, row: int) -> None:
        """Let the batch have this row, too."""
        self.rows.append(row)
        _, t, c = self.p.shape
        if self.drawn_from is None and len(self.weights) * c <= self.configurations:
            joint = self.networks[:, :, None] * self.p[row]
            given = joint.sum(1)
            self.weights = (self.weights[:, None] * given).flatten()
            joint = torch.where(given[:, None] > 0, joint / given[:, None], 1 / t)
            self.networks = joint.transpose(1, 2).reshape(-1, t)
            return
        late = [row]
        if self.drawn_from is None:
            late, per_network = self.rows, self.configurations // t
            self.drawn_from = torch.arange(t, device=self.p.device).repeat_interleave(per_network)
            self.weights = self.p.new_full((t * per_network,), 1 / (t * per_network))
            self.networks = self.p.new_full((t * per_network, t), 1 / t)
        for one in late:
            position = self.rows.index(one)
            uniform = draws.generator(self.seed, self.round, "configurations", position).random(len(self.weights))
            cumulative = self.p[one].cumsum(1)[self.drawn_from]
            u = torch.from_numpy(uniform).to(cumulative)[:, None] * cumulative[:, -1:]
            possible = (self.p[one] > 0) * torch.arange(c, device=self.p.device)
            label = (cumulative <= u).sum(1).minimum(possible.amax(1)[self.drawn_from])  # u may be rounded to the sum
            self.networks = self.networks * self.p[one][:, label].T
            self.networks = self.networks / self.networks.sum(1, keepdim=True)


STRATEGY = Strategy("batchbald", choose, BatchBALDConfig, passes=(FEATURES, SAMPLED))
