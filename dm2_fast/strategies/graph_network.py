"""The graph network of UncertainGCN and CoreGCN (Caramalau et al. 2021), in time linear in the rows.

Nodes are the rows of X (M, d), of unit norm. With S = X X^T less its diagonal and D its column sums, the network
smooths by A = S D^-1 + I. Neither is ever written: with o = |x|^2 of each row,
    A F   = X (X^T (F / D)) + (1 - o / D) F,
    A^T F = (X (X^T F)) / D + (1 - o / D) F,
    D     = X (X^T 1) - o.
A node whose column sum is not positive, which signed features can have, has no weights that sum to one: it is alone,
1 / D = 0. So is one below 1e-6, which may be rounding.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dm2_fast import draws
from dm2_fast.threads import each, threads_of_torch

HIDDEN, DROPOUT = 128, 0.3
STEPS, LR, WEIGHT_DECAY = 200, 1e-3, 5e-4
_BLOCK = 2048  # rows; part of the result's last bits, so it never changes with the machine

T = TypeVar("T")


def label_logits(
    pool: Tensor, labelled: Tensor, lam: float, seed: int, round: int, num_threads: int | None = None
) -> tuple[Tensor, Tensor]:
    """Train the network to tell labelled from unlabelled nodes; return its logits (M,) and hidden features (M, 128).

    The nodes are the rows of pool, then those of labelled, divided by their norm. Specifically, with the dense A, this
    trains `s = sigmoid(A @ dropout(relu(A @ X @ W1 + b1)) @ W2 + b2)` with 200 steps of Adam (lr 1e-3, weight decay
    5e-4) on `-log(s[labelled]).mean() - lam * log(1 - s[pool]).mean()`, and returns the logits of s and the hidden
    features without dropout. The gradient of the loss is taken at the logit, where no logarithm of 0 occurs. Weights
    start uniform in +-1 / sqrt(outputs); they and the dropout are keyed by seed and round. The result does not depend
    on the number of threads: each works on whole blocks of rows, and blocks are added in their order.
    """
    nodes = torch.cat([F.normalize(rows.detach().float()) for rows in (pool, labelled)])
    with torch.no_grad():
        network = GraphNetwork(nodes, num_threads or threads_of_torch(), seed, round)
        for step in range(STEPS):
            network.step(step, len(pool), lam)
        return network.logits(), network.hidden


def label_scores(
    pool: Tensor, labelled: Tensor, lam: float, seed: int, round: int, num_threads: int | None = None
) -> tuple[Tensor, Tensor]:
    """`label_logits` with s, the probability of being labelled, in place of its logit."""
    logits, hidden = label_logits(pool, labelled, lam, seed, round, num_threads)
    return torch.sigmoid(logits), hidden


class GraphNetwork:
    """The nodes, their smoothed features A X, the weights and the hidden features of the last pass."""

    def __init__(self, nodes: Tensor, num_threads: int, seed: int, round: int) -> None:
        (m, d), device = nodes.shape, nodes.device
        self.nodes, self.num_threads, self.seed, self.round = nodes, num_threads, seed, round
        self.blocks = [slice(i, min(i + _BLOCK, m)) for i in range(0, m, _BLOCK)]
        own = torch.cat(self.each(lambda b: nodes[b].double().square().sum(1)))
        total = self.sum(lambda b: nodes[b].double().sum(0))
        degree = torch.cat(self.each(lambda b: nodes[b].double() @ total)) - own
        self.inverse = torch.where(degree > 1e-6, 1 / degree, 0).float()[:, None]
        self.keep = 1 - own.float()[:, None] * self.inverse
        self.smoothed = self.smooth(nodes)
        self.hidden = nodes.new_zeros(m, HIDDEN)
        self.dropout = [torch.Generator() for _ in self.blocks]
        generator = torch.Generator().manual_seed(self.key(0))
        sizes = ((d, HIDDEN), (HIDDEN,), (HIDDEN, 1), (1,))
        self.weights = [
            (2 * torch.rand(size, generator=generator) - 1).div_(size[-1] ** 0.5).to(device) for size in sizes
        ]
        self.optimizer = torch.optim.Adam(self.weights, lr=LR, weight_decay=WEIGHT_DECAY, foreach=False)

    def key(self, number: int) -> int:
        """The seed of one generator."""
        return int(draws.uniform(self.seed, self.round, np.array([number]), "graph")[0] * 2**53)

    def each(self, work: Callable[[slice], T]) -> list[T]:
        """work of every block, in their order."""
        return list(each(work, self.blocks, self.num_threads))

    def sum(self, work: Callable[[slice], Tensor]) -> Tensor:
        """The sum of work over the blocks, in their order."""
        return reduce(torch.add, self.each(work))

    def smooth(self, f: Tensor) -> Tensor:
        """A f for f (M, c)."""
        x = self.nodes
        inner = self.sum(lambda b: x[b].T @ (self.inverse[b] * f[b]))
        return torch.cat(self.each(lambda b: x[b] @ inner + self.keep[b] * f[b]))

    def smooth_transposed(self, f: Tensor) -> Tensor:
        """A^T f for f (M, c)."""
        x = self.nodes
        inner = self.sum(lambda b: x[b].T @ f[b])
        return torch.cat(self.each(lambda b: self.inverse[b] * (x[b] @ inner) + self.keep[b] * f[b]))

    def logits(self, step: int | None = None) -> Tensor:
        """The logits (M,) with the dropout of a training step, or without; the hidden features are kept."""
        second = torch.cat(self.each(partial(self._hidden, step)))
        return (self.smooth(second) + self.weights[3])[:, 0]

    def _hidden(self, step: int | None, block: slice) -> Tensor:
        w1, b1, w2, _ = self.weights
        hidden = torch.addmm(b1, self.smoothed[block], w1).relu_()
        if step is not None:
            number = block.start // _BLOCK
            generator = self.dropout[number].manual_seed(self.key(1 + step * len(self.blocks) + number))
            kept = torch.empty(hidden.shape).bernoulli_(1 - DROPOUT, generator=generator)
            hidden *= kept.to(hidden.device) / (1 - DROPOUT)
        self.hidden[block] = hidden
        return hidden @ w2

    def step(self, step: int, pool: int, lam: float) -> None:
        """One step of Adam on the loss, with gradients written out so that blocks can be added in their order."""
        s = torch.sigmoid(self.logits(step))
        slope = torch.cat([lam * s[:pool] / pool, (s[pool:] - 1) / (len(s) - pool)])[:, None]
        back = self.smooth_transposed(slope)

        def gradients(block: slice) -> tuple[Tensor, Tensor, Tensor]:
            hidden = self.hidden[block]
            through = (hidden > 0) * (back[block] @ self.weights[2].T) / (1 - DROPOUT)
            return self.smoothed[block].T @ through, through.sum(0), hidden.T @ back[block]

        parts = zip(*self.each(gradients), strict=True)
        found = [*(reduce(torch.add, part) for part in parts), self.sum(lambda b: slope[b].sum(0))]
        for weight, gradient in zip(self.weights, found, strict=True):
            weight.grad = gradient
        self.optimizer.step()
