"""How much memory a search of neighbours takes, and how it keeps within less (`dm2_fast.knn(memory=...)`)."""

import ctypes
import re
import sys
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dm2_fast.operations.arguments import shown
from dm2_fast.operations.mapped import is_mapped

MOST_PARTS = 64  # of the rows, in files; as many are open at once
_LEAST_BLOCK, _GRAPH_BLOCK = 2**25, 2**27  # bytes of rows of an approximate graph, and of what is computed, at a time
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
Beside: TypeAlias = tuple[int, int]
_UNEVEN = 1.2  # a part has at most so many times its share of the rows
_MILLION_MINUTES = 2.1  # of one core for a million rows of 128 features: benches/approximate.py


def as_bytes(memory: int | str) -> int:
    """Bytes from a number of them, or from a text such as 4GB, 500MB or 2GiB.

    Raises:
        ValueError: it is neither.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(memory))
    if isinstance(memory, bool) or found is None or found[2].lower() not in _UNITS:
        raise ValueError(f"memory must be a number of bytes, or a text such as 4GB or 500MB, got {shown(memory)}")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def minutes(m: int, d: int, threads: int) -> float:
    """About how long the exact neighbours of m rows take on a CPU; time grows as m^1.6."""
    return float(_MILLION_MINUTES * (m / 1e6) ** 1.6 * d / 128 / threads)


@dataclass(frozen=True)
class Plan:
    """How the neighbours of m rows are found within a budget.

    Attributes:
        memory: The budget in bytes.
        parts: In how many parts, of which two are in memory at once; 1: all rows are.
        rows: The most rows of a part.
        needed: Bytes that this takes.
        on_disk: Bytes of files.
        minutes: About how long it takes.
    """

    memory: int
    parts: int
    rows: int
    needed: int
    on_disk: int
    minutes: float

    def __str__(self) -> str:
        how = "all rows in memory" if self.parts == 1 else f"{self.parts} parts of at most {self.rows} rows in files"
        disk = "" if self.parts == 1 else f", {self.on_disk / 1e9:.2f} GB of files"
        return (
            f"neighbours within {self.memory / 1e9:.2f} GB: {how}, {self.needed / 1e9:.2f} GB of memory{disk}, "
            f"about {max(self.minutes, 0.1):.1f} minutes"
        )


def plan(x: Tensor, k: int, memory: int | str, threads: int, beside: Beside = (0, 0)) -> Plan:
    """Plan the search of the k nearest rows of each row of x, which is not counted where it is in memory already.

    Args:
        beside: Bytes of the memory that something else takes meanwhile, and afterwards.

    Raises:
        ValueError: memory is too little; the message names the least that suffices.
    """
    m, d = x.shape
    budget, estimate = as_bytes(memory), minutes(m, d, threads)
    search, row, lists = _searched(x, k)
    whole = max(m * (search + lists + (row if is_mapped(x) else 0)) + beside[0], beside[1])
    if whole <= budget:
        return Plan(budget, 1, m, whole, 0, estimate)
    on_disk = m * (search + row + 2 * lists)
    for parts in range(2, MOST_PARTS + 1):
        rows = min(m, int(_UNEVEN * m / parts) + 1)
        needed = max(2 * rows * (search + row + lists) + beside[0], beside[1])
        if needed <= budget:
            return Plan(budget, parts, rows, needed, on_disk, 1.3 * estimate)
    raise _too_little(needed, f"the {k} nearest of {m} rows of {d} features", memory)


def _searched(x: Tensor, k: int) -> tuple[int, int, int]:
    """Bytes of a row in the exact search: what it is found by, its features, and its neighbours."""
    d, number = x.shape[1], 8 if x.dtype == torch.float64 else 4
    # Codes of 32 bytes and of up to 1.5 d more, their errors and order, numbers, thresholds.
    return 120 + 3 * d // 2 + number * 3, d * x.element_size(), k * (number + 8)


def _too_little(needed: int, what: str, memory: int | str) -> ValueError:
    return ValueError(f"memory must be at least {-(-needed // 10**6)}MB for {what}, got {memory}")


@dataclass(frozen=True)
class RingPlan:
    """How the neighbours of rows that several processes have are found within a budget of each of them.

    Attributes:
        memory: The budget in bytes.
        rows: The most rows of a shard, of which three are in memory: that of the process, the one that it meets, and
            the one that comes.
        needed: Bytes that this takes.
    """

    memory: int
    rows: int
    needed: int

    def __str__(self) -> str:
        return (
            f"neighbours within {self.memory / 1e9:.2f} GB in each process: three shards of at most {self.rows} rows, "
            f"{self.needed / 1e9:.2f} GB of memory"
        )


def ring_plan(x: Tensor, own: int, processes: int, k: int, memory: int | str, beside: Beside = (0, 0)) -> RingPlan:
    """Plan the search of the k nearest rows of each row of x, which several processes have.

    Args:
        own: The most rows that one of them has.
        beside: As in `plan`.

    Raises:
        ValueError: memory is too little; the message names the least that suffices.
    """
    m, d = x.shape
    rows = min(m, max(own, int(_UNEVEN * m / processes) + 1))
    search, row, lists = _searched(x, k)
    needed = max(rows * (3 * (search + row + lists) + row) + beside[0], beside[1])
    if needed > as_bytes(memory):
        raise _too_little(needed, f"the {k} nearest of {m} rows of {d} features in {processes} processes", memory)
    return RingPlan(as_bytes(memory), rows, needed)


@dataclass(frozen=True)
class GraphPlan:
    """How approximate neighbours of m rows are found within a budget: the codes and lists of all rows are in memory.

    Attributes:
        memory: The budget in bytes.
        block: Bytes of rows, and of what is computed of them, at a time.
        needed: Bytes that this takes.
        on_disk: Bytes of files.
    """

    memory: int
    block: int
    needed: int
    on_disk: int

    def __str__(self) -> str:
        return (
            f"approximate neighbours within {self.memory / 1e9:.2f} GB: codes and lists of all rows in memory, "
            f"{self.needed / 1e9:.2f} GB of memory, {self.on_disk / 1e9:.2f} GB of files"
        )


def graph_plan(
    x: Tensor, k: int, slots: int, memory: int | str, beside: Beside = (0, 0), own: int | None = None
) -> GraphPlan:
    """Plan an approximate graph of the rows of x, with so many rows in a list, from blocks of rows that are read.

    Args:
        beside: As in `plan`.
        own: The most rows that one of several processes has; None for one process, which has all.

    Raises:
        ValueError: memory is too little; the message names the least that suffices.
    """
    m, d = x.shape
    number, code = (8 if x.dtype == torch.float64 else 4), 32 + -(-d // 32) * 32
    # Codes, places twice, ids, scales; while cells are made, codes and places again, and later the lists, with places
    # of all entries, and with holders of some at a join.
    held = m * (code + 3 * 8 + 2 * number) + beside[0]
    if own is None:
        held += m * max(code + 28, (8 + 4 + 2) * slots + 13)
    else:  # codes and places of entries come from all, and what the lists say of others' rows is sorted and sent
        held += max(m * (code + 28) + own * code, m * (3 * 4 * slots + 13) + own * slots * (2 * 8 + 6 * 16))
    budget = as_bytes(memory)
    block = min(_GRAPH_BLOCK, (budget - held) // 2)
    needed = max(held + 2 * block, beside[1])
    if block < min(_LEAST_BLOCK, budget // 8) or needed > budget:
        least = -(-max(min(held * 4 // 3 + 8, held + 2 * _LEAST_BLOCK), beside[1]) // 10**6)
        where, less = ("", "; exact ones, without recall, take less") if own is None else (" in each process", "")
        what = f"approximate neighbours of {m} rows of {d} features"
        raise ValueError(f"memory must be at least {least}MB{where} for {what}, got {memory}{less}")
    return GraphPlan(budget, block, needed, (m if own is None else own) * k * (number + 8))


def trim() -> None:
    """Give freed memory back to the system, where the C library is one that would keep it (glibc)."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(ctypes.c_size_t(0))
