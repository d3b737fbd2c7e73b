"""How good an approximate graph is, measured on some random rows whose exact neighbours are known."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

LOOKS = 5  # at most, at the same sample: each may err with a fifth of the probability
_QUANTILE = 2.3263478740408408  # of the normal distribution at 1 - 0.05 / LOOKS


@dataclass(frozen=True)
class Audit:
    """How good a graph is, measured on random rows against their exact neighbours.

    A neighbour counts as found if it is no farther than the k-th nearest row, so that any of equally far rows will do.

    Attributes:
        recall: Mean share of the k neighbours that were found.
        bound: A lower bound of the recall over all rows; it holds with 95 % probability.
        below_half: The share of rows of which less than half of the neighbours were found.
        rows: How many rows were looked at; all of them where the graph is exact.
        path: "approximate"; or "exact", where that search is cheaper or the only one to reach what was asked.
        why: What was done, in words.
    """

    recall: float
    bound: float
    below_half: float
    rows: int
    path: Literal["approximate", "exact"]
    why: str


def recall_of(found: Tensor, exact: Tensor) -> Tensor:
    """The share of each row's k neighbours that were found, (n,): `(found <= exact[:, -1:]).double().mean(1)`.

    Args:
        found: Distances of the neighbours that were found, (n, k), infinite where there is none.
        exact: Distances of the k nearest, (n, k), ascending.
    """
    return (found <= exact[:, -1:]).double().mean(1)


def misses_to_aim_at(recall: float, rows: int) -> float:
    """The share of neighbours that may be missing so that the lower bound from so many rows is the recall asked for.

    The standard deviation of a row's recall is taken to be 0.42 sqrt(misses), as it was on features of networks.
    """
    misses = 1 - recall
    return max(0.0, misses - 0.42 * _QUANTILE * math.sqrt(misses / rows) - 1 / rows)


def lower_bound(recalls: Tensor) -> float:
    """A lower bound of the mean recall of all rows from that of rows drawn at random, (n,), at one of `LOOKS` looks.

    The normal bound, with one row added that found nothing. Without that row the bound is too high where nearly all
    rows are perfect and the few others were not drawn.
    """
    values = Tensor.new_tensor(recalls, [*recalls.tolist(), 0.0])
    return max(0.0, float(values.mean() - _QUANTILE * values.std() / math.sqrt(len(values))))
