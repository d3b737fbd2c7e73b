"""k-center greedy: the row farthest from all centres becomes a centre, again and again (Gonzalez 1985)."""

from typing import Any

import torch
from torch import Tensor

from dm2_fast.operations.nearest import lower_to_nearest, wide
from dm2_fast.share import Share, Whole

_MORE_ROWS = 512  # that are brought up to date at least


def k_center_greedy(
    x: Tensor,
    budget: int,
    distances: Tensor,
    *,
    share: Share | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> Tensor:
    """Choose budget rows, each the farthest from its nearest centre; every chosen row becomes a centre.

    Specifically, budget times over, this computes `row = distances.argmax()` (the lower row of equals),
    `distances = distances.minimum((x - x[row]).square().sum(1))` and `distances[row] = -1`. Differences are summed
    directly, so that near rows have distances of their own, and a sum is given up once it has reached the row's present
    distance. On a CPU only the rows that may be the farthest are looked at: distances only fall, so one that was
    computed earlier is a bound. The result is the same, and does not depend on the number of threads.

    Args:
        x: Rows, (m, d), floating point.
        budget: How many rows to choose, at most as many as have a distance of 0 or more.
        distances: (m,) float32 (float64 for float64 x), the squared distance of each row to its nearest centre so far;
            a row below 0 is never chosen.
        share: Which rows of a larger pool these are; the rows that are returned are of that pool.
        backend, num_threads: As in `dm2_fast.knn`.

    Returns:
        (budget,) int64 rows in order of choice.

    Raises:
        ValueError: distances do not match x, or too few rows may be chosen.
    """
    want = (len(x),), wide(x)
    if (tuple(distances.shape), distances.dtype) != want:
        raise ValueError(f"distances must be {want}, got {(tuple(distances.shape), distances.dtype)}")
    share = share or Whole(len(x))
    free = int(share.gather(distances >= 0).sum())
    if not 0 <= budget <= free:
        raise ValueError(f"budget must be in [0, {free}] for {free} rows that may be chosen, got {budget}")
    x, distances = x.to(distances.dtype).contiguous(), distances.clone()
    compute: dict[str, Any] = {"backend": backend, "num_threads": num_threads}
    lazy = isinstance(share, Whole) and x.device.type == "cpu"
    picks: list[int] = []
    while len(picks) < budget:
        if lazy and not bool(distances.isinf().any()):
            picks += _lazily(x, budget - len(picks), distances, compute)
            break
        row = share.largest(distances)
        picks.append(row)
        lower_to_nearest(x, share.row(x, row), distances, **compute)
        if 0 <= row - share.first < len(x):
            distances[row - share.first] = -1
    return torch.tensor(picks, dtype=torch.int64, device=x.device)


def _lazily(x: Tensor, budget: int, distances: Tensor, compute: dict[str, Any]) -> list[int]:
    """`k_center_greedy`, where only the rows with the largest distances at the start are kept up to date: as many as
    are needed for the farthest of them to be farther than the others were. Those are copied: x once more at the most,
    and twice while they grow.
    """
    order = distances.argsort(descending=True, stable=True)
    bounds = distances[order]
    rows, held, near = order[:0], x[:0], distances[:0]
    picks: list[int] = []
    for _ in range(budget):
        while len(rows) < len(x) and (len(rows) == 0 or near.max() <= bounds[len(rows)]):
            more = order[len(rows) : len(rows) + max(_MORE_ROWS, len(rows) // 2)]
            samples, late = x[more], bounds[len(rows) : len(rows) + len(more)].clone()
            lower_to_nearest(samples, x[picks], late, **compute)
            rows, held, near = torch.cat([rows, more]), torch.cat([held, samples]), torch.cat([near, late])
        row = int(rows[near == near.max()].min())
        picks.append(row)
        lower_to_nearest(held, x[[row]], near, **compute)
        near[rows == row] = -1
    return picks
