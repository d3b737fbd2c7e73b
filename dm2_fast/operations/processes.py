"""The processes that search together, and one that is alone."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class Processes(Protocol):
    """What the search needs of `dm2_fast.distributed.group.Group`."""

    rank: int
    size: int

    def gather_objects(self, value: T) -> list[T]: ...
    def agree(self, work: Callable[[], T]) -> T: ...
    def concatenate(self, rows: Tensor, counts: Sequence[int] | None = None) -> Tensor: ...
    def exchange(self, sent: Sequence[Tensor]) -> list[Tensor]: ...


class Alone:
    """One process."""

    rank, size = 0, 1

    def gather_objects(self, value: T) -> list[T]:
        return [value]

    def agree(self, work: Callable[[], T]) -> T:
        return work()

    def concatenate(self, rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        return rows

    def exchange(self, sent: Sequence[Tensor]) -> list[Tensor]:
        return list(sent)
