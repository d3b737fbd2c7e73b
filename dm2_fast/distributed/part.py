"""The rows of a pool that one process of a group works on, and what the others tell about theirs (`dm2_fast.share`)."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from dm2_fast.distributed import ring
from dm2_fast.distributed.finished import Finished
from dm2_fast.distributed.group import Group
from dm2_fast.operations.approximate import AuditedGraph, check_native
from dm2_fast.operations.graph_in_parts import GraphInParts, plan_of_processes
from dm2_fast.operations.knn import Metric
from dm2_fast.operations.mapped import blocks, is_mapped, mapped, taken
from dm2_fast.operations.memory import Beside, GraphPlan

T = TypeVar("T")


def bounds(total: int, parts: int, unit: int) -> list[int]:
    """Where each of the parts of `total` rows begins, and where the last ends: whole units of rows, evenly spread."""
    units = -(-total // unit)
    return [min(total, unit * (units * part // parts)) for part in range(parts + 1)]


class Part:
    """One process's share of a pool.

    Args:
        group: The processes.
        bounds: Where the share of each begins, and where the last ends.
        finished: Where results are kept for the next start; None for nowhere.
    """

    def __init__(self, group: Group, bounds: list[int], finished: Finished | None = None) -> None:
        self.group, self.bounds, self.finished = group, bounds, finished
        self.first, self.total = bounds[group.rank], bounds[-1]
        self.counts = [bounds[i + 1] - bounds[i] for i in range(group.size)]

    def gather(self, values: Tensor) -> Tensor:
        return self.group.concatenate(values, self.counts)

    def largest(self, values: Tensor) -> int:
        most, row = values.new_full((1,), -torch.inf), values.new_zeros(1, dtype=torch.int64)
        if len(values):
            most, row = values.max()[None], self.first + values.argmax()[None]
        every = self.group.concatenate(most, [1] * self.group.size)
        return int(self.group.concatenate(row, [1] * self.group.size)[every.argmax()])

    def row(self, values: Tensor, number: int) -> Tensor:
        owner = self._owner(torch.tensor(number))
        mine = number - self.first
        row = values[mine : mine + 1].clone() if owner == self.group.rank else values.new_empty(1, *values.shape[1:])
        return self.group.broadcast(row.contiguous(), int(owner))

    def table(self, values: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        distinct = torch.unique(numbers)
        remote = distinct[(distinct < self.first) | (distinct >= self.first + len(values))]
        asked = self.group.exchange(
            remote.split(torch.bincount(self._owner(remote), minlength=self.group.size).tolist())
        )
        answers = torch.cat(self.group.exchange([taken(values, rows - self.first) for rows in asked]))
        places = len(values) + torch.searchsorted(remote, numbers)
        here = (numbers >= self.first) & (numbers < self.first + len(values))
        return _behind(values, answers), torch.where(here, numbers - self.first, places)

    def nearest(self, features: Tensor, k: int, metric: Metric, **options: Any) -> tuple[Tensor, Tensor]:
        return ring.knn(features, k, metric, group=self.group.group, **options)

    def plan(self, features: Tensor, k: int, recall: float | None, memory: int | str, beside: Beside) -> object:
        return plan_of_processes(features, self.counts, k, recall, memory, beside)

    def index(self, features: Tensor, k: int, metric: Metric, recall: float, **options: Any) -> AuditedGraph:
        check_native(features, options.pop("backend", "auto"))

        def exact(k: int) -> tuple[Tensor, Tensor]:
            return self.nearest(features, k, metric, **options)

        of_graph = None
        if "memory" in options:
            like = features.new_empty(1, 1).expand(self.total, features.shape[1])
            how = self.plan(like, k, recall, options["memory"], (0, 0))
            of_graph = how if isinstance(how, GraphPlan) else None
        rest = {name: value for name, value in options.items() if name != "memory"}
        return GraphInParts(features, metric, recall, exact, self.group, plan=of_graph, **rest)

    def each(self, rows: Tensor, unit: int, run: Callable[[Tensor], Tensor]) -> Tensor:
        able = [rank for rank, count in enumerate(self.counts) if count]
        edges = bounds(len(rows), len(able), max(self.group.gather_objects(unit)))
        place = able.index(self.group.rank) if self.group.rank in able else len(able)
        mine = slice(edges[place], edges[place + 1]) if place < len(able) else slice(0, 0)
        return self.group.concatenate(run(rows[mine]))

    def once(self, name: str, key: Hashable, run: Callable[[], T]) -> T:
        if self.finished is None:
            return run()
        there = self.finished.has(name, key)
        if all(self.group.gather_objects(there)) or (there and name not in TOGETHER):
            found: T = self.finished.read(name, key)
            return found
        result = run()
        self.finished.write(name, key, result)
        return result

    def _owner(self, numbers: Tensor) -> Tensor:
        return torch.searchsorted(torch.tensor(self.bounds[1:], device=numbers.device), numbers, right=True)


def _behind(values: Tensor, others: Tensor) -> Tensor:
    """The others behind the values; in another mapped file where the values lie in one."""
    if not is_mapped(values):
        return torch.cat([values, others])
    table = mapped((len(values) + len(others), values.shape[1]), values)
    for part in blocks(values, table):
        table[: len(values)][part] = values[part]
    table[len(values) :] = others
    return table


TOGETHER = ("neighbours",)  # what the processes compute together, so that one cannot skip it alone
