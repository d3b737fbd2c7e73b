"""Rows prepared once: exact neighbours of any queries, and graphs of all rows, which may be approximate."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast.operations import backends, cpp
from dm2_fast.operations.arguments import number, whole
from dm2_fast.operations.arrays import as_integers
from dm2_fast.operations.audit import LOOKS, Audit, lower_bound, recall_of
from dm2_fast.operations.knn import Metric, UnitRows, check_k, check_match, knn, matrix, weights
from dm2_fast.progress import tqdm, write
from dm2_fast.threads import threads_of_torch

_LEAST_ROWS = 50_000  # below, the exact search costs no more
_MOST_NEIGHBOURS = 50  # above, lists and joins cost more than the exact search
_SAMPLE = 500  # rows whose exact neighbours are looked up to measure a graph
_HOPELESS = 5.0  # times the misses that are allowed: more than later steps make good


def _cells(rows: int) -> int:
    """Cells that each row meets first: more in a larger pool, for the same recall."""
    return max(6, round(20 * math.sqrt(rows / 1_000_000)))


class Neighbours:
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
        if recall is not None:
            recall = number(
                "recall", recall, "between 0 and 1, or None for exact neighbours", lambda value: 0 < value < 1
            )
        self.metric: Metric = metric
        self.recall, self.seed = recall, whole("seed", seed)
        self.audit: Audit | None = None
        self._progress = progress
        data = matrix(x, "x")
        self._weights = weights(metric, data.shape[1])
        module = backends.resolve(backend, data, "knn")
        self._options: dict[str, Any] = {"backend": backend, "num_threads": num_threads, "progress": progress}
        self._threads = backends.thread_options(module, num_threads).get("num_threads") or threads_of_torch()
        self._native = module is cpp
        if recall is not None and not self._native:
            raise RuntimeError(
                f"recall= needs features on the CPU and the C++ backend, got {data.device} with backend={backend!r} "
                "(move the features to the CPU, or leave recall out)"
            )
        self._rows = UnitRows(data, "x", progress)
        self._ids = torch.arange(len(data))  # of each row: its number among those that are left, or -1
        self._left = len(data)
        self._index: Any = None
        self._graph: Any = None
        self._turn = RLock()  # of the threads that prepare the rows or extend the graph
        self._steps = self._ranks = self._slots = 0  # taken; cells that each row has met; rows in its list

    def __len__(self) -> int:
        return self._left

    def graph(self, k: int) -> tuple[Tensor, Tensor]:
        """Find k near other rows of each row: `dm2_fast.knn`, exact or with at least the recall asked for.

        Sets `audit`. Where the approximate search would cost more than the exact one, or cannot reach the recall, the
        graph is the exact one, bit for bit. Distances are exact, and ordered with their indices as in `dm2_fast.knn`.

        Raises:
            ValueError: k is not in [1, rows - 1].
        """
        k = check_k(k, self._left - 1, self._left)
        if self.recall is None:
            return self._exact(k, "exact neighbours were asked for")
        if self._left < _LEAST_ROWS:
            return self._exact(k, f"below {_LEAST_ROWS} rows the exact search costs no more")
        if k > _MOST_NEIGHBOURS:
            return self._exact(k, f"for more than {_MOST_NEIGHBOURS} neighbours the exact search costs no more")
        with self._turn:
            return self._approximate(k)

    def query(self, queries: Tensor | NDArray[Any], k: int) -> tuple[Tensor, Tensor]:
        """Find the exact k nearest rows of each query: `knn(x, k, queries=queries)`, without preparing the rows again.

        Args:
            queries: (q, d), like x.
            k: 1 <= k <= rows.
        """
        k = check_k(k, self._left, self._left)
        asked = matrix(queries, "queries")
        if isinstance(queries, (list, tuple)):  # which have no dtype of their own
            asked = asked.to(self._rows.data.dtype)
        check_match(asked, self._rows.data, "queries")
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

    def _numbers(self, rows: Any) -> Tensor:
        """Numbers of rows that are left, (n,) int64 on the CPU."""
        numbers = as_integers(rows, "rows").cpu()
        if numbers.ndim != 1:
            raise ValueError(f"rows must be 1-D, got shape {tuple(numbers.shape)}")
        if len(numbers) and not (int(numbers.min()) >= 0 and int(numbers.max()) < self._left):
            raise ValueError(f"rows must be in [0, {self._left - 1}], got {int(numbers.min())} to {int(numbers.max())}")
        return numbers

    def _remaining(self) -> Tensor:
        keep = self._ids >= 0
        return self._rows.data if bool(keep.all()) else self._rows.data[keep.to(self._rows.data.device)]

    def _exact(self, k: int, why: str) -> tuple[Tensor, Tensor]:
        self._say(f"exact neighbours: {why}")
        found = knn(self._remaining(), k, self.metric, **self._options)
        self.audit = Audit(1.0, 1.0, 0.0, self._left, "exact", why)
        return found

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
        """Meet more and more rows until the bound reaches what was asked."""
        assert self.recall is not None
        index = self._prepared()
        rng = np.random.default_rng(self.seed)
        sample = torch.from_numpy(np.sort(rng.choice(self._left, min(_SAMPLE, self._left), replace=False)))
        exact = self.of(sample, k)[0]
        order = torch.from_numpy(index.places())
        ids = self._ids[order]  # by place
        left = torch.nonzero(ids >= 0)[:, 0]
        ids, place = ids[left], torch.empty(self._left, dtype=torch.int64)
        place[ids] = left
        sampled = place[sample]
        del order, place
        slots = k + max(2, 2 * k // 5)
        if self._slots < slots:
            _, kind = cpp.prepared(self._rows.scale.dtype)
            self._graph = kind(index, self._ids.numpy(), slots)
            self._slots, self._steps, self._ranks = slots, 0, 0
        for look in range(LOOKS):
            if look > 0 or self._steps == 0:
                self._step()
            recalls = recall_of(self._nearest(sampled, torch.arange(len(sample)), k)[0], exact)
            recall, bound = float(recalls.mean()), lower_bound(recalls)
            if bound >= self.recall:
                why = f"recall {recall:.4f}, at least {bound:.4f} with 95 % confidence, after {self._ranks} cells a row"
                self._say(f"approximate neighbours: {why}")
                below = float((recalls < 0.5).double().mean())
                self.audit = Audit(recall, bound, below, len(sample), "approximate", why)
                distances, indices = self._nearest(left, ids, k)
                short = torch.nonzero(distances[:, -1].isinf())[:, 0]  # rows that met fewer than k others
                if len(short):
                    distances[short], indices[short] = self.of(short, k)
                return distances, indices
            if 1 - recall > _HOPELESS * (1 - self.recall):
                break
        return self._exact(k, f"the approximate search reached a recall of {recall:.4f} only")

    def _step(self) -> None:
        """Meet more rows: the nearest cells, then twice as many each time; and the neighbours of neighbours."""
        options: Any = {"num_threads": self._threads}
        if self._steps != 1:
            start, stop = self._ranks, max(_cells(self._left), 2 * self._ranks)
            with self._bar(f"cells {start} to {stop}") as report:
                self._graph.probe(start, stop, report=report, **options)
            self._ranks = stop
        with self._bar("neighbours of neighbours") as report:
            self._graph.join(report=report, **options)
        self._steps += 1

    def _nearest(self, places: Tensor, lines: Tensor, k: int) -> tuple[Tensor, Tensor]:
        distances = torch.empty(len(places), k, dtype=self._rows.scale.dtype)
        indices = torch.empty(len(places), k, dtype=torch.int64)
        best = distances.numpy(), indices.numpy()
        self._graph.nearest(places.numpy(), lines.numpy(), *best, num_threads=self._threads)
        return distances, indices

    @contextmanager
    def _bar(self, name: str) -> Iterator[Callable[[float], object]]:
        with tqdm(total=100, desc=name, unit="%", leave=False, disable=None if self._progress else True) as bar:
            yield lambda done: bar.update(int(100 * done) - bar.n)

    def _say(self, text: str) -> None:
        if self._progress:
            write(text)
