"""Random numbers keyed by (seed, round, row, purpose), never by call order.

Batch size, thread count, blocking and sharding therefore cannot change a draw: a row gets the same number whoever asks.
"""

import numpy as np
from numpy.typing import NDArray

# The position is part of the key: only append.
PURPOSES = ("order", "neighbour", "lam", "pool", "test", "initial", "held-out", "seeding", "clusters", "graph")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that scatters nearby keys."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, round: int, rows: NDArray[np.int64], purpose: str) -> NDArray[np.float64]:
    """One number in (0, 1) per row, a function of (seed, round, row, purpose) alone."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    key = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in (seed, round, PURPOSES.index(purpose)):
            key = _mix(key + golden + np.array([part & 0xFFFFFFFFFFFFFFFF], np.uint64))
        bits = _mix(_mix(key + golden * rows.astype(np.uint64)) + golden)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
