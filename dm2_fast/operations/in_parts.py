"""Exact neighbours of rows that do not fit into memory: in parts of near rows, of which two are in memory at once."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from dm2_fast.operations import backends, cpp
from dm2_fast.operations.cuts import Cuts
from dm2_fast.operations.knn import UnitRows, check_k
from dm2_fast.operations.mapped import mapped, release, taken
from dm2_fast.operations.memory import Plan, plan, trim
from dm2_fast.operations.shards import PROBES, SAMPLE, SAMPLE_PER_PART, Shard, as_compared, prepared
from dm2_fast.progress import tqdm, write
from dm2_fast.threads import threads_of_torch

_TOGETHER = 2**16  # rows of the result that are written at a time


def within(
    x: Tensor,
    k: int,
    w1: float,
    w2: float,
    memory: int | str,
    unit_rows: bool,
    backend: str,
    num_threads: int | None,
    progress: bool,
) -> tuple[Tensor, Tensor] | None:
    """`dm2_fast.knn` in parts, by a plan that is printed for progress; None where all rows fit into the memory.

    Raises:
        ValueError: k or memory does not suit x, or another backend than C++ serves it.
    """
    k = check_k(k, len(x) - 1, len(x))
    module = backends.resolve(backend, x, "knn")
    if module is not cpp:
        raise ValueError("memory= is for the C++ backend on a CPU: leave it out, or move x to the CPU")
    threads = backends.thread_options(module, num_threads).get("num_threads") or threads_of_torch()
    how = plan(x, k, memory, threads)
    if progress:
        write(str(how))
    if how.parts == 1:
        return None
    with tqdm(total=100, desc="neighbours", unit="%", leave=False, disable=None if progress else True) as bar:

        def report(done: float) -> None:
            bar.update(int(100 * done) - bar.n)

        return knn(x, k, w1, w2, how, unit_rows=unit_rows, num_threads=threads, report=report)


def knn(
    data: Tensor,
    k: int,
    w1: float,
    w2: float,
    plan: Plan,
    *,
    unit_rows: bool,
    num_threads: int,
    report: Callable[[float], object],
) -> tuple[Tensor, Tensor]:
    """The k nearest other rows of each row, as `dm2_fast.knn` finds them, bit for bit, within the memory of a plan.

    Args:
        data: Features, (m, d), on the CPU; in a mapped file, of which only what is in use takes memory.
        report: Called with the part that is done.

    Returns:
        Distances and indices, (m, k), in mapped files without a name, which are gone when nobody uses them.
    """
    with ExitStack() as files:
        parts = _Parts(data, k, (w1, w2), plan, unit_rows, {"num_threads": num_threads}, files)
        parts.spread()
        parts.meet(report)
        return parts.results()


@dataclass
class _Store:
    """Values of a few kinds, one after another in a file without a name."""

    file: IO[bytes]
    end: int = 0

    def append(self, values: Tensor) -> int:
        """Write values at the end, and return where they begin."""
        at, self.end = self.end, self.end + values.numel() * values.element_size()
        self.write(at, values)
        return at

    def write(self, at: int, values: Tensor) -> None:
        self.file.seek(at)
        self.file.write(values.contiguous().view(-1).view(torch.uint8).numpy().data)

    def read(self, at: int, like: Tensor, *shape: int) -> Tensor:
        """Values of the dtype of `like`."""
        values = torch.empty(shape, dtype=like.dtype)
        if values.numel():
            self.file.seek(at)
            self.file.readinto(values.view(-1).view(torch.uint8).numpy().data)  # type: ignore[attr-defined]
        return values


@dataclass
class _Kept:
    """Where a shard lies: the rows from `first` on of a part's files, its codes and its best."""

    rows: _Store
    scales: _Store
    ids: _Store
    first: int
    count: int
    codes: int = -1
    size: int = 0
    distances: int = -1
    indices: int = -1


class _Parts:
    def __init__(
        self, data: Tensor, k: int, weights: tuple[float, float], plan: Plan, unit_rows: bool, threads: dict[str, Any],
        files: ExitStack,
    ) -> None:  # fmt: skip
        self.data, self.k, self.weights, self.plan, self.unit, self.threads = data, k, weights, plan, unit_rows, threads
        self.number = torch.empty(0, dtype=torch.float64 if data.dtype == torch.float64 else torch.float32)
        self.ids = torch.empty(0, dtype=torch.int64)
        self.files = files
        self.found, self.codes = self._open(), self._open()
        self.shards: list[_Kept] = []
        self.frame: Any = None

    def _open(self) -> "_Store":
        return _Store(self.files.enter_context(tempfile.TemporaryFile()))

    def spread(self) -> None:
        """Write each row to its part, and make the codes' grids for a sample."""
        rng, m = np.random.default_rng(0), len(self.data)
        some = rng.integers(0, m, max(SAMPLE, SAMPLE_PER_PART * self.plan.parts))
        sample = UnitRows(taken(self.data, torch.from_numpy(some)), "x", unit=self.unit)
        compared = as_compared(sample, torch.arange(len(some)))
        probes = Shard(UnitRows(compared[:PROBES], "x", unit=False), torch.full((PROBES,), -1)).begin(self.k + 1)
        cuts = Cuts(compared.float(), self.plan.parts)
        parts = [_Kept(self._open(), self._open(), self._open(), 0, 0) for _ in range(self.plan.parts)]
        for first, rows in self._blocks():
            ids = torch.arange(first, first + len(rows))
            queries = probes.rows.data, probes.rows.scale, probes.ids
            best = probes.distances, probes.indices
            cpp.knn(*queries, rows.data, rows.scale, ids, *best, *self.weights, **self.threads)
            part = cuts.part_of(as_compared(rows, torch.arange(len(rows))).float())
            scales = rows.scale if rows.scale.ndim == 2 else torch.stack((torch.ones_like(rows.scale), rows.scale), 1)
            for number, kept in enumerate(parts):
                own = torch.nonzero(part == number)[:, 0]
                kept.rows.append(rows.data[own])
                kept.scales.append(scales[own])
                kept.ids.append(ids[own])
                kept.count += len(own)
        kth = probes.distances.sort(dim=1).values[:, self.k].contiguous()
        self.frame = cpp.frame(compared[:SAMPLE].float().numpy(), kth.numpy(), *self.weights, **self.threads)
        for kept in parts:  # one that is larger than planned is more than one
            for first in range(0, kept.count, self.plan.rows):
                count = min(self.plan.rows, kept.count - first)
                self.shards.append(_Kept(kept.rows, kept.scales, kept.ids, first, count))

    def _blocks(self) -> Iterator[tuple[int, UnitRows]]:
        """The rows by blocks, each copied from where they lie."""
        step = max(1, min(2**24, self.plan.memory // 16) // (self.data.shape[1] * self.data.element_size()))
        for first in range(0, len(self.data), step):
            block = self.data[first : first + step].clone(memory_format=torch.contiguous_format)
            release(self.data)
            yield first, UnitRows(block, "x", unit=self.unit, first=first)

    def meet(self, report: Callable[[float], object]) -> None:
        """Each shard meets its own rows, so that thresholds are low, and then each two meet each other."""
        count, done = len(self.shards), 0
        steps = count * (count + 1) // 2

        def step(one: Shard, here: Any, other: Shard, there: Any) -> None:
            nonlocal done
            type(here).meet(
                here, one.distances.numpy(), one.indices.numpy(), there, other.distances.numpy(), other.indices.numpy(),
                *self.weights, **self.threads, report=lambda part: report((done + part) / steps),
            )  # fmt: skip
            done += 1

        for kept in self.shards:
            one = self._load(kept)
            here = prepared(one, self.frame, self.threads)
            codes = torch.from_numpy(here.codes())
            kept.codes, kept.size = self.codes.append(codes), len(codes)
            step(one, here, one, here)
            kept.distances, kept.indices = self.found.append(one.distances), self.found.append(one.indices)
        for i, first in enumerate(self.shards[:-1]):
            one = self._load(first)
            here = prepared(one, self.frame, self.threads)
            for second in self.shards[i + 1 :]:
                other = self._load(second)
                step(one, here, other, prepared(other, self.frame, self.threads))
                self._save(second, other)
                del other  # or three parts are in memory while the next is read
            self._save(first, one)

    def _load(self, kept: _Kept) -> Shard:
        trim()
        d, n, first = self.data.shape[1], kept.count, kept.first
        data = kept.rows.read(first * d * self.data.element_size(), self.data, n, d)
        scale = kept.scales.read(first * 2 * self.number.element_size(), self.number, n, 2)
        scale = scale[:, 1].contiguous() if bool((scale[:, 0] == 1).all()) else scale
        shard = Shard(UnitRows.scaled(data, scale), kept.ids.read(first * 8, self.ids, n))
        if kept.codes < 0:
            return shard.begin(self.k)
        shard.codes = self.codes.read(kept.codes, torch.empty(0, dtype=torch.uint8), kept.size)
        shard.distances = self.found.read(kept.distances, self.number, n, self.k)
        shard.indices = self.found.read(kept.indices, self.ids, n, self.k)
        return shard

    def _save(self, kept: _Kept, shard: Shard) -> None:
        self.found.write(kept.distances, shard.distances)
        self.found.write(kept.indices, shard.indices)

    def results(self) -> tuple[Tensor, Tensor]:
        """The neighbours in the order of the rows."""
        shape = len(self.data), self.k
        distances, indices = mapped(shape, self.number), mapped(shape, self.ids)
        for kept in self.shards:
            ids = kept.ids.read(kept.first * 8, self.ids, kept.count)
            for i in range(0, kept.count, _TOGETHER):
                some, skipped = ids[i : i + _TOGETHER], i * self.k
                at = kept.distances + skipped * self.number.element_size()
                distances[some] = self.found.read(at, self.number, len(some), self.k)
                indices[some] = self.found.read(kept.indices + skipped * 8, self.ids, len(some), self.k)
                release(distances)
                release(indices)
        return distances, indices
