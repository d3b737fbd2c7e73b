"""Cluster-Margin: small margins, taken in turn from clusters that were found once (Citovsky et al. 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast import draws, extras
from dm2_fast.operations.arguments import whole
from dm2_fast.operations.knn import knn
from dm2_fast.round import Picked, Round, highest
from dm2_fast.strategies.linkage import average_linkage
from dm2_fast.strategy import FEATURES, Strategy
from dm2_fast.threads import clustering

SMALL = 2000  # rows of which all distances are looked at
NEIGHBOURS = 10  # of each row in the graph of a larger pool
_EDGES = 8192  # whose lengths are computed at a time


@dataclass(frozen=True)
class ClusterMarginConfig:
    """Options of cluster-margin; the paper's own values are not known for all data sets, so these are ours.

    Args:
        candidates: The rows with the smallest margins are candidates, this many times the budget.
        size: Rows of a cluster, on average.
    """

    candidates: int = 10
    size: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", whole("candidates", self.candidates, 1))
        object.__setattr__(self, "size", whole("size", self.size, 1))


def choose(round: Round, budget: int, options: ClusterMarginConfig) -> Picked:
    """Choose one candidate at random from each cluster in turn, smallest cluster first, until budget are chosen.

    A cluster is as large as it has candidates; of equals, that of the lower candidate comes first. Clusters are those
    of the first round in which the strategy was asked, kept in `Round.remembered`; they are found anew if a row has
    none, as with other candidates each round. Rows have no score of their own.
    """
    round.one_class()
    features, logits = round.features, round.logits
    ids = torch.from_numpy(round.ids)
    if not _known(round.remembered, ids):
        with round.stage("clusters"):
            count = max(1, len(round) // options.size)
            labels = clusters(features.detach().cpu(), count, **round.forward.compute)
            round.remembered |= {"ids": ids, "clusters": torch.from_numpy(labels)}
    with round.stage("choose"):
        known, order = round.remembered["ids"].sort()
        labels = round.remembered["clusters"][order[torch.searchsorted(known, ids)]]
        margins = round.forward.uncertainty(logits, "margin").cpu()
        candidates = highest(margins, options.candidates * budget).sort().values
        draw = torch.from_numpy(draws.uniform(round.seed, round.round, round.ids, "robin"))
        picks = round_robin(candidates, labels[candidates].numpy(), draw[candidates].numpy(), budget)
    return Picked(picks.to(features.device), None)


def _known(remembered: dict[str, Any], ids: Tensor) -> bool:
    return "clusters" in remembered and bool(torch.isin(ids, remembered["ids"]).all())


def round_robin(rows: Tensor, labels: NDArray[Any], draw: NDArray[np.float64], budget: int) -> Tensor:
    """One of the rows (n,) of each cluster in turn, the lowest draw first, clusters by rising size; (budget,)."""
    _, first, of, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    turn = np.empty(len(rows), np.int64)  # how many of its cluster come before a row
    by_cluster = np.lexsort((draw, of))
    turn[by_cluster] = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rows[torch.from_numpy(np.lexsort((first[of], sizes[of], turn))[:budget].copy())]


def clusters(features: Tensor, count: int, **compute: Any) -> NDArray[np.int64]:
    """Merge the rows of unit norm into count clusters, always the two at the least mean distance; labels (m,).

    Up to `SMALL` rows, all distances are looked at, by scikit-learn. Beyond, those along the edges of the exact graph
    of the 10 nearest neighbours, to which the shortest edges between its parts are added: the distance of two clusters
    is then the mean of their edges as they were merged, and clusters without an edge are not merged.
    """
    x = F.normalize(features.float())
    if count >= len(x):
        return np.arange(len(x))
    if len(x) > SMALL:
        graph = connected(x, neighbour_edges(x, **compute), **compute).tocoo()
        i, j = (side.astype(np.int64) for side in graph.coords)
        return average_linkage((i, j), _lengths(x, i, j), len(x), count)
    with extras.needed("strategies", "strategy cluster-margin"):
        from sklearn.cluster import AgglomerativeClustering

    with clustering():
        labels: NDArray[np.int64] = AgglomerativeClustering(count, linkage="average").fit_predict(x.double().numpy())
    return labels


def _lengths(x: Tensor, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
    """The distances |x_i - x_j| in float64, a block at a time as the rows take more memory than the pool."""
    blocks = zip(torch.from_numpy(i).split(_EDGES), torch.from_numpy(j).split(_EDGES), strict=True)
    return np.concatenate([(x[one].double() - x[other].double()).norm(dim=1).numpy() for one, other in blocks])


def neighbour_edges(x: Tensor, **compute: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows i and j of every edge of the graph of nearest neighbours."""
    nearest = knn(x, min(NEIGHBOURS, len(x) - 1), "l2", **compute)[1].numpy()
    return np.repeat(np.arange(len(x)), nearest.shape[1]), nearest.ravel()


def connected(x: Tensor, edges: Sequence[NDArray[np.int64]], **compute: Any) -> Any:
    """The graph of the edges as a sparse matrix, with the shortest edge from each of its parts to another while it has
    several."""
    with extras.needed("strategies", "strategy cluster-margin"):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

    i, j = edges
    while True:
        graph = coo_array((np.ones(len(i)), (i, j)), shape=(len(x), len(x))).tocsr()
        parts, part = connected_components(graph, directed=False)
        if parts == 1:
            return graph
        largest = np.bincount(part).argmax()
        for number in range(parts):
            if number == largest:
                continue
            mine, others = np.flatnonzero(part == number), np.flatnonzero(part != number)
            distances, nearest = knn(x[others], 1, "l2", queries=x[mine], **compute)
            row = int(distances[:, 0].argmin())
            i, j = np.append(i, mine[row]), np.append(j, others[int(nearest[row, 0])])


STRATEGY = Strategy("cluster-margin", choose, ClusterMarginConfig, passes=(FEATURES,))
