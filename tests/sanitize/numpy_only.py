"""Drives `dm2_fast._C` from NumPy alone, without torch: what `make sanitize` runs under ThreadSanitizer.

    python tests/sanitize/numpy_only.py EXTENSION

Every operation runs with several threads at once, from several threads, on arrays that they share to read.
"""

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("dm2_fast._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calls(extension: ModuleType, seed: int, dtype: Any) -> list[np.ndarray]:
    """The results of every operation, for shared rows."""
    rng = np.random.default_rng(seed)
    m, d, k = 700, 60, 9
    centres = rng.standard_normal((12, d))
    x = (centres[rng.integers(0, 12, m)] + 0.1 * rng.standard_normal((m, d))).astype(dtype)
    one, ids = np.ones(m, dtype), np.arange(m)
    found: list[np.ndarray] = []
    for levels in ("plain", [64], None):
        for rows in ((x, one, ids), (x[:50], one[:50], np.full(50, -1))):
            distances, indices = np.full((len(rows[0]), k), np.inf, dtype), np.full((len(rows[0]), k), -1)
            extension.knn(*rows, x, one, ids, distances, indices, 0.5, 0.5, num_threads=4, levels=levels)
            found += [distances, indices]
    out = np.empty((m, m), dtype)
    extension.pairwise(x, one, x, one, out, 0.5, 0.5, num_threads=4)
    far = np.full(m, np.inf, dtype)
    extension.lower_to_nearest(x, x[:40], far, num_threads=4)
    scores = np.empty(m, dtype)
    extension.uncertainty(x, "entropy", scores, num_threads=4)
    mixed, empty = np.empty((m, d), dtype), np.empty(0, dtype)
    halves = np.full((m, 2), 0.5, dtype)
    extension.mix(x, rng.integers(0, m, (m, 2)), halves, empty, empty, 1, mixed, num_threads=4)
    return [*found, out, far, scores, mixed]


def main() -> None:
    extension = load(sys.argv[1])
    for dtype in (np.float32, np.float64):
        want = calls(extension, 0, dtype)
        with ThreadPoolExecutor(4) as executor:
            for found in executor.map(calls, [extension] * 8, [0] * 8, [dtype] * 8):
                assert all(np.array_equal(*pair) for pair in zip(found, want, strict=True))
    assert "torch" not in sys.modules
    print("every operation gave the same from several threads")


if __name__ == "__main__":
    main()
