"""Approximate neighbours of rows that several processes have, or a file: the graph of `Neighbours`, bit for bit.

Each process encodes its own rows. The codes of all rows, 32 + d bytes each, go to every process, which puts them in the
same cells. A process has the lists of its share of the cells; what rows of other cells learn when the rows around its
own meet is sent to the process that has them. The distances of a list are computed from rows that are fetched as they
are needed.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast.operations import cpp
from dm2_fast.operations.approximate import AuditedGraph, check_native, may_pay, slots
from dm2_fast.operations.in_parts import within
from dm2_fast.operations.knn import Metric, UnitRows, check_k, knn, weights
from dm2_fast.operations.mapped import MappedRows, mapped, release, releasing
from dm2_fast.operations.memory import Beside, GraphPlan, Plan, RingPlan, graph_plan, plan, ring_plan, trim
from dm2_fast.operations.processes import Alone, Processes
from dm2_fast.operations.shards import as_compared
from dm2_fast.progress import write
from dm2_fast.threads import threads_of_torch


class GraphInParts(AuditedGraph):
    """An approximate graph of rows that are spread over processes, all of which call the same methods.

    Args:
        data: The rows of this process, (n, d), on the CPU; rows are numbered through by rank.
        metric, recall, seed, num_threads, progress: As in `dm2_fast.Neighbours`.
        exact: What finds the exact graph of all rows, the part of it that is of the rows here, for k neighbours.
        processes: The processes.
        plan: How one process keeps within a memory; None for no limit.
    """

    def __init__(
        self,
        data: Tensor,
        metric: Metric,
        recall: float,
        exact: Callable[[int], tuple[Tensor, Tensor]],
        processes: Processes | None = None,
        *,
        plan: GraphPlan | None = None,
        seed: int = 0,
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        self._processes: Processes = processes or Alone()
        super().__init__(recall, seed, progress and self._processes.rank == 0)
        self._plan, self._every_row_exact = plan, exact
        self._weights = weights(metric, data.shape[1])
        self._threads = num_threads or threads_of_torch()
        counts = self._processes.gather_objects(len(data))
        self._first: list[int] = np.cumsum([0, *counts]).tolist()
        self._give_back = (lambda: None) if plan is None else releasing(data)
        self._rows = self._scaled(data)
        self._sparing = None if plan is None else MappedRows(self._rows.data, plan.block)
        self._order = self._edges = torch.empty(0, dtype=torch.int64)
        self._graph: Any = None

    def __len__(self) -> int:
        return self._first[-1]

    def of(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The exact k nearest other rows of some of the rows, (n,) int64, which all processes name alike."""
        return self._search(self._everywhere(rows), rows, k)

    def _scaled(self, data: Tensor) -> UnitRows:
        """The rows of this process, with one scale or two as all processes have it."""

        def read() -> list[Tensor]:
            scales = []
            for start, stop in self._blocks(data):
                scales.append(UnitRows(data[start:stop], "x", first=start).scale)
                self._give_back()
            return scales

        scales = self._processes.agree(read)
        two = any(self._processes.gather_objects(any(scale.ndim == 2 for scale in scales)))
        number = torch.float64 if data.dtype == torch.float64 else torch.float32
        scales.append(torch.empty((0, 2) if two else 0, dtype=number))
        scale = torch.cat([torch.stack((torch.ones_like(s), s), 1) if two and s.ndim == 1 else s for s in scales])
        return UnitRows.scaled(data.view(torch.int16) if data.dtype == torch.bfloat16 else data, scale)

    @property
    def _here(self) -> int:
        """The number of the first row of this process."""
        return self._first[self._processes.rank]

    def _blocks(self, rows: Tensor) -> Iterator[tuple[int, int]]:
        """Where the rows begin and end that are read at a time: all of them where there is no budget."""
        step = len(rows) if self._plan is None else self._plan.block // (4 * rows.shape[1] * rows.element_size())
        for start in range(0, len(rows), max(1, step)):
            yield start, min(start + step, len(rows))

    def _release(self, *read: Tensor) -> None:
        if self._plan is not None:
            release(*read)

    def _fetch(self, numbers: Tensor) -> tuple[UnitRows, Tensor, Tensor]:
        """Rows of any process: a table of them, their numbers, ascending, and where each of `numbers` is in it."""
        distinct, places = torch.unique(numbers, return_inverse=True)
        asked = self._processes.exchange(self._by_owner(distinct, self._first))
        data = torch.cat(self._processes.exchange([self._taken(rows - self._here) for rows in asked]))
        scale = torch.cat(self._processes.exchange([self._rows.scale[rows - self._here] for rows in asked]))
        return UnitRows.scaled(data, scale), distinct, places

    def _taken(self, rows: Tensor) -> Tensor:
        """Copies of some of the rows here; of files, few pages are in memory at a time."""
        return self._rows.data[rows] if self._sparing is None else self._sparing[rows]

    def _everywhere(self, numbers: Tensor) -> UnitRows:
        """Rows of any process that all of them name alike."""
        table, _, places = self._fetch(numbers)
        return table.some(places)

    def _by_owner(self, ascending: Tensor, edges: Sequence[int]) -> list[Tensor]:
        ends = torch.searchsorted(ascending, torch.tensor(edges[1:-1], dtype=torch.int64))
        return list(torch.tensor_split(ascending, ends))

    def _search(self, queries: UnitRows, numbers: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The exact k nearest rows of all processes, but for those with the numbers of the queries."""
        distances = torch.full((len(numbers), k), torch.inf, dtype=queries.scale.dtype)
        indices = torch.full((len(numbers), k), torch.iinfo(torch.int64).max)
        asked = self._typed(queries.data), queries.scale, numbers
        for start, stop in self._blocks(self._rows.data):
            rows = self._typed(self._rows.data[start:stop]), self._rows.scale[start:stop]
            ids = torch.arange(self._here + start, self._here + stop)
            cpp.knn(*asked, *rows, ids, distances, indices, *self._weights, num_threads=self._threads)
            self._give_back()
        counts = [len(numbers)] * self._processes.size
        every = [self._processes.concatenate(part, counts) for part in (distances, indices)]
        distances, indices = (
            part.unflatten(0, (self._processes.size, len(numbers))).transpose(0, 1).flatten(1) for part in every
        )
        indices, order = indices.sort(dim=1)
        distances, last = distances.gather(1, order).sort(dim=1, stable=True)
        return distances[:, :k].contiguous(), indices.gather(1, last)[:, :k].contiguous()

    def _typed(self, data: Tensor) -> Tensor:
        return data.view(torch.bfloat16) if data.dtype == torch.int16 else data

    def _all_exact(self, k: int) -> tuple[Tensor, Tensor]:
        self._graph, self._order = None, self._order[:0]
        return self._every_row_exact(k)

    def _begin(self, k: int) -> None:
        needed = slots(k, len(self))
        if self._slots >= needed and self._graph is not None:
            return
        index = self._index()
        self._order = torch.from_numpy(index.places())
        cells, size = torch.from_numpy(index.cells()), self._processes.size
        shares = torch.tensor([len(self) * part // size for part in range(size)])
        self._edges = torch.cat([cells[torch.searchsorted(cells, shares)], cells[-1:]])
        _, kind = cpp.prepared(self._rows.scale.dtype)
        self._graph = kind(index, np.arange(len(self)), needed, *self._own_places())
        self._slots, self._steps, self._ranks = needed, 0, 0

    def _own_places(self) -> tuple[int, int]:
        rank = self._processes.rank
        return int(self._edges[rank]), int(self._edges[rank + 1])

    def _index(self) -> Any:
        """The cells of the codes of all rows."""
        d, frame = self._rows.data.shape[1], self._frame()
        near, wide = (torch.empty(len(self._rows), bytes, dtype=torch.uint8) for bytes in (32, -(-d // 32) * 32))
        codes: Any = None
        for start, stop in self._blocks(self._rows.data):
            part = slice(start, stop)
            codes = near[part].numpy(), wide[part].numpy()
            cpp.encode(self._rows.data[part], self._rows.scale[part], frame, *codes, num_threads=self._threads)
            self._give_back()
        counts = [last - first for first, last in zip(self._first, self._first[1:], strict=False)]
        near, wide = self._processes.concatenate(near, counts), self._processes.concatenate(wide, counts)
        kind, _ = cpp.prepared(self._rows.scale.dtype)
        with self._bar("prepare") as report:
            index = kind(near.numpy(), wide.numpy(), d, num_threads=self._threads, report=report)
            del near, wide, codes
            if self._plan is not None:
                trim()
            index.make_cells(num_threads=self._threads, report=report)
        return index

    def _frame(self) -> Any:
        """How `Neighbours` encodes these rows: by a sample, and the exact neighbours of a few of it."""
        numbers, probes, k = cpp.graph_sample(len(self), self._rows.data.shape[1])
        sample = self._everywhere(numbers)
        compared = as_compared(self._as_given(sample), torch.arange(len(numbers)))
        few = UnitRows(compared[:probes].contiguous(), "x", unit=False)
        distances, _ = self._search(few, numbers[:probes], k)
        kth = distances[:, -1].contiguous().numpy()
        return cpp.frame(compared.float().numpy(), kth, *self._weights, graph=True, num_threads=self._threads)

    def _as_given(self, rows: UnitRows) -> UnitRows:
        return UnitRows.scaled(self._typed(rows.data), rows.scale)

    def _ranks_of(self, rows: Tensor, others: Tensor) -> NDArray[np.int64]:
        place = torch.empty_like(self._order)
        place[self._order] = torch.arange(len(self._order))
        found: NDArray[np.int64] = self._graph.ranks(place[rows].numpy(), place[others].numpy())
        return found

    def _probe(self, start: int, stop: int, report: Callable[[float], object]) -> None:
        self._graph.probe(start, stop, num_threads=self._threads, report=report)

    def _join(self, report: Callable[[float], object]) -> None:
        frozen = None
        if self._processes.size > 1:
            own = torch.from_numpy(self._graph.freeze().view(np.int32))
            frozen = self._processes.concatenate(own, self._edges.diff().tolist()).numpy().view(np.uint32)
        self._tell(self._graph.join(frozen, num_threads=self._threads, report=report))

    def _tell(self, offers: tuple[Any, Any]) -> None:
        """Send what belongs into lists of other processes, and take what they send."""
        if self._processes.size == 1:
            return
        places, entries = (torch.from_numpy(part.view(np.int64)) for part in offers)
        places, order = places.sort()
        counts = [len(part) for part in self._by_owner(places, self._edges.tolist())]
        taken = (torch.cat(self._processes.exchange(part.split(counts))) for part in (places, entries[order]))
        places, entries = taken
        self._graph.take(places.numpy(), entries.numpy().view(np.uint64))

    def _measured(self, rows: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest of the rows that candidates (n, K) name to each of some rows, (n,)."""
        named = torch.where(candidates < 0, rows[:, None], candidates)
        table, ids, places = self._fetch(torch.cat([rows[:, None], named], 1))
        distances = torch.empty(len(rows), k, dtype=table.scale.dtype)
        indices = torch.empty(len(rows), k, dtype=torch.int64)
        places[:, 1:][candidates < 0] = -1
        own, lists = places[:, 0].contiguous(), places[:, 1:].contiguous()
        if len(rows):
            cpp.nearest(self._as_given(table), ids, own, lists, *self._weights, distances, indices, self._threads)
        return distances, indices

    def _found(self, rows: Tensor, k: int) -> Tensor:
        first, last = self._own_places()
        held = first + torch.nonzero(torch.isin(self._order[first:last], rows))[:, 0]
        lists = [torch.from_numpy(self._graph.candidates(place, place + 1)) for place in held.tolist()]
        candidates = torch.cat([*lists, torch.empty(0, self._slots, dtype=torch.int64)])
        found = self._measured(self._order[held], candidates, k)[0]
        numbers, distances = self._processes.concatenate(self._order[held]), self._processes.concatenate(found)
        return distances[numbers.argsort()]

    def _lists(self, k: int) -> tuple[Tensor, Tensor]:
        shape, like = (len(self._rows), k), torch.empty(0, dtype=self._rows.scale.dtype)
        distances, indices = self._room(shape, like), self._room(shape, self._order[:0])
        first, last = self._own_places()
        step = 2**15
        if self._plan is not None:  # each row and those of its list are there four times, while they are fetched
            row = self._rows.data.shape[1] * self._rows.data.element_size()
            step = max(64, min(2**13, self._plan.block // (4 * (1 + self._slots) * row)))
        blocks = max(self._processes.gather_objects(-(-(last - first) // step)))
        for block in range(blocks):
            start, stop = (min(last, first + step * i) for i in (block, block + 1))
            rows, candidates = self._order[start:stop], torch.from_numpy(self._graph.candidates(start, stop))
            rows, order = rows.sort()
            found = self._measured(rows, candidates[order], k)
            counts = [len(part) for part in self._by_owner(rows, self._first)]
            back = [torch.cat(self._processes.exchange(part.split(counts))) for part in (rows, *found)]
            distances[back[0] - self._here], indices[back[0] - self._here] = back[1:]
            self._release(distances, indices)
        self._graph, self._order = None, self._order[:0]
        short = self._processes.concatenate(self._here + torch.nonzero(self._short(distances))[:, 0])
        if len(short):
            nearest, own = self.of(short, k), (short >= self._here) & (short < self._here + len(self._rows))
            for values, exact in zip((distances, indices), nearest, strict=True):
                values[short[own] - self._here] = exact[own]
        return distances, indices

    def _room(self, shape: tuple[int, int], like: Tensor) -> Tensor:
        return like.new_empty(shape) if self._plan is None else mapped(shape, like)

    def _short(self, distances: Tensor) -> Tensor:
        """Rows that met fewer than k others."""
        few = []
        for part in distances.split(2**20):
            few.append(part[:, -1].isinf())
            self._release(distances)
        return torch.cat([*few, torch.empty(0, dtype=torch.bool)])


def plan_of(x: Tensor, k: int, recall: float | None, memory: int | str, beside: Beside = (0, 0)) -> Plan | GraphPlan:
    """How `dm2_fast.knn` keeps within a memory, beside what something else takes of it; a ValueError if it cannot."""
    if recall is not None and may_pay(len(x), k):
        return graph_plan(x, k, slots(k, len(x)), memory, beside)
    return plan(x, k, memory, threads_of_torch(), beside)


def plan_of_processes(
    x: Tensor, counts: Sequence[int], k: int, recall: float | None, memory: int | str, beside: Beside = (0, 0)
) -> RingPlan | GraphPlan:
    """How each of several processes keeps within a memory; x: like all rows, of which each has some."""
    if recall is None or not may_pay(len(x), k):
        return ring_plan(x, max(counts), len(counts), k, memory, beside)
    share = max(*counts, -(-len(x) // len(counts)))
    return graph_plan(x, k, slots(k, len(x)), memory, beside, None if len(counts) == 1 else share)


def graph_within(
    x: Tensor,
    k: int,
    metric: Metric,
    recall: float,
    memory: int | str,
    *,
    backend: str = "auto",
    num_threads: int | None = None,
    progress: bool = False,
) -> GraphInParts:
    """What finds approximate neighbours of the rows of x within a memory, by a plan that is printed for progress.

    Raises:
        ValueError: memory is too little, and the message names the least that suffices; or k is out of range.
        RuntimeError: the C++ backend cannot run.
    """
    check_k(k, len(x) - 1, len(x))
    check_native(x, backend)
    how = plan_of(x, k, recall, memory)
    of_graph = how if isinstance(how, GraphPlan) else None  # else `within` says it
    if of_graph is not None and progress:
        write(str(of_graph))

    def exact(k: int) -> tuple[Tensor, Tensor]:
        found = within(x, k, *weights(metric, x.shape[1]), memory, True, backend, num_threads, progress)
        return (
            knn(x, k, metric, backend=backend, num_threads=num_threads, progress=progress) if found is None else found
        )

    return GraphInParts(x, metric, recall, exact, plan=of_graph, num_threads=num_threads, progress=progress)
