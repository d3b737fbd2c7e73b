"""The squared distance of rows to the nearest of some points, in float32 or float64, without a matrix of them."""

import torch
from torch import Tensor

from dm2_fast.operations import backends


def nearest_squared(x: Tensor, points: Tensor, *, backend: str = "auto", num_threads: int | None = None) -> Tensor:
    """Return `(x[:, None] - points).square().sum(-1).amin(1)`, (m,), by direct differences and without an m x n matrix.

    float32, or float64 for float64 x. The result does not depend on the number of threads.
    """
    distances = torch.full((len(x),), torch.inf, dtype=wide(x), device=x.device)
    lower_to_nearest(x, points, distances, backend=backend, num_threads=num_threads)
    return distances


def lower_to_nearest(
    x: Tensor, points: Tensor, distances: Tensor, *, backend: str = "auto", num_threads: int | None = None
) -> None:
    """Lower distances (m,) to `nearest_squared(x, points)` where that is less, in place; rows at 0 or below stay."""
    module = backends.resolve(backend, x, "lower_to_nearest")
    module.lower_to_nearest(x, points, distances, **backends.thread_options(module, num_threads))


def wide(x: Tensor) -> torch.dtype:
    """The dtype of distances between the rows of x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
