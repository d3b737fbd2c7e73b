"""Which rows of a pool a round has here: all of them, or those of one process of several (`dm2_fast.distributed`)."""

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

from torch import Tensor

from dm2_fast.operations.approximate import AuditedGraph
from dm2_fast.operations.graph_in_parts import graph_within, plan_of
from dm2_fast.operations.knn import Metric, knn
from dm2_fast.operations.memory import Beside
from dm2_fast.operations.neighbours import Neighbours

T = TypeVar("T")


class Share(Protocol):
    """The rows first, first + 1, ... of a pool of `total` rows, and what a strategy may ask about the others.

    Rows are named by their number in the whole pool. Where there are several processes, all of them must ask the same.
    """

    @property
    def total(self) -> int: ...

    @property
    def first(self) -> int: ...

    def gather(self, values: Tensor) -> Tensor:
        """The values of all rows, (total, ...), from those of the rows here."""
        ...

    def largest(self, values: Tensor) -> int:
        """The row with the largest of all values, (n,) of the rows here; the lower of equals."""
        ...

    def row(self, values: Tensor, number: int) -> Tensor:
        """The values of one row, (1, ...), from those of the rows here."""
        ...

    def table(self, values: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The values of the rows here and, behind them, of the others that are named; and where each name is in it."""
        ...

    def plan(self, features: Tensor, k: int, recall: float | None, memory: int | str, beside: Beside) -> object:
        """How the neighbours keep within a memory, beside bytes that something else takes of it meanwhile, and
        afterwards; a ValueError if they cannot. features: Like those of all rows."""
        ...

    def nearest(self, features: Tensor, k: int, metric: Metric, **options: Any) -> tuple[Tensor, Tensor]:
        """`dm2_fast.knn` of all rows, that part of it which is of the rows here."""
        ...

    def index(self, features: Tensor, k: int, metric: Metric, recall: float, **options: Any) -> AuditedGraph:
        """What finds approximate neighbours among all rows, those of the rows here, and measures itself."""
        ...

    def each(self, rows: Tensor, unit: int, run: Callable[[Tensor], Tensor]) -> Tensor:
        """What run returns for some rows of the pool, (n, ...), of which it may be asked in parts of whole units."""
        ...

    def once(self, name: str, key: Hashable, run: Callable[[], T]) -> T:
        """What run returns, or returned before this process was interrupted."""
        ...


class Whole:
    """All rows of a pool."""

    first = 0

    def __init__(self, total: int) -> None:
        self.total = total

    def gather(self, values: Tensor) -> Tensor:
        return values

    def largest(self, values: Tensor) -> int:
        return int(values.argmax())

    def row(self, values: Tensor, number: int) -> Tensor:
        return values[number : number + 1]

    def table(self, values: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        return values, numbers

    def plan(self, features: Tensor, k: int, recall: float | None, memory: int | str, beside: Beside) -> object:
        return plan_of(features, k, recall, memory, beside)

    def nearest(self, features: Tensor, k: int, metric: Metric, **options: Any) -> tuple[Tensor, Tensor]:
        return knn(features, k, metric, **options)

    def index(self, features: Tensor, k: int, metric: Metric, recall: float, **options: Any) -> AuditedGraph:
        if options.get("memory") is None:
            return Neighbours(features, metric, recall, **options)
        return graph_within(features, k, metric, recall, **options)

    def each(self, rows: Tensor, unit: int, run: Callable[[Tensor], Tensor]) -> Tensor:
        return run(rows)

    def once(self, name: str, key: Hashable, run: Callable[[], T]) -> T:
        return run()
