"""The greedy solution of the k-center problem: farthest-first traversal (Gonzalez 1985)."""

import torch
from torch import Tensor

_BLOCK = 1 << 20  # elements of x whose differences are in memory at once


def k_center_greedy(x: Tensor, budget: int, distances: Tensor, num_threads: int | None = None) -> Tensor:
    """Choose the row farthest from all centres so far, budget times; it becomes a centre. Ties go to the lower row.

    Args:
        x: (m, d).
        budget: Rows to choose.
        distances: (m,) squared distance of each row to its nearest centre so far; updated in place,
            -inf for a chosen one.
        num_threads: None for torch's.

    Returns:
        (budget,) int64 rows in order of choice, none twice.
    """
    picks = []
    size = max(1, _BLOCK // max(1, x.shape[1]))
    for _ in range(budget):
        pick = int(distances.argmax())
        picks.append(pick)
        centre = x[pick].clone()
        for rows, nearest in zip(torch.split(x, size), torch.split(distances, size), strict=True):
            torch.minimum(nearest, (rows - centre).square_().sum(1), out=nearest)
        distances[pick] = -torch.inf
    return torch.tensor(picks)
