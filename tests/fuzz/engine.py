"""The neighbour search against the plain loop, bit for bit, and small cases against the oracle in float64."""

import numpy as np
import torch
from oracle import assert_knn_close

import dm2_fast
from dm2_fast import _C
from dm2_fast.operations.knn import weights

METRICS = ("literal", "rms", "l1", "l2")


def rows(rng: np.random.Generator, m: int, d: int) -> np.ndarray:
    """Rows of one of many kinds, some of which no filter helps and some of which lie on the bound of the filter."""
    gauss = rng.standard_normal((m, d))
    few = rng.standard_normal((rng.integers(1, 9), d))
    kind = rng.integers(14)
    if kind == 0:
        return gauss
    if kind == 1:
        return np.maximum(rng.standard_normal((m, 6)) @ rng.standard_normal((6, d)) + 0.3 * gauss, 0)
    if kind == 2:
        return few[rng.integers(0, len(few), m)]
    if kind == 3:
        return few[rng.integers(0, len(few), m)] + 10.0 ** -rng.integers(1, 9) * gauss
    if kind == 4:
        return gauss * (rng.random((m, 1)) < 0.6)
    if kind == 5:
        gauss[rng.integers(m), rng.integers(d)] = 10.0 ** rng.integers(3, 12)
        return gauss
    if kind == 6:
        return gauss * 10.0 ** rng.integers(-30, 31, (m, 1))
    if kind == 7:
        return np.eye(d)[rng.integers(0, d, m)]
    if kind == 8:
        return (rng.random((m, d)) < rng.random()).astype(float)
    if kind == 9:
        return rng.integers(-2, 3, (m, d)).astype(float)
    if kind == 10:
        edges = rng.integers(0, 255, m) + rng.choice([0, 0.5, 0.5 + 1e-4, 0.5 - 1e-4], m)
        return edges[:, None] * 2.0 ** -rng.integers(4, 12) * rng.choice([-1.0, 1.0], d)
    if kind == 11:
        return np.cumsum(gauss, 0)
    if kind == 12:
        return np.full((m, d), rng.standard_normal())
    return gauss * np.geomspace(1, 10.0 ** rng.integers(-20, 1), d)


def scaled(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """A factor for each row: 1 / norm, or 1, or a power of two and 1 / norm."""
    wide = x.astype(np.float64)
    norm = np.sqrt(np.square(wide).sum(1))
    unit = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
    limit = float(np.finfo(x.dtype).max)
    unit = np.where(unit < limit, unit, 1).astype(x.dtype)
    how = rng.integers(4)
    if how == 0:
        return np.ones(len(x), x.dtype)
    if how == 1:
        return np.stack([np.full(len(x), 2.0 ** rng.integers(-3, 4), x.dtype), unit], 1)
    return unit


def case(seed: int) -> None:
    rng = np.random.default_rng([seed, 1])
    m = int(rng.choice([rng.integers(2, 60), rng.integers(60, 300), rng.integers(300, 900)]))
    d = int(rng.choice([rng.integers(1, 40), rng.integers(40, 200), rng.choice([255, 256, 257, 511, 600])]))
    dtype = rng.choice([np.float32, np.float32, np.float64])
    metric = METRICS[rng.integers(4)]
    with np.errstate(over="ignore"):
        x = rows(rng, m, d).astype(dtype)
    ids, row_scale = np.arange(m), scaled(rng, x)
    if rng.random() < 0.6:
        k, queries = int(min(rng.choice([1, 2, 5, 10, 40, m - 1]), m - 1)), (x, row_scale, ids)
    else:
        k = int(min(rng.choice([1, 3, 10, m]), m))
        asked = np.concatenate([x[rng.integers(0, m, 20)], rows(rng, 20, d).astype(dtype)])
        queries = (asked, scaled(rng, asked), np.full(40, -1))

    def search(held: np.ndarray, parts: int, **options: object) -> tuple[np.ndarray, np.ndarray]:
        distances = np.full((len(queries[0]), k), np.inf, dtype)
        indices = np.full(distances.shape, np.iinfo(np.int64).max)
        for part in np.array_split(ids, parts):
            whole = parts == 1 and queries[0] is x
            some = (x, row_scale, ids) if whole else (held[part], row_scale[part], part)
            _C.knn(*queries, *some, distances, indices, *weights(metric, d), **options)
        return distances, indices

    want = search(x, 1, levels="plain", num_threads=1)
    levels = None
    if rng.random() < 0.8:
        levels = [int(b) for b in rng.choice([64, 128, 256, 512, -(-d // 32) * 32], rng.integers(0, 4), replace=False)]
    held = np.asfortranarray(x) if rng.random() < 0.2 else x
    options = {
        "levels": levels,
        "isa": str(rng.choice(["auto", "generic"])),
        "num_threads": int(rng.integers(1, 6)),
        "parts": int(rng.choice([1, 1, min(3, m)])),
    }
    got = search(held, **options)
    what = f"{m} x {d} {np.dtype(dtype)}, {metric}, k={k}, {options}"
    assert np.array_equal(got[1], want[1]), f"indices differ: {what}"
    assert np.array_equal(got[0], want[0]), f"distances differ: {what}"
    if m <= 60 and np.isfinite(x).all():
        floats = torch.from_numpy(x)
        assert_knn_close(*dm2_fast.knn(floats, min(k, m - 1), metric), floats, min(k, m - 1), metric)
