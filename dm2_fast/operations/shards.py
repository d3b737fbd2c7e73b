"""Some of the rows of a pool for the exact search, whose codes are all on the same grids, so that shards can meet."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dm2_fast.operations import cpp
from dm2_fast.operations.knn import UnitRows

SAMPLE = 1000  # rows that the codes are made for
SAMPLE_PER_PART = 256  # rows by which space is cut
PROBES = 32  # rows of the sample whose k-th distance is looked up


@dataclass
class Shard:
    """Some of the rows, their numbers, codes, and the best neighbours found so far."""

    rows: UnitRows
    ids: Tensor
    codes: Tensor | None = None
    distances: Tensor = field(default_factory=partial(torch.empty, 0))
    indices: Tensor = field(default_factory=partial(torch.empty, 0))

    def begin(self, k: int) -> "Shard":
        """With empty places for k neighbours of each row."""
        self.distances = self.ids.new_full((len(self.ids), k), torch.inf, dtype=self.rows.scale.dtype)
        self.indices = self.ids.new_full((len(self.ids), k), torch.iinfo(torch.int64).max)
        return self

    def fixed(self) -> list[Tensor]:
        """What does not change on the way."""
        return [self.rows.data, self.rows.scale, self.ids] + ([] if self.codes is None else [self.codes])

    def room(self, count: int, codes: int | None, k: int) -> "Shard":
        """Room for another shard of so many rows."""
        rows = self.rows.some(self.ids[:0])
        rows.data = self.rows.data.new_empty(count, self.rows.data.shape[1])
        rows.scale = self.rows.scale.new_empty(count, *self.rows.scale.shape[1:])
        packed = None if codes is None else torch.empty(codes, dtype=torch.uint8)
        return Shard(rows, self.ids.new_empty(count), packed).begin(k)


def as_compared(rows: UnitRows, which: Tensor) -> Tensor:
    """Some of the rows times their scale, (n, d), near enough for codes and cuts."""
    scale = rows.scale[which]
    some = rows.data[which].to(scale.dtype)
    return some * scale[:, None] if scale.ndim == 1 else some * scale[:, :1] * scale[:, 1:]


def prepared(shard: Shard, frame: Any, threads: dict[str, int]) -> Any:
    """The shard as csrc/bind_shard.hpp has it, with its codes if they came along; None for no rows."""
    if not len(shard.ids):
        return None
    rows = cpp.array(shard.rows.data), shard.rows.scale.numpy(), shard.ids.numpy()
    return cpp.shard(shard.rows.scale.dtype)(
        *rows, frame, None if shard.codes is None else shard.codes.numpy(), **threads
    )
