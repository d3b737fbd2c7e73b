"""Parts of a selection by processes that cannot reach each other: each reads what the others left in files."""

from collections.abc import Callable, Hashable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from dm2_fast.distributed.finished import Finished
from dm2_fast.operations.knn import Metric
from dm2_fast.operations.memory import Beside
from dm2_fast.operations.neighbours import Neighbours
from dm2_fast.share import Whole

T = TypeVar("T")


class Waiting(Exception):
    """A shard has done what it can do for now; the text says what comes next."""


class Shard:
    """One of several shares of a pool, without the others but for their files.

    Args:
        part: Which one, from 0 on.
        every: What each share has finished.
        bounds: Where each begins, and where the last ends.
    """

    def __init__(self, part: int, every: list[Finished], bounds: list[int]) -> None:
        self.part, self.every, self.own = part, every, every[part]
        self.first, self.total = bounds[part], bounds[-1]
        self.bounds = bounds

    def gather(self, values: Tensor) -> NoReturn:
        raise Waiting("finished; dm2-fast merge does the rest")

    def largest(self, values: Tensor) -> NoReturn:
        self.gather(values)

    def row(self, values: Tensor, number: int) -> NoReturn:
        self.gather(values)

    def table(self, values: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        remote = torch.unique(numbers)
        remote = remote[(remote < self.first) | (remote >= self.first + len(values))]
        here = (numbers >= self.first) & (numbers < self.first + len(values))
        places = torch.where(here, numbers - self.first, len(values) + torch.searchsorted(remote, numbers))
        return torch.cat([values, self._features()[remote]]), places

    def plan(self, features: Tensor, k: int, recall: float | None, memory: int | str, beside: Beside) -> NoReturn:
        raise ValueError("a shard has the features of all others in memory: leave memory out")

    def nearest(self, features: Tensor, k: int, metric: Metric, **options: Any) -> tuple[Tensor, Tensor]:
        every = self._features()
        rows = torch.arange(self.first, self.first + len(features))
        if not len(rows):
            return every.new_empty(0, k), rows.new_empty(0, k)
        return Neighbours(every, metric, **options).of(rows, k)

    def index(self, features: Tensor, k: int, metric: Metric, recall: float, **options: Any) -> NoReturn:
        raise Waiting("features are finished; with recall, dm2-fast merge does the rest")

    def each(self, rows: Tensor, unit: int, run: Callable[[Tensor], Tensor]) -> NoReturn:
        self.gather(rows)

    def once(self, name: str, key: Hashable, run: Callable[[], T]) -> T:
        if not self.own.has(name, key):
            self.own.write(name, key, run())
        result: T = self.own.read(name, key)
        return result

    def _features(self) -> Tensor:
        missing = [i + 1 for i, shard in enumerate(self.every) if not shard.has("features", None)]
        if missing:
            raise Waiting(
                f"features are finished; once those of the others are there (missing: {', '.join(map(str, missing))}), "
                "the same command finds the neighbours and scores the mixtures, or dm2-fast merge does it all"
            )
        return torch.cat([shard.read("features", None)[0] for shard in self.every])


class Merged(Whole):
    """All of a pool, of which the shares have finished some.

    Args:
        every: What each share has finished.
        bounds: Where each begins, and where the last ends.
    """

    def __init__(self, every: list[Finished], bounds: list[int]) -> None:
        super().__init__(bounds[-1])
        self.every = every

    def once(self, name: str, key: Hashable, run: Callable[[], T]) -> T:
        there = [shard.has(name, key) for shard in self.every]
        if name == "labelled" and there[0]:
            labelled: T = self.every[0].read(name, key)
            return labelled
        if all(there):
            joined: T = _joined([shard.read(name, key) for shard in self.every])
            return joined
        if name in ("features", "logits", "dropout"):
            missing = [f"{i + 1}/{len(there)}" for i, has in enumerate(there) if not has]
            raise ValueError(f"not all shards are finished: run the command with --shard {', '.join(missing)}")
        return run()


def _joined(results: list[Any]) -> Any:
    """One result of those of all shares: tensors, or tuples of them and of what is alike in all."""
    if isinstance(results[0], tuple):
        return tuple(_joined(list(parts)) for parts in zip(*results, strict=True))
    return torch.cat(results) if isinstance(results[0], Tensor) else results[0]
