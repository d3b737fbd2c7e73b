"""Random numbers keyed by (seed, round, row, purpose), never by call order.

Batch size, thread count, blocking and sharding therefore cannot change a draw: a row gets the same number whoever asks.
"""

import numpy as np
from numpy.typing import NDArray

# The position is part of the key: only append.
PURPOSES = (
    "order", "neighbour", "lam", "pool", "test", "initial", "held-out", "candidates", "dropout", "noise", "clusters",
    "seeding", "graph", "ties", "alpha", "pools", "flips", "corruption", "attack", "companion", "configurations",
    "influence", "robin", "part",
)  # fmt: skip

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that scatters nearby keys."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(*parts: int) -> NDArray[np.uint64]:
    """(1,) bits that depend on all parts and their order."""
    key = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            key = _mix(key + _GOLDEN + np.array([part & 0xFFFFFFFFFFFFFFFF], np.uint64))
    return key


def uniform(seed: int, round: int, rows: NDArray[np.int64], purpose: str) -> NDArray[np.float64]:
    """One number in (0, 1) per row, a function of (seed, round, row, purpose) alone."""
    key = _key(seed, round, PURPOSES.index(purpose))
    with np.errstate(over="ignore"):
        bits = _mix(_mix(key + _GOLDEN * rows.astype(np.uint64)) + _GOLDEN)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def generator(seed: int, round: int, purpose: str, *position: int) -> np.random.Generator:
    """A stream that is a function of (seed, round, purpose, position) alone, for draws that belong to no row.

    The generator is counter-based: torch's own for the CPU looks at 32 bits of its seed only.
    """
    return np.random.Generator(np.random.Philox(key=int(_key(seed, round, PURPOSES.index(purpose), *position)[0])))
