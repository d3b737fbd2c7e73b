"""How an approximate graph is made: more and more rows meet until an audit says that the recall is reached."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast.operations import backends, cpp
from dm2_fast.operations.arguments import whole
from dm2_fast.operations.arrays import as_integers
from dm2_fast.operations.audit import LOOKS, Audit, lower_bound, misses_to_aim_at, recall_of
from dm2_fast.operations.knn import check_k, check_recall
from dm2_fast.operations.memory import trim
from dm2_fast.progress import tqdm, write

_LEAST_ROWS = 50_000  # below, the exact search costs no more
_MANY_ROWS = 1_000_000  # beyond, lists are longer
_MOST_NEIGHBOURS = 50  # above, lists and joins cost more than the exact search
_SAMPLE = 500  # rows whose exact neighbours are looked up to measure a graph
_PILOT = 250  # others, whose neighbours say how many cells each row should meet
_HOPELESS = 5.0  # times the misses that are allowed: more than later steps make good
_MORE = 1.3  # times the cells at each later step, at least
_JOINS = 3  # at the first step, but where there are very many rows
_JOINED = 5.5  # joins leave at most one in so many of the misses, nearly always


def _cells(ranks: NDArray[np.int64], recall: float, joined: float) -> int:
    """Cells that each row meets, so that joins bring the recall.

    Args:
        ranks: Of neighbours of some rows, how many cells are nearer to the row than that of its neighbour, (n,).
        joined: Joins leave one in so many of the misses.
    """
    if len(ranks) == 0:
        return 1
    found = max(0.0, 1 - joined * misses_to_aim_at(recall, _SAMPLE))
    return 1 + int(np.quantile(ranks, found, method="higher"))


def _most_cells(rows: int) -> int:
    """More cells cost more than the exact search."""
    return max(32, min(256, rows // 1024))


def slots(k: int, rows: int) -> int:
    """Rows in a list, for k neighbours among so many rows."""
    return k + max(2, 2 * k // 5) + _doublings(rows)


def _doublings(rows: int) -> int:
    """How often `_MANY_ROWS` double up to so many. Longer lists and more joins find there what more cells would find at
    several times the cost."""
    return max(0, round(math.log2(max(1, rows) / _MANY_ROWS)))


def may_pay(rows: int, k: int) -> bool:
    """Whether an approximate graph may cost less than the exact one."""
    return rows >= _LEAST_ROWS and k <= _MOST_NEIGHBOURS


def check_native(x: Tensor, backend: str) -> None:
    """Raise unless the backend for x is the one that has approximate graphs."""
    if backends.resolve(backend, x, "knn") is not cpp:
        raise RuntimeError(
            f"recall= needs features on the CPU and the C++ backend, got {x.device} with backend={backend!r} "
            "(move the features to the CPU, or leave recall out)"
        )


class AuditedGraph(ABC):
    """A graph of neighbours that measures itself, wherever its rows and lists are.

    Args:
        recall: None for exact graphs; or the recall, in (0, 1), that a graph must have at least, with 95 % confidence.
        seed: Of the rows that are drawn to measure a graph.
        progress: Say what is done.

    Attributes:
        audit: How good the last graph is; None before the first.

    Raises:
        ValueError: recall is not between 0 and 1.
    """

    def __init__(self, recall: float | None, seed: int, progress: bool) -> None:
        self.recall, self.seed = None if recall is None else check_recall(recall), whole("seed", seed)
        self.audit: Audit | None = None
        self._progress = progress
        self._steps = self._ranks = self._slots = 0  # taken; cells that each row has met; rows in its list

    @abstractmethod
    def __len__(self) -> int:
        """How many rows there are, in all."""

    def graph(self, k: int) -> tuple[Tensor, Tensor]:
        """Find k near other rows of each row: `dm2_fast.knn`, exact or with at least the recall asked for.

        Sets `audit`. Where the approximate search would cost more than the exact one, or cannot reach the recall, the
        graph is the exact one, bit for bit. Distances are exact, and ordered with their indices as in `dm2_fast.knn`.

        Raises:
            ValueError: k is not in [1, rows - 1].
        """
        k = check_k(k, len(self) - 1, len(self))
        if self.recall is None:
            return self._exact(k, "exact neighbours were asked for")
        if len(self) < _LEAST_ROWS:
            return self._exact(k, f"below {_LEAST_ROWS} rows the exact search costs no more")
        if k > _MOST_NEIGHBOURS:
            return self._exact(k, f"for more than {_MOST_NEIGHBOURS} neighbours the exact search costs no more")
        return self._approximate(k)

    @abstractmethod
    def of(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the exact k nearest other rows of some of the rows, given by their numbers (n,) int64."""

    def _numbers(self, rows: Any) -> Tensor:
        """Numbers of rows, (n,) int64 on the CPU."""
        numbers = as_integers(rows, "rows").cpu()
        if numbers.ndim != 1:
            raise ValueError(f"rows must be 1-D, got shape {tuple(numbers.shape)}")
        if len(numbers) and not (int(numbers.min()) >= 0 and int(numbers.max()) < len(self)):
            raise ValueError(f"rows must be in [0, {len(self) - 1}], got {int(numbers.min())} to {int(numbers.max())}")
        return numbers

    @abstractmethod
    def _all_exact(self, k: int) -> tuple[Tensor, Tensor]:
        """The exact graph."""

    @abstractmethod
    def _begin(self, k: int) -> None:
        """Have lists for k neighbours, empty ones where those there are too short."""

    @abstractmethod
    def _ranks_of(self, rows: Tensor, others: Tensor) -> NDArray[np.int64]:
        """How many cells are nearer to each of some rows, (n,), than the cell of another row, (n,)."""

    @abstractmethod
    def _probe(self, start: int, stop: int, report: Callable[[float], object]) -> None:
        """Each row meets its nearest cells, of rank start to stop - 1."""

    @abstractmethod
    def _join(self, report: Callable[[float], object]) -> None:
        """The rows around each row, its neighbours and those that have it as one, meet each other."""

    @abstractmethod
    def _found(self, rows: Tensor, k: int) -> Tensor:
        """Distances (n, k) of the neighbours that the lists hold of some of the rows, (n,) ascending."""

    @abstractmethod
    def _lists(self, k: int) -> tuple[Tensor, Tensor]:
        """The graph that the lists hold."""

    def _exact(self, k: int, why: str) -> tuple[Tensor, Tensor]:
        self._say(f"exact neighbours: {why}")
        found = self._all_exact(k)
        self.audit = Audit(1.0, 1.0, 0.0, len(self), "exact", why)
        return found

    def _approximate(self, k: int) -> tuple[Tensor, Tensor]:
        """Meet more and more rows until the bound reaches what was asked."""
        assert self.recall is not None
        rng = np.random.default_rng(self.seed)
        drawn = rng.choice(len(self), min(_SAMPLE + _PILOT, len(self)), replace=False)
        pilots = len(drawn) * _PILOT // (_SAMPLE + _PILOT)
        pilot, sample = (torch.from_numpy(np.sort(part)) for part in np.split(drawn, [pilots]))
        exact = self.of(sample, k)[0]
        self._begin(k)
        ranks = cache(lambda: self._ranks_of(pilot.repeat_interleave(k), self.of(pilot, k)[1].flatten()))
        stop, most = self._ranks, _most_cells(len(self))
        if self._steps == 0:
            stop = _cells(ranks(), self.recall, _JOINED)
            if stop > most:
                return self._exact(k, f"each row would have to meet {stop} cells of rows, more than {most} cost more")
        for _ in range(LOOKS):
            if stop > self._ranks:
                self._step(stop)
            recalls = recall_of(self._found(sample, k), exact)
            recall, bound = float(recalls.mean()), lower_bound(recalls)
            if bound >= self.recall:
                why = f"recall {recall:.4f}, at least {bound:.4f} with 95 % confidence, after {self._ranks} cells a row"
                self._say(f"approximate neighbours: {why}")
                below = float((recalls < 0.5).double().mean())
                self.audit = Audit(recall, bound, below, len(sample), "approximate", why)
                return self._lists(k)
            if 1 - recall > _HOPELESS * (1 - self.recall):
                break
            joined = float((ranks() >= self._ranks).mean()) / max(1 - recall, 1e-9)
            stop = max(math.ceil(_MORE * self._ranks), min(most, _cells(ranks(), self.recall, joined)))
        return self._exact(k, f"the approximate search reached a recall of {recall:.4f} only")

    def _step(self, stop: int) -> None:
        """Meet more rows: the nearest cells, so many in all; then those with whom a neighbour is shared."""
        trim()  # the lists are the most that is in memory, until the result is
        with self._bar(f"cells {self._ranks} to {stop}") as report:
            self._probe(self._ranks, stop, report)
        for _ in range(_JOINS + _doublings(len(self)) // 2 if self._steps == 0 else 1):
            with self._bar("neighbours of neighbours") as report:
                self._join(report)
        self._ranks = stop
        self._steps += 1
        trim()

    @contextmanager
    def _bar(self, name: str) -> Iterator[Callable[[float], object]]:
        with tqdm(total=100, desc=name, unit="%", leave=False, disable=None if self._progress else True) as bar:
            yield lambda done: bar.update(int(100 * done) - bar.n)

    def _say(self, text: str) -> None:
        if self._progress:
            write(text)
