"""Exact neighbours of rows that are spread over the processes of a group, each pair of rows met once.

Rows first move to the process of their part of space (cuts.py), so that each finds nearly all of its neighbours where
it is. Then the shards go round: each process meets the shards of half of the others. A shard carries its codes, all on
the same grids, and the best neighbours that its rows have so far, whose distances say which pairs are of no use.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dm2_fast.distributed.group import Group
from dm2_fast.operations import backends, cpp
from dm2_fast.operations.approximate import check_native
from dm2_fast.operations.arrays import as_floats
from dm2_fast.operations.cuts import Cuts
from dm2_fast.operations.graph_in_parts import GraphInParts, plan_of_processes
from dm2_fast.operations.knn import Metric, Rows, UnitRows, check_approximate, check_k, matrix, weights
from dm2_fast.operations.mapped import release
from dm2_fast.operations.memory import GraphPlan, trim
from dm2_fast.operations.shards import PROBES, SAMPLE, SAMPLE_PER_PART, Shard, as_compared, prepared
from dm2_fast.progress import tqdm, write

_MERGED = 2**16  # rows at a time


def knn(
    x: Rows,
    k: int,
    metric: Metric = "literal",
    *,
    group: Any = None,
    recall: float | None = None,
    unit_rows: bool = True,
    per_dimension: bool = True,
    memory: int | str | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Find the k nearest other rows of each row of a pool that is spread over processes: `dm2_fast.knn` of all of it.

    Every process of the group calls this with its own rows; the result is that of one process, bit for bit, however the
    rows are divided. An error in one process is raised in all.

    Args:
        x: The rows of this process, (n, d), n >= 0, as in `dm2_fast.knn`, of one dtype everywhere. Rows are numbered
            through: first those of rank 0, then those of rank 1, and so on.
        group: A torch.distributed group; None for all processes.
        memory: Bytes, or a text such as "4GB", that each process may take on a CPU beside what is in memory already,
            and 300 MB; None for no limit. Its shard of the rows, with codes and neighbours, and what comes from others
            are planned within it. Where it is too little, all processes say so before any work; with recall, the exact
            search is planned only where it has to follow.
        k, metric, recall, unit_rows, per_dimension, backend, num_threads, progress: As in `dm2_fast.knn`.

    Returns:
        distances: (n, k) of the rows of this process.
        indices: (n, k) int64 numbers of rows in the whole pool.

    Raises:
        ValueError, TypeError, RuntimeError: As in `dm2_fast.knn`, or the processes do not agree.
    """
    processes = Group(group)
    data = processes.agree(lambda: matrix(x, "x") if len(x) else as_floats(x, "x"))
    described = [(data.dtype, *data.shape[1:], k, metric, recall, unit_rows, per_dimension, memory)]
    every = processes.gather_objects((described, len(data)))
    if any(other != described for other, _ in every):
        raise ValueError("all processes must pass the same k, metric and memory, and rows of one dtype and width")
    counts = [count for _, count in every]
    k = check_k(k, sum(counts) - 1, sum(counts))
    w1, w2 = weights(metric, data.shape[1], per_dimension)
    module = backends.resolve(backend, data, "knn")
    how: Any = None
    if memory is not None:
        if module is not cpp:
            raise ValueError("memory= is for the C++ backend on a CPU: leave it out, or move x to the CPU")
        how = plan_of_processes(data.new_empty(1, 1).expand(sum(counts), data.shape[1]), counts, k, recall, memory)
        if progress and processes.rank == 0:
            write(str(how))
    if recall is not None:
        check_approximate(recall, unit_rows, per_dimension)
        check_native(data, backend)
        options: Any = {"num_threads": num_threads, "progress": progress}
        exact = partial(knn, data, metric=metric, group=group, backend=backend, memory=memory, **options)
        of_graph = how if isinstance(how, GraphPlan) else None
        return GraphInParts(data, metric, recall, exact, processes, plan=of_graph, **options).graph(k)
    rows = processes.agree(lambda: UnitRows(data, "x", progress and processes.rank == 0, unit_rows))
    if any(processes.gather_objects(rows.scale.ndim == 2)) and rows.scale.ndim == 1:
        rows.scale = torch.stack((torch.ones_like(rows.scale), rows.scale), 1)
    threads: Any = backends.thread_options(module, num_threads)
    most = None if how is None else how.rows
    ring = _Ring(processes, counts, k, w1, w2, threads, progress and processes.rank == 0, most)
    first = ring.first[processes.rank]
    own = Shard(rows, torch.arange(first, first + len(rows), device=data.device))
    if module is not cpp:
        ring.meet_all(own, module)
        return own.distances, own.indices
    return ring.neighbours(own, module)


class _Ring:
    def __init__(
        self, group: Group, counts: list[int], k: int, w1: float, w2: float, threads: dict[str, Any], progress: bool,
        most: int | None = None,
    ) -> None:  # fmt: skip
        self.group, self.k, self.weights, self.threads, self.progress = group, k, (w1, w2), threads, progress
        self.most = most  # rows of a shard, within a budget
        self.first = np.cumsum([0, *counts]).tolist()  # number of the first row of each process

    def neighbours(self, own: Shard, module: Any) -> tuple[Tensor, Tensor]:
        """By codes, on a CPU."""
        sample = self._sample(own)
        held = self._at_home(own, sample)
        self._check_size(len(held.ids), own.rows.data)
        frame = self._frame(held, sample[:SAMPLE], module)
        self._go_round(held.begin(self.k), frame)
        return self._returned(held)

    def _sample(self, own: Shard) -> Tensor:
        """Random rows of all processes as they are compared, float32, the same everywhere."""
        rng = np.random.default_rng(0)
        numbers = rng.integers(0, self.first[-1], max(SAMPLE, SAMPLE_PER_PART * self.group.size))
        begin = self.first[self.group.rank]
        mine = torch.from_numpy(np.sort(numbers[(numbers >= begin) & (numbers < begin + len(own.ids))]) - begin)
        sample = self.group.concatenate(as_compared(own.rows, mine).float())
        return sample[torch.from_numpy(rng.permutation(len(sample)))].contiguous()

    def _at_home(self, own: Shard, sample: Tensor) -> Shard:
        """The rows of this process's part of space."""
        if self.group.size == 1:
            return own
        cuts, step = Cuts(sample, self.group.size), own.rows.block
        every = torch.arange(len(own.ids))
        parts = [cuts.part_of(as_compared(own.rows, rows).float()) for rows in every.split(step)]
        part = torch.cat([*parts, every[:0]])
        order = part.argsort(stable=True)
        going = order.split(torch.bincount(part, minlength=self.group.size).tolist())
        held = own.rows.some(every[:0])
        data, scale = own.rows.data, own.rows.scale
        raw = data.view(torch.int16) if data.dtype == torch.bfloat16 else data  # concatenated alike, indexed alike
        held.data = torch.cat(self.group.exchange([raw[rows] for rows in going])).view(data.dtype)
        held.scale = torch.cat(self.group.exchange([scale[rows] for rows in going]))
        return Shard(held, torch.cat(self.group.exchange([own.ids[rows] for rows in going])))

    def _check_size(self, rows: int, data: Tensor) -> None:
        """Raise in all processes where a shard is larger than planned; give back what was read of mapped rows."""
        if self.most is None:
            return
        release(data)
        trim()
        largest = max(self.group.gather_objects(rows))
        if largest > self.most:
            raise ValueError(
                f"{largest} rows lie so near together that one process has them all, and memory= allows for "
                f"{self.most} of them: leave it out"
            )

    def _frame(self, held: Shard, sample: Tensor, module: Any) -> Any:
        """The encoding, made by rank 0 for the k-th distances of a few rows among all rows."""
        few = sample[:PROBES].to(held.rows.scale.dtype)
        probes = Shard(UnitRows(few, "x", unit=False), torch.full((len(few),), -1)).begin(self.k + 1)  # and itself
        if len(held.ids):
            queries = probes.rows.data, probes.rows.scale, probes.ids
            rows = held.rows.data, held.rows.scale, held.ids
            module.knn(*queries, *rows, probes.distances, probes.indices, *self.weights, **self.threads)
        found = torch.cat(self.group.gather_objects(probes.distances), dim=1).sort(dim=1).values
        distances = found[:, min(self.k, found.shape[1] - 1)].contiguous().numpy()
        frame = None
        if self.group.rank == 0:
            frame = cpp.frame(sample.numpy(), distances, *self.weights, **self._number_of_threads())
        return self.group.gather_objects(frame)[0]

    def _number_of_threads(self) -> dict[str, Any]:
        return {"num_threads": self.threads.get("num_threads") or torch.get_num_threads()}

    def _go_round(self, own: Shard, frame: Any) -> None:
        """Meet the shards of the processes before this one, half of them all; those behind it meet this one's."""
        rank, size = self.group.rank, self.group.size
        here = prepared(own, frame, self._number_of_threads())
        own.codes = torch.empty(0, dtype=torch.uint8) if here is None else torch.from_numpy(here.codes())
        sizes = self.group.gather_objects((len(own.ids), len(own.codes)))
        visitor, there = own, here
        with self._bar(1 + size // 2) as step:
            for hop in range(size // 2 + 1):
                owner = (rank - hop) % size
                coming, works = None, []
                if hop < size // 2:  # the next shard comes while this one is met
                    coming = own.room(*sizes[(owner - 1) % size], self.k)
                    next_rank, last_rank = (rank + 1) % size, (rank - 1) % size
                    works = self.group.start(visitor.fixed(), next_rank, coming.fixed(), last_rank)
                if here is not None and there is not None:
                    self._meet(own, here, visitor, there, owner, last=2 * hop == size, report=step)
                self.group.finish(works)
                if coming is not None:
                    sent, received = [visitor.distances, visitor.indices], [coming.distances, coming.indices]
                    self.group.finish(self.group.start(sent, next_rank, received, last_rank))
                    visitor, there = coming, prepared(coming, frame, self._number_of_threads())
                step(None)
        if size > 1:
            back = own.room(len(own.ids), None, self.k)
            sent, received = [visitor.distances, visitor.indices], [back.distances, back.indices]
            away = size // 2
            self.group.finish(self.group.start(sent, (rank - away) % size, received, (rank + away) % size))
            _merge(own, back)

    def _meet(self, own: Shard, here: Any, visitor: Shard, there: Any, owner: int, last: bool, report: Any) -> None:
        """Each pair of rows of two shards; of the last of an even number, which both owners meet, each does half."""
        one, other = (own, here), (visitor, there)
        if owner < self.group.rank:
            one, other = other, one
        halves = {"part": int(owner < self.group.rank), "parts": 2} if last and owner != self.group.rank else {}
        type(here).meet(
            one[1], one[0].distances.numpy(), one[0].indices.numpy(),
            other[1], other[0].distances.numpy(), other[0].indices.numpy(),
            *self.weights, **halves, **self._number_of_threads(), report=report,
        )  # fmt: skip

    def _returned(self, held: Shard) -> tuple[Tensor, Tensor]:
        """The neighbours of this process's own rows, in order, from where they were found."""
        if self.group.size == 1:
            return held.distances, held.indices
        owner = torch.searchsorted(torch.tensor(self.first[1:]), held.ids, right=True)
        order = owner.argsort(stable=True)
        going = order.split(torch.bincount(owner, minlength=self.group.size).tolist())

        def back(values: Tensor) -> Tensor:
            return torch.cat(self.group.exchange([values[rows] for rows in going]))

        place = back(held.ids) - self.first[self.group.rank]
        distances, indices = back(held.distances), back(held.indices)
        own_distances, own_indices = torch.empty_like(distances), torch.empty_like(indices)
        own_distances[place], own_indices[place] = distances, indices
        return own_distances, own_indices

    def meet_all(self, own: Shard, module: Any) -> None:
        """With any backend: meet the shards of all processes, one after another."""
        rank, size = self.group.rank, self.group.size
        own.begin(self.k)
        visitor = Shard(own.rows, own.ids)
        visitor.rows.data = visitor.rows.data.contiguous()
        counts = [self.first[i + 1] - self.first[i] for i in range(size)]
        with self._bar(size) as step:
            for hop in range(size):
                for i in range(0, len(own.ids), own.rows.block):
                    part = slice(i, i + own.rows.block)
                    queries, best = own.rows.read(part.start, part.stop), (own.distances[part], own.indices[part])
                    for j in range(0, len(visitor.ids), own.rows.block):
                        rows, ids = visitor.rows.read(j, j + own.rows.block), visitor.ids[j : j + own.rows.block]
                        module.knn(*queries, own.ids[part], *rows, ids, *best, *self.weights, **self.threads)
                step(None)
                if hop + 1 < size:
                    coming = own.room(counts[(rank - hop - 1) % size], None, self.k)
                    works = self.group.start(visitor.fixed(), (rank + 1) % size, coming.fixed(), (rank - 1) % size)
                    self.group.finish(works)
                    visitor = coming

    def _bar(self, hops: int) -> "_Steps":
        return _Steps(hops, self.progress)


class _Steps:
    """Progress over hops: called with the part of a hop that is done, or None at its end."""

    def __init__(self, hops: int, progress: bool) -> None:
        self.bar = tqdm(total=100 * hops, desc="shards", unit="%", leave=False, disable=None if progress else True)
        self.ended = 0

    def __enter__(self) -> Callable[[float | None], None]:
        return self._step

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def _step(self, part: float | None) -> None:
        self.ended += part is None
        self.bar.update(100 * self.ended + int(100 * (part or 0)) - self.bar.n)


def _merge(own: Shard, back: Shard) -> None:
    """The best of two lists of each row, which may share entries, into own."""
    k = own.distances.shape[1]
    for i in range(0, len(own.ids), _MERGED):
        part = slice(i, i + _MERGED)
        indices = torch.cat((own.indices[part], back.indices[part]), 1)
        indices, order = indices.sort(dim=1)
        distances = torch.cat((own.distances[part], back.distances[part]), 1).gather(1, order)
        distances[:, 1:][indices[:, 1:] == indices[:, :-1]] = torch.inf
        distances, order = distances.sort(dim=1, stable=True)
        own.distances[part], own.indices[part] = distances[:, :k], indices.gather(1, order)[:, :k]
