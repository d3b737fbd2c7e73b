"""Rows prepared once: exact neighbours of any queries, and graphs of all rows, which may be approximate."""

from collections.abc import Callable
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast.operations import backends, cpp
from dm2_fast.operations.approximate import AuditedGraph, check_native, slots
from dm2_fast.operations.grown import Grown
from dm2_fast.operations.knn import Metric, UnitRows, check_k, check_match, knn, matrix, weights
from dm2_fast.operations.memory import trim
from dm2_fast.threads import threads_of_torch

_TOGETHER = 2**16  # rows of a graph that are written at a time


class Neighbours(AuditedGraph):
    """Rows prepared once, for searching their neighbours under the combined distance of Eqs. 4-6.

    Args:
        x: Features, (m, d), as in `dm2_fast.knn`; not copied, so they must not change.
        metric: As in `dm2_fast.knn`.
        recall: None for exact graphs; or the recall, in (0, 1), that a graph must have at least, with 95 % confidence.
        seed: Of the rows that are drawn to measure a graph.
        backend, num_threads, progress: As in `dm2_fast.knn`.

    Attributes:
        audit: How good the last graph is; None before the first.

    Raises:
        ValueError, TypeError: as `dm2_fast.knn`; recall is not between 0 and 1.
        RuntimeError: a recall was asked for where the C++ backend cannot run.
    """

    def __init__(
        self,
        x: Tensor | NDArray[Any],
        metric: Metric = "literal",
        recall: float | None = None,
        *,
        seed: int = 0,
        backend: str = "auto",
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__(recall, seed, progress)
        self.metric: Metric = metric
        data = matrix(x, "x")
        self._weights = weights(metric, data.shape[1])
        module = backends.resolve(backend, data, "knn")
        self._options: dict[str, Any] = {"backend": backend, "num_threads": num_threads, "progress": progress}
        self._threads = backends.thread_options(module, num_threads).get("num_threads") or threads_of_torch()
        self._native = module is cpp
        if recall is not None:
            check_native(data, backend)
        self._rows = UnitRows(data, "x", progress)
        self._ids = torch.arange(len(data))  # of each row: its number among those that are left, or -1
        self._left = len(data)
        self._index: Any = None
        self._graph: Any = None
        self._turn = RLock()  # of the threads that prepare the rows or extend the graph

    def __len__(self) -> int:
        return self._left

    def query(self, queries: Tensor | NDArray[Any], k: int) -> tuple[Tensor, Tensor]:
        """Find the exact k nearest rows of each query: `knn(x, k, queries=queries)`, without preparing the rows again.

        Args:
            queries: (q, d), like x.
            k: 1 <= k <= rows.
        """
        k = check_k(k, self._left, self._left)
        asked = self.as_queries(queries)
        if not self._native:
            return knn(self._remaining(), k, self.metric, queries=asked, **self._options)
        return self._search(UnitRows(asked, "queries"), torch.full((len(asked),), -1), k)

    def of(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the exact k nearest other rows of some of the rows, given by their numbers (n,) int64."""
        k = check_k(k, self._left - 1, self._left)
        rows = self._numbers(rows)
        if not self._native:
            distances, indices = knn(self._remaining(), k, self.metric, **self._options)
            return distances[rows], indices[rows]
        where = torch.nonzero(self._ids >= 0)[:, 0][rows]
        return self._search(self._rows.some(where), rows, k)

    def without(self, rows: Tensor | NDArray[np.int64]) -> "Neighbours":
        """The same rows but for some, which share what was prepared: only those that are left are numbered, in order.

        Specifically, its graph is one of `x[keep]` with `keep` all True but for `keep[rows] = False`.
        """
        keep = self._ids >= 0
        keep[torch.nonzero(keep)[:, 0][self._numbers(rows)]] = False
        if not keep.any():
            raise ValueError("rows must leave at least one row, got all of them")
        other = object.__new__(Neighbours)
        with self._turn:
            other.__dict__.update(self.__dict__)
            other._ids = torch.where(keep, keep.cumsum(0) - 1, -1)
            other._left, other.audit = int(keep.sum()), None
            if self._graph is not None:
                other._graph = type(self._graph)(self._graph, other._ids.numpy())
        return other

    def with_rows(self, x: Tensor | NDArray[Any]) -> Grown:
        """The rows that are left and others behind them, (a, d), like x: its graph is one of `torch.cat([x, others])`.

        Nothing is prepared again: the others meet all rows exactly, which costs as much as a exact queries. Many of
        them are better prepared with all rows, by a new `Neighbours`.
        """
        return Grown(self, self.as_queries(x, "x"))

    def as_queries(self, x: Tensor | NDArray[Any], name: str = "queries") -> Tensor:
        """Rows that can be compared with these."""
        found = matrix(x, name)
        if isinstance(x, (list, tuple)):  # which have no dtype of their own
            found = found.to(self._rows.data.dtype)
        check_match(found, self._rows.data, name)
        return found

    def data(self, rows: Tensor) -> Tensor:
        """The features of some of the rows that are left, (n, d)."""
        return self._rows.data[torch.nonzero(self._ids >= 0)[:, 0][rows].to(self._rows.data.device)]

    def anew(self, x: Tensor) -> "Neighbours":
        """Other rows, prepared in the same way."""
        return Neighbours(x, self.metric, self.recall, seed=self.seed, **self._options)

    def _remaining(self) -> Tensor:
        keep = self._ids >= 0
        return self._rows.data if bool(keep.all()) else self._rows.data[keep.to(self._rows.data.device)]

    def _unit_rows(self) -> UnitRows:
        """The rows that are left, with the scale they have."""
        keep = self._ids >= 0
        return self._rows if bool(keep.all()) else self._rows.some(torch.nonzero(keep)[:, 0])

    def _all_exact(self, k: int) -> tuple[Tensor, Tensor]:
        return knn(self._remaining(), k, self.metric, **self._options)

    def _prepared(self) -> Any:
        """The index of csrc/index.hpp."""
        with self._turn:
            if self._index is None:
                kind, _ = cpp.prepared(self._rows.scale.dtype)
                rows = cpp.array(self._rows.data), self._rows.scale.numpy(), np.arange(len(self._ids))
                with self._bar("prepare") as report:
                    self._index = kind(*rows, *self._weights, num_threads=self._threads, report=report)
            return self._index

    def _search(self, asked: UnitRows, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
        distances = torch.full((len(asked), k), torch.inf, dtype=asked.scale.dtype)
        indices = torch.full((len(asked), k), torch.iinfo(torch.int64).max)
        queries = cpp.array(asked.data), asked.scale.numpy(), ids.numpy()
        best = distances.numpy(), indices.numpy()
        self._prepared().search(*queries, self._ids.numpy(), *best, num_threads=self._threads)
        return distances, indices

    def _approximate(self, k: int) -> tuple[Tensor, Tensor]:
        with self._turn:
            return super()._approximate(k)

    def _begin(self, k: int) -> None:
        needed = slots(k, len(self._ids))
        if self._slots < needed:
            _, kind = cpp.prepared(self._rows.scale.dtype)
            self._graph = kind(self._prepared(), self._ids.numpy(), needed)
            self._slots, self._steps, self._ranks = needed, 0, 0

    def _ranks_of(self, rows: Tensor, others: Tensor) -> NDArray[np.int64]:
        place = self._place()
        found: NDArray[np.int64] = self._graph.ranks(place[rows].numpy(), place[others].numpy())
        return found

    def _probe(self, start: int, stop: int, report: Callable[[float], object]) -> None:
        self._graph.probe(start, stop, num_threads=self._threads, report=report)

    def _join(self, report: Callable[[float], object]) -> None:
        self._graph.join(num_threads=self._threads, report=report)

    def _found(self, rows: Tensor, k: int) -> Tensor:
        best = self._empty(len(rows), k)
        self._nearest(self._place()[rows], torch.arange(len(rows)), *best)
        return best[0]

    def _lists(self, k: int) -> tuple[Tensor, Tensor]:
        ids = self._ids[torch.from_numpy(self._prepared().places())]
        trim()
        distances, indices = self._empty(self._left, k)
        for start in range(0, len(ids), _TOGETHER):
            part = ids[start : start + _TOGETHER]
            left = torch.nonzero(part >= 0)[:, 0]
            self._nearest(start + left, part[left], distances, indices)
        short = torch.nonzero(distances[:, -1].isinf())[:, 0]  # rows that met fewer than k others
        if len(short):
            distances[short], indices[short] = self.of(short, k)
        return distances, indices

    def _place(self) -> Tensor:
        """The place of each row that is left, (m,)."""
        ids = self._ids[torch.from_numpy(self._prepared().places())]
        places = torch.nonzero(ids >= 0)[:, 0]
        place = torch.empty(self._left, dtype=torch.int64)
        place[ids[places]] = places
        return place

    def _empty(self, rows: int, k: int) -> tuple[Tensor, Tensor]:
        return torch.empty(rows, k, dtype=self._rows.scale.dtype), torch.empty(rows, k, dtype=torch.int64)

    def _nearest(self, places: Tensor, lines: Tensor, distances: Tensor, indices: Tensor) -> None:
        """Write the nearest in the lists at some places to lines of a graph."""
        best = distances.numpy(), indices.numpy()
        self._graph.nearest(places.numpy(), lines.numpy(), *best, num_threads=self._threads)
