"""k-center greedy: the row farthest from all centres becomes a centre, again and again (Gonzalez 1985)."""

import torch
from torch import Tensor

from dm2_fast import backends


def k_center_greedy(x: Tensor, budget: int, distances: Tensor, num_threads: int | None = None) -> Tensor:
    """Choose budget rows, each the farthest from its nearest centre; every chosen row becomes a centre.

    Specifically, budget times over, this computes `row = distances.argmax()` (the lower row of equals),
    `distances = distances.minimum((x - x[row]).square().sum(1))` and `distances[row] = -1`. Differences are summed
    directly, so that near rows have distances of their own, and a sum is given up once it has reached the row's present
    distance. The result does not depend on the number of threads.

    Args:
        x: Rows, (m, d), floating point.
        budget: How many rows to choose, at most as many as have a distance of 0 or more.
        distances: (m,) float32 (float64 for float64 x), the squared distance of each row to its nearest centre so far;
            a row below 0 is never chosen. Lowered in place; a chosen row is left at -1.
        num_threads: Threads on a CPU; None for `torch.get_num_threads()`.

    Returns:
        (budget,) int64 rows in order of choice.

    Raises:
        ValueError: distances do not match x, or too few rows may be chosen.
    """
    want = (len(x),), _wide(x)
    if (tuple(distances.shape), distances.dtype) != want:
        raise ValueError(f"distances must be {want}, got {(tuple(distances.shape), distances.dtype)}")
    free = int((distances >= 0).sum())
    if not 0 <= budget <= free:
        raise ValueError(f"budget must be in [0, {free}] for {free} rows that may be chosen, got {budget}")
    x = x.to(distances.dtype).contiguous()
    picks = []
    for _ in range(budget):
        row = int(distances.argmax())
        picks.append(row)
        lower_to_nearest(x, x[row : row + 1], distances, num_threads)
        distances[row] = -1
    return torch.tensor(picks, dtype=torch.int64, device=x.device)


def nearest_squared(x: Tensor, points: Tensor, num_threads: int | None = None) -> Tensor:
    """Return `(x[:, None] - points).square().sum(-1).amin(1)`, (m,), by direct differences and without an m x n matrix.

    float32, or float64 for float64 x. The result does not depend on the number of threads.
    """
    distances = torch.full((len(x),), torch.inf, dtype=_wide(x), device=x.device)
    lower_to_nearest(x, points, distances, num_threads)
    return distances


def lower_to_nearest(x: Tensor, points: Tensor, distances: Tensor, num_threads: int | None = None) -> None:
    """Lower distances (m,) to `nearest_squared(x, points)` where that is less, in place; rows at 0 or below stay."""
    module = backends.resolve("auto" if x.device.type == "cpu" else "torch", x)
    module.lower_to_nearest(x, points, distances, **backends.thread_options(module, num_threads))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
