"""Rows that were prepared once, and a few others that have come since: nothing is prepared again."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast.operations import cpp
from dm2_fast.operations.approximate import AuditedGraph
from dm2_fast.operations.knn import UnitRows, check_k, knn

if TYPE_CHECKING:
    from dm2_fast.operations.neighbours import Neighbours

Found = tuple[Tensor, Tensor]  # distances, indices


class Grown(AuditedGraph):
    """Prepared rows, and others behind them, which meet all rows exactly. Its methods are those of `Neighbours`.

    Args:
        base: The prepared rows.
        added: The others, (a, d), numbered behind those of base.
    """

    def __init__(self, base: "Neighbours", added: Tensor) -> None:
        super().__init__(base.recall, base.seed, base._progress)
        self.metric = base.metric
        self._base, self._added = base, UnitRows(added, "x")

    def __len__(self) -> int:
        return len(self._base) + len(self._added)

    def query(self, queries: Tensor | NDArray[Any], k: int) -> Found:
        """As in `Neighbours`."""
        k = check_k(k, len(self), len(self))
        found = self._base.query(queries, min(k, len(self._base)))
        asked = self._base.as_queries(queries)
        others = knn(self._added.data, min(k, len(self._added)), self.metric, queries=asked, **self._base._options)
        return _best(k, found, (others[0], others[1] + len(self._base)))

    def of(self, rows: Tensor, k: int) -> Found:
        """As in `Neighbours`."""
        k = check_k(k, len(self) - 1, len(self))
        rows = self._numbers(rows)
        distances, indices = self.query(self._data(rows), k + 1)
        others_first = (indices == rows.to(indices.device)[:, None]).long().argsort(dim=1, stable=True)[:, :k]
        return distances.gather(1, others_first), indices.gather(1, others_first)

    def without(self, rows: Tensor | NDArray[np.int64]) -> "Neighbours | Grown":
        """As in `Neighbours`."""
        numbers, n = self._numbers(rows), len(self._base)
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[numbers] = False
        if not keep.any():
            raise ValueError("rows must leave at least one row, got all of them")
        added = self._added.data[keep[n:].to(self._added.data.device)]
        if not keep[:n].any():
            return self._base.anew(added)
        base = self._base.without(torch.nonzero(~keep[:n])[:, 0])
        return Grown(base, added) if len(added) else base

    def with_rows(self, x: Tensor | NDArray[Any]) -> "Grown":
        """As in `Neighbours`."""
        return Grown(self._base, torch.cat([self._added.data, self._base.as_queries(x)]))

    def _data(self, rows: Tensor) -> Tensor:
        """The features of some rows, (n, d)."""
        n, there = len(self._base), self._added.data.device
        data = self._added.data.new_empty(len(rows), self._added.data.shape[1])
        old = rows < n
        data[old.to(there)] = self._base.data(rows[old])
        data[~old.to(there)] = self._added.data[(rows[~old] - n).to(there)]
        return data

    def _all_exact(self, k: int) -> Found:
        every = torch.cat([self._base._remaining(), self._added.data])
        return knn(every, k, self.metric, **self._base._options)

    def _approximate(self, k: int) -> Found:
        with self._base._turn:
            return super()._approximate(k)

    def _begin(self, k: int) -> None:
        self._base._begin(k)
        self._steps, self._ranks = self._base._steps, self._base._ranks

    def _ranks_of(self, rows: Tensor, others: Tensor) -> NDArray[np.int64]:
        old = (rows < len(self._base)) & (others < len(self._base))  # the others meet all rows anyway
        return self._base._ranks_of(rows[old], others[old])

    def _step(self, stop: int) -> None:
        self._base._step(stop)
        self._steps, self._ranks = self._base._steps, self._base._ranks

    def _probe(self, start: int, stop: int, report: Callable[[float], object]) -> None:
        self._base._probe(start, stop, report)

    def _join(self, report: Callable[[float], object]) -> None:
        self._base._join(report)

    def _found(self, rows: Tensor, k: int) -> Tensor:
        n = len(self._base)
        old, new = rows[rows < n], rows[rows >= n]
        added = knn(self._added.data, min(k, len(self._added)), self.metric, queries=self._data(old),
                    **self._base._options)[0] if len(old) else torch.empty(0, 0)  # fmt: skip
        met = torch.cat([self._base._found(old, k), added], 1).sort(dim=1).values[:, :k]
        return torch.cat([met, self.of(new, k)[0]]) if len(new) else met

    def _lists(self, k: int) -> Found:
        n = len(self._base)
        distances, indices = self._base._lists(k)
        rows, old, new = self._base._unit_rows(), torch.arange(n), torch.arange(n, len(self))
        added = self._added.data, self._added.scale, new
        best, threads = (distances, indices), self._base._threads
        cpp.knn(rows.data, rows.scale, old, *added, *best, *self._base._weights, num_threads=threads)
        of_new = self.of(new, k)
        return torch.cat([distances, of_new[0]]), torch.cat([indices, of_new[1]])


def _best(k: int, one: Found, other: Found) -> Found:
    """The k nearest of two lists for each row, the first of which has the lower indices."""
    distances, order = torch.cat([one[0], other[0]], 1).sort(dim=1, stable=True)
    return distances[:, :k].contiguous(), torch.cat([one[1], other[1]], 1).gather(1, order)[:, :k].contiguous()
