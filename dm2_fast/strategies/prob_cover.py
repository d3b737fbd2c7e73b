"""ProbCover: balls of one radius around the chosen samples cover as many samples as they can (Yehuda et al. 2022)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast import draws, extras
from dm2_fast.operations.arguments import number, one_of
from dm2_fast.operations.knn import knn
from dm2_fast.operations.nearest import lower_to_nearest, nearest_squared
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.k_center import k_center_greedy
from dm2_fast.strategy import FEATURES, LABELLED, Strategy
from dm2_fast.threads import clustering

MOST_EDGES = 2 * 10**8  # of both directions, which bounds the memory
_BLOCK = 2**24  # pairs looked at together


@dataclass(frozen=True)
class ProbCoverConfig:
    """Options of prob-cover. A radius that suits one network's features does not suit another's, so ours is measured.

    Args:
        radius: L2 distance of unit-norm features below which a sample covers another; or purity, the largest radius at
            which the part `purity` of all samples have only samples of their own cluster within it, with as many
            k-means clusters as there are classes (the paper's rule, without its grid).
        purity: That part, in (0, 1].
        features: Those of the model, which labels have taught; or own = features learned without labels, which is the
            setting of the paper (`features` of a run, `Round.own_features`).
    """

    radius: float | Literal["purity"] = "purity"
    purity: float = 0.95
    features: Literal["model", "own"] = "model"

    def __post_init__(self) -> None:
        if not (isinstance(self.radius, str) and self.radius == "purity"):
            number("radius", self.radius, "positive and finite or 'purity'", lambda value: value > 0)
        number("purity", self.purity, "in (0, 1]", lambda value: 0 < value <= 1)
        one_of("features", self.features, ("model", "own"))


def choose(round: Round, budget: int, options: ProbCoverConfig) -> Picked:
    """Choose budget rows, each the one whose ball holds the most samples that no ball holds yet, ties to the lower row.

    A ball holds the samples at a distance strictly below the radius, its centre among them. Features are divided by
    their norm, so that a radius means the same in every round. What the labelled set covers is covered from the start.
    Once all samples are covered, every further ball is as good as another; the remaining picks are the rows farthest
    from everything labelled or chosen (k-center greedy), which is the same aim with a smaller radius.

    Raises:
        ValueError: features=own and there are none; or so many pairs are within the radius that their graph would need
            more than `MOST_EDGES` entries.
    """
    features, labelled = _features(round, options)
    classes = round.logits.shape[1]
    compute = round.forward.compute
    if compute["backend"] == "triton":
        compute["backend"] = "auto"  # all of this is on the CPU, on whatever device the model is
    with round.stage("radius"):
        x, centres = (F.normalize(f.detach().cpu().float()) for f in (features, labelled))
        radius = options.radius
        if radius == "purity":
            key = draws.uniform(round.seed, round.round, np.zeros(1, np.int64), "clusters")
            radius = pure_radius(torch.cat([x, centres]), classes, options.purity, int(key[0] * 2**32), **compute)
    with round.stage("edges"):
        covered = torch.full((len(x),), radius**2, dtype=torch.float64)
        lower_to_nearest(x.double(), centres.double(), covered, **compute)
        graph = Graph(x, radius)
    with round.stage("choose"):
        picks = graph.cover((covered < radius**2).numpy(), budget)
        if len(picks) < budget:
            distances = nearest_squared(x, torch.cat([centres, x[picks]]), **compute)
            distances[picks] = -1
            picks += k_center_greedy(x, budget - len(picks), distances, **compute).tolist()
    return Picked(torch.tensor(picks, device=features.device), None)


def _features(round: Round, options: ProbCoverConfig) -> tuple[Tensor, Tensor]:
    if options.features == "model":
        return round.features, round.labelled_features
    if round.own_features is None:
        raise ValueError("features=own needs features that do not come from the model: give --features")
    return round.own_features


def pure_radius(x: Tensor, clusters: int, purity: float, seed: int, **compute: Any) -> float:
    """The largest radius at which the part `purity` of the balls around x (unit rows) hold one cluster only.

    A ball is pure while the nearest row of another cluster is not inside: the radius is a quantile of the distances to
    those. It is lowered by 1e-6 of itself, more than their rounding. Clusters are those of scikit-learn's k-means++
    with n_init=1, on one thread since its result depends on their number.
    """
    with extras.needed("strategies", "strategy prob-cover"):
        from sklearn.cluster import KMeans

    with clustering():
        distinct = min(clusters, len(torch.unique(x, dim=0)))
        labels = KMeans(distinct, n_init=1, random_state=seed).fit_predict(x.numpy())
    other = torch.full((len(x),), torch.inf)
    for label in range(distinct):
        mine = torch.from_numpy(labels == label)
        if mine.any() and not mine.all():
            other[mine] = knn(x[~mine], 1, "l2", queries=x[mine], **compute)[0][:, 0] * x.shape[1]
    pure = int(np.ceil(purity * len(x) - 1e-9))
    return float(other.sort(descending=True).values[pure - 1]) * (1 - 1e-6)


class Graph:
    """Which rows are at a distance strictly below the radius, as sparse matrices of the pairs i < j and i > j."""

    def __init__(self, x: Tensor, radius: float) -> None:
        with extras.needed("strategies", "strategy prob-cover"):
            from scipy.sparse import csr_array

        m, total = len(x), 0
        counts, columns = np.zeros(m, np.int64), []
        for start, rows, others in near_pairs(x, radius):
            counts += np.bincount(rows, minlength=m)
            columns.append(others.astype(np.int32))
            total += 2 * len(others)
            if total > MOST_EDGES:
                seen = (start + 1) * (2 * m - start - 1) / (m * m)
                raise ValueError(
                    f"radius {radius:.4g} links about {total / max(seen, 1 / m):.1e} pairs of the {m} rows, more than "
                    f"the {MOST_EDGES} that memory is kept for: take a smaller radius or fewer candidates"
                )
        ends = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
        indices = np.concatenate([np.empty(0, np.int32), *columns])
        self.after = csr_array((np.ones(len(indices), np.int8), indices, ends), shape=(m, m))
        self.before = self.after.T.tocsr()

    def neighbours(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows within the radius of each row, one after the other; each row is its own neighbour."""
        return np.concatenate([rows, self.after[rows].indices, self.before[rows].indices])

    def cover(self, covered: NDArray[np.bool_], budget: int) -> list[int]:
        """Choose at most budget rows, each the one with the most neighbours not covered, until all are covered."""
        m = len(covered)
        left = np.flatnonzero(~covered)
        degree = np.bincount(self.neighbours(left), minlength=m)
        covered = covered.copy()
        picks: list[int] = []
        while len(picks) < budget and degree.max() > 0:
            row = int(degree.argmax())
            reached = self.neighbours(np.array([row]))
            newly = reached[~covered[reached]]
            covered[newly] = True
            degree -= np.bincount(self.neighbours(newly), minlength=m)  # a pick's own degree falls to 0
            picks.append(row)
        return picks


def near_pairs(x: Tensor, radius: float) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
    """Yield (last row looked at, rows i, rows j) of all pairs i < j at a distance below the radius, by rising i.

    A matrix product says so for nearly all pairs. Where its rounding could be wrong, the differences are summed in
    float64.
    """
    m, d = x.shape
    squared_norms = x.double().square().sum(1).float()
    rounding = (d + 8) * 2.0**-23 * float(squared_norms.max()) * 2  # twice the worst of norms and product together
    step = max(1, _BLOCK // m)
    for start in range(0, m, step):
        block = x[start : start + step]
        squared = torch.addmm(squared_norms[start:], block, x[start:].T, alpha=-2)
        squared += squared_norms[start : start + step, None]
        squared.masked_fill_(torch.ones_like(squared, dtype=torch.bool).tril_(), torch.inf)
        i, j = (squared < radius**2 + rounding).nonzero(as_tuple=True)
        doubtful = (squared[i, j] >= radius**2 - rounding).nonzero()[:, 0]
        keep = torch.ones(len(i), dtype=torch.bool)
        for part in torch.split(doubtful, 2**14):
            exact = (block[i[part]].double() - x[start + j[part]].double()).square().sum(1)
            keep[part] = exact < radius**2
        last = min(start + step, m) - 1
        yield last, (start + i[keep]).numpy(), (start + j[keep]).numpy()


STRATEGY = Strategy("prob-cover", choose, ProbCoverConfig, passes=(FEATURES, LABELLED))
