"""The oracle: NumPy, by direct differences and stable sorts, in float64 (long double for what is float64 itself)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

METRICS = ("literal", "rms", "l1", "l2")
KINDS = ("least-confidence", "entropy", "margin")
Array = NDArray[Any]


def device_of(backend: str) -> str:
    """Triton runs on the GPU where there is one, and interpreted on the CPU where there is none."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def wide(x: Any) -> Array:
    """The exact values of x with spare digits: float64, or long double for float64."""
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = (x if x.dtype == torch.float64 else x.float()).numpy()
    x = np.asarray(x)
    return x.astype(np.longdouble if x.dtype == np.float64 else np.float64)


def weights(metric: str, d: int) -> tuple[float, float]:
    """(w1, w2) of w1 * L1 + w2 * L2."""
    return {
        "literal": (1 / (2 * d), 1 / (2 * d)),
        "rms": (1 / (2 * d), 1 / (2 * np.sqrt(d))),
        "l1": (1 / d, 0.0),
        "l2": (0.0, 1 / d),
    }[metric]


def normalise(x: Any) -> Array:
    """Rows of unit norm; a zero row stays zero."""
    x = wide(x)
    largest = np.abs(x).max(axis=1, keepdims=True)
    x = x / np.where(largest > 0, largest, 1)
    norm = np.sqrt((x * x).sum(axis=1, keepdims=True))
    return x / np.where(norm > 0, norm, 1)


def pairwise(x: Any, y: Any = None, metric: str = "literal") -> Array:
    """The distance of every row of x to every row of y."""
    a = normalise(x)
    b = a if y is None else normalise(y)
    w1, w2 = weights(metric, a.shape[1])
    out = np.empty((len(a), len(b)), a.dtype)
    for i, row in enumerate(a):
        difference = row - b
        out[i] = w1 * np.abs(difference).sum(axis=1) + w2 * np.sqrt((difference * difference).sum(axis=1))
    return out


def knn(x: Any, k: int, metric: str = "literal", queries: Any = None) -> tuple[Array, Array]:
    """(distances, indices) of the k nearest rows, ties to the lower index, the row itself left out by its index."""
    distances = pairwise(x, None, metric) if queries is None else pairwise(queries, x, metric)
    if queries is None:
        np.fill_diagonal(distances, np.inf)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, axis=1), indices


def tolerance(x: Any, y: Any = None, metric: str = "literal") -> float:
    """What rounding may do to a distance: twice the worst error of plain torch at the same dtype, plus 4 eps.

    eps is relative to the largest distance that rows with these L1 norms can have, which is what the rounding of their
    elements is relative to: near neighbours are not known better than that. Halves are computed in float32.
    """
    a = normalise(x)
    b = a if y is None else normalise(y)
    w1, w2 = weights(metric, a.shape[1])
    dtype = torch.float64 if a.dtype == np.longdouble else torch.float32
    s, t = (torch.from_numpy(v.astype(np.float64)).to(dtype) for v in (a, b))
    worst = 0.0
    for i in range(len(s)):
        difference = s[i] - t
        plain = w1 * difference.abs().sum(1) + w2 * difference.square().sum(1).sqrt()
        exact = a[i] - b
        exact = w1 * np.abs(exact).sum(axis=1) + w2 * np.sqrt((exact * exact).sum(axis=1))
        worst = max(worst, float(np.abs(plain.double().numpy() - exact).max()))
    span = w1 * (np.abs(a).sum(axis=1).max() + np.abs(b).sum(axis=1).max()) + 2 * w2
    return 2 * worst + 4 * torch.finfo(dtype).eps * float(span)


def assert_knn_close(
    distances: torch.Tensor,
    indices: torch.Tensor,
    x: Any,
    k: int,
    metric: str = "literal",
    queries: Any = None,
) -> None:
    """Check k neighbours per row without grouping ties: any choice among equals passes, any farther row fails."""
    asked = x if queries is None else queries
    shape = (len(asked), k)
    name = str(asked.dtype)
    want = torch.float64 if name.endswith("float64") else torch.float32
    assert distances.shape == shape, f"distances have shape {tuple(distances.shape)}, not {shape}"
    assert indices.shape == shape, f"indices have shape {tuple(indices.shape)}, not {shape}"
    assert distances.dtype == want, f"distances are {distances.dtype}, not {want}"
    assert indices.dtype == torch.int64, f"indices are {indices.dtype}"
    got, found = distances.cpu().numpy(), indices.cpu().numpy()
    assert ((found >= 0) & (found < len(x))).all(), "an index is not a row"
    if queries is None:
        assert (found != np.arange(len(x))[:, None]).all(), "a row is its own neighbour"
    assert (np.diff(np.sort(found, axis=1), axis=1) > 0).all(), "a neighbour is repeated"
    assert np.isfinite(got).all(), "a distance is not finite"
    assert (np.diff(got, axis=1) >= 0).all(), "distances do not ascend"

    true = pairwise(asked, x, metric)
    of_found = np.take_along_axis(true, found, axis=1)
    best = knn(x, k, metric, queries)[0]
    tol = tolerance(asked, x, metric)
    error = np.abs(got - of_found).max()
    assert error <= tol, f"a distance is wrong by {error:.3g}, more than {tol:.3g}"
    # The r-th smallest of numbers that are each off by tol is off by tol, and so is the distance of what was found.
    error = np.abs(of_found - best).max()
    assert error <= 2 * tol, f"a neighbour is too far or too near by {error:.3g}, more than {2 * tol:.3g}"


def lattice(rng: np.random.Generator, m: int, d: int, most: int = 64) -> Array:
    """Rows with 4**p entries +-1 and zeros elsewhere: norms, differences and sums are exact in float32."""
    powers = [4**p for p in range(d.bit_length()) if 4**p <= min(d, most)]
    x = np.zeros((m, d), np.float32)
    for row in x:
        n = rng.choice(powers)
        row[rng.choice(d, n, replace=False)] = rng.choice([-1, 1], n)
    return x


def clusters(m: int, d: int = 48, seed: int = 0) -> torch.Tensor:
    """Rows that lie near a few curved sheets, as learned features do."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((m, 5)) + 3 * rng.standard_normal((8, 5))[rng.integers(0, 8, m)]
    x = np.tanh(hidden @ rng.standard_normal((5, d))) + 0.05 * rng.standard_normal((m, d))
    return torch.from_numpy(x.astype(np.float32))


def mix(
    inputs: Any, indices: Any, lam: Any, weights: Any = None, rows: Any = None, normalize: tuple[Any, Any] | None = None
) -> Array:
    """Eq. 7, row by row."""
    is_bytes = inputs.dtype in (torch.uint8, np.uint8)
    pool, indices = wide(inputs), np.asarray(indices)
    rows = np.arange(len(pool)) if rows is None else np.asarray(rows)
    lams = np.broadcast_to(np.asarray(lam, dtype=np.float64), (len(rows),))
    out = np.empty((len(rows), *pool.shape[1:]), pool.dtype)
    for r, row in enumerate(rows):
        n = len(indices[r])
        share = np.full(n, 1 / max(n, 1)) if weights is None else np.asarray(weights, dtype=np.float64)[r]
        if n == 0:
            out[r] = pool[row]
            continue
        out[r] = lams[r] * pool[row] + (1 - lams[r]) * sum(share[t] * pool[indices[r, t]] for t in range(n))
    if is_bytes:
        out = out / 255
    if normalize is not None:
        mean, std = (np.asarray(v, dtype=np.float64).reshape(-1, *[1] * (out.ndim - 2)) for v in normalize)
        out = (out - mean) / std
    return out


def uncertainty(logits: Any, kind: str) -> Array:
    """1 - max softmax, the entropy in nats, or minus the margin, with the largest term left out of every sum."""
    z = np.sort(wide(logits).astype(np.longdouble), axis=1)[:, ::-1]
    z = z - z[:, :1]
    e = np.exp(z)
    total = e.sum(axis=1)
    others = e[:, 1:].sum(axis=1)
    if kind == "least-confidence":
        return others / total
    if kind == "margin":
        return np.expm1(z[:, 1]) / total
    return np.log1p(others) - (e * np.where(e > 0, z, 0)).sum(axis=1) / total


def k_means(
    x: np.ndarray, counts: np.ndarray, clusters: int, seed: int, sample: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The cluster of each row and the centres, by Lloyd from the centres of k-means++, in float64."""
    x, counts = x.astype(np.float64), counts.astype(np.float64)
    among = np.arange(len(x)) if sample is None else sample
    rng, rows = np.random.default_rng(seed), list[int]()
    for _ in range(clusters):
        chances = [
            counts[row] * min((((x[row] - x[other]) ** 2).sum() for other in rows), default=1.0) for row in among
        ]
        drawn, reached = rng.random() * sum(chances), 0.0
        for row, chance in zip(among, chances, strict=True):
            reached += chance
            if reached > drawn:
                rows.append(int(row))
                break
    centres = x[rows]
    for _ in range(21):
        labels = ((x[:, None] - centres) ** 2).sum(2).argmin(1)
        centres = np.stack([np.average(x[labels == c], axis=0, weights=counts[labels == c]) for c in range(clusters)])
    return labels, centres
