import numpy as np
import pytest
import torch

from dm2_fast import knn, pairwise
from dm2_fast.operations.knn import weights

RAW = [0.5, 1.0, 3.0]


def distances(x: np.ndarray, y: np.ndarray, metric: str) -> np.ndarray:
    """w1 L1 + w2 L2 of the rows as they are, times d, in float64 by direct differences."""
    d = x.shape[1]
    difference = x[:, None].astype(np.float64) - y[None].astype(np.float64)
    l1, l2 = np.abs(difference).sum(2), np.sqrt((difference**2).sum(2))
    return {"literal": (l1 + l2) / 2, "rms": (l1 + np.sqrt(d) * l2) / 2, "l1": l1, "l2": l2}[metric]


def rows(m: int, d: int, dtype: type = np.float32) -> np.ndarray:
    random = np.random.default_rng(m)
    return (random.standard_normal((m, d)) * random.uniform(0.01, 1000, (m, 1))).astype(dtype)


@pytest.mark.parametrize("metric", ["literal", "rms", "l1", "l2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_raw_rows_and_true_distances(metric: str, dtype: type, backend: str) -> None:
    if backend == "triton" and dtype == np.float64:
        pytest.skip("triton has no float64")
    x = rows(40, 9, dtype)
    raw = {"unit_rows": False, "per_dimension": False, "backend": backend}
    expected = distances(x, x, metric)
    np.testing.assert_allclose(pairwise(x, metric=metric, **raw).numpy(), expected, rtol=2e-6)  # type: ignore[arg-type]
    found, indices = knn(x, 5, metric, **raw)  # type: ignore[arg-type]
    np.fill_diagonal(expected, np.inf)
    np.testing.assert_allclose(found.numpy(), np.sort(expected, 1)[:, :5], rtol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(expected, indices.numpy(), 1), found.numpy(), rtol=2e-6)
    asked = knn(x[3:], 5, metric, queries=x[:3], **raw)[0]  # type: ignore[arg-type]
    np.testing.assert_allclose(asked.numpy(), np.sort(distances(x[:3], x[3:], metric), 1)[:, :5], rtol=2e-6)


@pytest.mark.parametrize("unit", [True, False])
def test_without_the_division_distances_are_d_times_as_large(unit: bool) -> None:
    x = rows(30, 7)
    for metric in ("literal", "rms", "l1", "l2"):
        one, other = (pairwise(x, metric=metric, unit_rows=unit, per_dimension=flag) for flag in (True, False))
        torch.testing.assert_close(other, one * 7, rtol=1e-5, atol=1e-5)
        assert weights(metric, 7, False) == pytest.approx([7 * w for w in weights(metric, 7)])


@pytest.mark.parametrize("scale", ["one", "a column", "a row each"])
def test_the_search_of_raw_rows_is_as_exact_as_the_plain_loop(scale: str) -> None:
    random = np.random.default_rng(2)
    x = (random.standard_normal((1500, 8)) @ random.standard_normal((8, 64))).astype(np.float32)
    if scale == "a column":
        x[:, 5] *= 1e6
    elif scale == "a row each":
        x *= np.exp(random.normal(0, 6, (1500, 1))).astype(np.float32)
    fast, plain = (knn(x, 10, unit_rows=False, backend=backend) for backend in ("cpp", "torch"))
    torch.testing.assert_close(fast[0], plain[0], rtol=2e-6, atol=0)
    every = pairwise(x, unit_rows=False)  # the same loop as the search, without its filters
    every.fill_diagonal_(torch.inf)
    sorted_, order = every.sort(dim=1, stable=True)
    assert torch.equal(fast[0], sorted_[:, :10])
    assert torch.equal(fast[1], order[:, :10])


def test_raw_rows_that_overflow_are_refused() -> None:
    x = rows(5, 3)
    x[1, 2] = 1e30
    with pytest.raises(ValueError, match="x must be within 1.15e.18 of 0 for raw rows, got 1e.30: divide it"):
        knn(x, 2, unit_rows=False)
    knn(x.astype(np.float64), 2, unit_rows=False)
    x[3, 0] = np.nan
    with pytest.raises(ValueError, match="x must be finite, got NaN or infinity in row 3"):
        knn(x, 2, unit_rows=False)
    with pytest.raises(ValueError, match="recall= is for unit rows and distances per dimension"):
        knn(rows(5, 3), 2, recall=0.9, unit_rows=False)


class Table:
    """What pandas and polars have in common."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def to_numpy(self) -> np.ndarray:
        return self.values


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
def test_integers_lists_and_tables_are_arrays(dtype: type) -> None:
    drawn = np.random.default_rng(0).integers(0, 2 if dtype is np.bool_ else 100, (20, 4))
    drawn[:, 0] += 1
    integers: np.ndarray = drawn.astype(dtype)
    expected = knn(integers.astype(np.float32), 3)
    for x in (integers, integers.tolist(), Table(integers), [*map(torch.from_numpy, integers)]):
        got = knn(x, 3)
        assert torch.equal(got[1], expected[1])
        assert torch.equal(got[0], expected[0])
    queries = integers[:2].astype(np.float64) + 0.25
    assert torch.equal(knn(integers, 3, queries=queries)[1], knn(integers.astype(np.float64), 3, queries=queries)[1])


def test_integers_lose_nothing_or_are_refused() -> None:
    large = torch.tensor([[2**24 + 1, 0], [2**24, 0], [2**24 + 3, 0]])
    assert knn(large, 1, "l1", unit_rows=False, per_dimension=False)[0].tolist() == [[1.0], [1.0], [2.0]]
    with pytest.raises(ValueError, match="numbers that float64 holds exactly, got the integer 9007199254740993"):
        knn(torch.tensor([[2**53 + 1, 0], [1, 0]]), 1)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1.0, 2.0], ValueError, r"x must be 2-D \(rows, features\), got shape \(2,\): a single row is \[row\]"),
        ([[1.0], [1.0, 2.0]], ValueError, "x must have as many numbers in each row"),
        ([["a", "b"]], TypeError, "x must hold numbers only, got <U1: leave out columns of text, or encode them"),
        (Table(np.array([["a", 1]], object)), TypeError, "x must hold numbers only, got object"),
        ("abc", TypeError, "x must be a tensor or an array, got 'abc'"),
    ],
)
def test_what_is_no_matrix_of_numbers_is_named(x: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        knn(x, 1)
