"""k-means, and the row nearest to the centre of each cluster."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast.operations.nearest import lower_to_nearest
from dm2_fast.threads import each, threads_of_torch

_ROWS = 1024  # of a block: its shape decides the order of sums, so it is the same for any number of threads


def nearest_to_centres(
    features: Tensor,
    clusters: int,
    seed: int,
    *,
    weights: Tensor | None = None,
    sample: Tensor | None = None,
    iterations: int = 20,
    num_threads: int | None = None,
) -> Tensor:
    """The row of each k-means cluster of the L2-normalised features that is nearest to its centre, ties to the lower.

    k-means is Lloyd's, from one start by k-means++ (Arthur and Vassilvitskii 2007), until no row changes its cluster or
    the iterations are used up. A cluster that loses all its rows keeps its centre. The result does not depend on the
    number of threads.

    Args:
        features: (n, d).
        clusters: How many; where n is no more than that, all rows are returned.
        seed: Of k-means++.
        weights: (n,), at least 0; what each row counts. None for 1 each.
        sample: The rows that k-means++ looks for centres among; None for all.
        iterations: Most of k-means.
        num_threads: CPU threads; None for as many as torch uses.

    Returns:
        Rows in the order of their clusters, fewer than clusters where rows repeat.
    """
    n, threads = len(features), num_threads or threads_of_torch()
    if n <= clusters:
        return torch.arange(n)
    x = F.normalize(features.detach().float()).cpu().contiguous()
    counts = torch.ones(n, dtype=torch.float64) if weights is None else weights.detach().double().cpu()
    among = torch.arange(n) if sample is None else sample
    centres = x[among[_spread(x[among], counts[among], clusters, seed, threads)]]
    labels = _nearest(x, centres, threads)
    for _ in range(iterations):
        centres = _means(x, counts, labels, centres)
        before, labels = labels, _nearest(x, centres, threads)
        if torch.equal(labels, before):
            break
    found = labels.numpy()
    distances = np.square((x - centres[labels]).numpy()).sum(1)
    order = np.lexsort((distances, found))
    return torch.from_numpy(order[np.unique(found[order], return_index=True)[1]])


def _spread(x: Tensor, counts: Tensor, clusters: int, seed: int, threads: int) -> Tensor:
    """Rows of k-means++: each drawn in proportion to what it counts times its squared distance to those before it.

    Fewer than clusters where no other row is at a distance.
    """
    rng = np.random.default_rng(seed)
    distances, rows = torch.full((len(x),), torch.inf), list[int]()
    chances: NDArray[np.float64] = counts.numpy()
    while len(rows) < clusters and chances.any():
        sums = chances.cumsum()
        row = int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
        rows.append(min(row, int(np.flatnonzero(chances)[-1])))
        lower_to_nearest(x, x[rows[-1:]], distances, num_threads=threads)
        chances = counts.numpy() * distances.double().numpy()
    return torch.tensor(rows, dtype=torch.int64)


def _nearest(x: Tensor, centres: Tensor, threads: int) -> Tensor:
    """The centre nearest to each row, the lower of equals: `(x[:, None] - centres).square().sum(-1).argmin(1)`."""
    half = centres.square().sum(1) / 2

    def of(rows: Tensor) -> Tensor:
        return torch.addmm(half, rows, centres.T, alpha=-1).argmin(1)

    return torch.cat(list(each(of, x.split(_ROWS), threads)))


def _means(x: Tensor, counts: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """The mean of the rows of each label, weighted by what they count; that of none is the centre that was there."""
    sums, totals = torch.zeros(centres.shape, dtype=torch.float64), torch.zeros(len(centres), dtype=torch.float64)
    for rows, label, count in zip(x.split(_ROWS), labels.split(_ROWS), counts.split(_ROWS), strict=True):
        sums.index_add_(0, label, rows * count[:, None])
        totals.index_add_(0, label, count)
    return torch.where(totals[:, None] > 0, sums / totals[:, None], centres.double()).float()
