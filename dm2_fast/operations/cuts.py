"""Near rows belong together: a tree of 2-means splits of a sample, which says for each row to which part it goes."""

import torch
from torch import Tensor

_STEPS = 5  # of 2-means


class Cuts:
    """Space in parts of about equally many rows, by halves whose centres lie far apart.

    Args:
        sample: Rows like those that will be asked about, (n, d).
        parts: How many parts.
    """

    def __init__(self, sample: Tensor, parts: int) -> None:
        self.parts = parts
        if parts == 1:
            return
        left = parts // 2
        self.direction = _direction(sample)
        at = sample @ self.direction
        self.middle = at.sort().values[max(0, len(at) * left // parts - 1)] if len(at) else at.new_zeros(())
        self.low, self.high = Cuts(sample[at <= self.middle], left), Cuts(sample[at > self.middle], parts - left)

    def part_of(self, rows: Tensor) -> Tensor:
        """The part of each row, (n,) int64."""
        if self.parts == 1:
            return torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        low = rows @ self.direction <= self.middle
        parts = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
        parts[low] = self.low.part_of(rows[low])
        parts[~low] = self.low.parts + self.high.part_of(rows[~low])
        return parts


def _direction(sample: Tensor) -> Tensor:
    """From one to the other of two centres of the rows; zero where all rows are one."""
    if len(sample) < 2:
        return torch.zeros_like(sample[0]) if len(sample) else sample.new_zeros(sample.shape[1])
    one = sample[(sample - sample[0]).square().sum(1).argmax()]
    other = sample[(sample - one).square().sum(1).argmax()]
    for _ in range(_STEPS):
        near = (sample - one).square().sum(1) <= (sample - other).square().sum(1)
        if near.all() or not near.any():
            break
        one, other = sample[near].mean(0), sample[~near].mean(0)
    return other - one
