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
    return [*found, out, far, scores, mixed, *prepared(extension, x, one, ids, k)]


def prepared(extension: ModuleType, x: np.ndarray, one: np.ndarray, ids: np.ndarray, k: int) -> list[np.ndarray]:
    """What the classes find: an index that several threads search, a graph, two shards that meet."""
    m, number = len(x), "Float" if x.dtype == np.float32 else "Double"

    def empty(rows: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((rows, k), np.inf, x.dtype), np.full((rows, k), np.iinfo(np.int64).max)

    index = getattr(extension, f"Index{number}")(x, one, ids, 0.5, 0.5, num_threads=4)

    def search(part: int) -> tuple[np.ndarray, np.ndarray]:
        rows, best = slice(part * m // 4, (part + 1) * m // 4), empty((part + 1) * m // 4 - part * m // 4)
        index.search(x[rows], one[rows], ids[rows], ids, *best, num_threads=2)
        return best

    with ThreadPoolExecutor(4) as executor:
        parts = list(executor.map(search, range(4)))
    exact = [np.concatenate(both) for both in zip(*parts, strict=True)]

    left = np.where(ids % 7 == 0, -1, np.cumsum(ids % 7 != 0) - 1)
    graph = getattr(extension, f"Graph{number}")(index, ids, k + 4)
    graph.probe(0, 2, num_threads=4)
    graph.join(num_threads=4)
    smaller = getattr(extension, f"Graph{number}")(graph, left)
    smaller.join(num_threads=4)
    near, fewer = empty(m), empty(m)
    graph.nearest(ids, ids, *near, num_threads=4)
    places = np.flatnonzero(left[index.places()] >= 0)
    smaller.nearest(places, left[index.places()[places]], *fewer, num_threads=4)

    half = m // 2
    kth = np.sort(exact[0][:32], axis=1)[:, -1].copy()
    frame = extension.frame(x[:half].astype(np.float32), kth, 0.5, 0.5, num_threads=4)
    shard = getattr(extension, f"Shard{number}")
    first, second = (
        shard(x[part], one[part], ids[part], frame, num_threads=4) for part in (slice(half), slice(half, m))
    )
    again = shard(x[:half], one[:half], ids[:half], frame, first.codes(), num_threads=4)
    best, other = empty(half), empty(m - half)
    for one_, of_one, two, of_two in (
        (again, best, again, best), (second, other, second, other), (again, best, second, other)
    ):  # fmt: skip
        shard.meet(one_, *of_one, two, *of_two, 0.5, 0.5, num_threads=4)
    met = [np.concatenate(both) for both in zip(best, other, strict=True)]
    assert all(np.array_equal(*both) for both in zip(np.sort(met[0]), np.sort(exact[0]), strict=True))
    return [*exact, *near, *fewer, *met]


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
