"""The check that the kNN tests rely on must fail on every kind of wrong answer."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracle import METRICS, assert_knn_close, knn, lattice, mix, normalise, pairwise, uncertainty
from torch import Tensor

M, D, K = 40, 24, 5


def features() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((M, D)).astype(np.float32))


def answer(x: Tensor, k: int = K, metric: str = "literal") -> tuple[Tensor, Tensor]:
    distances, indices = knn(x, k, metric)
    return torch.from_numpy(distances.astype(np.float32)), torch.from_numpy(indices)


@pytest.mark.parametrize("metric", METRICS)
def test_the_right_answer_passes(metric: str) -> None:
    x = features()
    assert_knn_close(*answer(x, metric=metric), x, K, metric)


def test_any_choice_among_equal_rows_passes() -> None:
    x = features()
    x[3] = x[2]
    distances, indices = answer(x, M - 1)
    for row in range(4, M):
        a, b = (indices[row] == 2).nonzero().item(), (indices[row] == 3).nonzero().item()
        indices[row, a], indices[row, b] = 3, 2
    assert_knn_close(distances, indices, x, M - 1)


def swap_neighbours(distances: Tensor, indices: Tensor) -> None:
    indices[7, 0], indices[7, 1] = indices[7, 1].clone(), indices[7, 0].clone()


def swap_both(distances: Tensor, indices: Tensor) -> None:
    swap_neighbours(distances, indices)
    distances[7, 0], distances[7, 1] = distances[7, 1].clone(), distances[7, 0].clone()


def repeat(distances: Tensor, indices: Tensor) -> None:
    indices[7, 1], distances[7, 1] = indices[7, 0], distances[7, 0]


def include_self(distances: Tensor, indices: Tensor) -> None:
    indices[7, 0], distances[7, 0] = 7, 0.0


def out_of_range(distances: Tensor, indices: Tensor) -> None:
    indices[7, 4] = M


def negative(distances: Tensor, indices: Tensor) -> None:
    indices[7, 4] = -1


def wrong_distance(distances: Tensor, indices: Tensor) -> None:
    distances[7, 2] *= 1 + 1e-4


def not_a_number(distances: Tensor, indices: Tensor) -> None:
    distances[7, 4] = torch.nan


def farther_neighbour(distances: Tensor, indices: Tensor) -> None:
    more_distances, more_indices = answer(features(), K + 1)
    distances[7, 4], indices[7, 4] = more_distances[7, 5], more_indices[7, 5]


def missed_nearest(distances: Tensor, indices: Tensor) -> None:
    more_distances, more_indices = answer(features(), K + 1)
    distances[7], indices[7] = more_distances[7, 1:], more_indices[7, 1:]


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (swap_neighbours, "a distance is wrong"),
        (swap_both, "do not ascend"),
        (repeat, "repeated"),
        (include_self, "its own neighbour"),
        (out_of_range, "not a row"),
        (negative, "not a row"),
        (wrong_distance, "a distance is wrong"),
        (not_a_number, "not finite"),
        (farther_neighbour, "a neighbour is too far"),
        (missed_nearest, "a neighbour is too far"),
    ],
)
def test_a_planted_error_is_found(plant: Callable[[Tensor, Tensor], None], message: str) -> None:
    x = features()
    distances, indices = answer(x)
    plant(distances, indices)
    with pytest.raises(AssertionError, match=message):
        assert_knn_close(distances, indices, x, K)


def test_a_wrong_shape_or_dtype_is_found() -> None:
    x = features()
    distances, indices = answer(x)
    for got, message in (
        ((distances[:, :4], indices), "distances have shape"),
        ((distances, indices[1:]), "indices have shape"),
        ((distances.double(), indices), "distances are"),
        ((distances, indices.int()), "indices are"),
    ):
        with pytest.raises(AssertionError, match=message):
            assert_knn_close(*got, x, K)


@pytest.mark.parametrize("metric", METRICS)
def test_the_answer_for_another_metric_is_found(metric: str) -> None:
    x = features()
    for other in METRICS:
        if other != metric:
            with pytest.raises(AssertionError, match="wrong"):
                assert_knn_close(*answer(x, metric=other), x, K, metric)


def test_the_oracle_agrees_with_numbers_worked_out_by_hand() -> None:
    x = np.array([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalise(x), [[0.6, 0.8], [0.8, 0.6], [0, 0]], rtol=1e-15)
    l1, l2 = 0.4, np.sqrt(0.08)
    for metric, want in (
        ("literal", (l2 / 2 + l1 / 2) / 2),
        ("rms", (l2 / np.sqrt(2) + l1 / 2) / 2),
        ("l1", l1 / 2),
        ("l2", l2 / 2),
    ):
        assert float(pairwise(x, None, metric)[0, 1]) == pytest.approx(want, rel=1e-14)
    pool = np.array([[2.0], [4.0], [8.0]])
    np.testing.assert_allclose(mix(pool, [[1, 2]], 0.25, [[0.75, 0.25]], [0]).astype(float), [[0.25 * 2 + 0.75 * 5]])
    logits = np.log(np.array([[0.5, 0.3, 0.2]]))
    assert float(uncertainty(logits, "least-confidence")[0]) == pytest.approx(0.5)
    assert float(uncertainty(logits, "margin")[0]) == pytest.approx(-0.2)
    assert float(uncertainty(logits, "entropy")[0]) == pytest.approx(1.0296530140645737)


def test_lattice_rows_are_exact_in_float32() -> None:
    x = lattice(np.random.default_rng(0), 30, 64)
    assert set(np.abs(x).sum(axis=1)) == {1, 4, 16, 64}
    exact = normalise(x)
    np.testing.assert_array_equal(exact.astype(np.float32), exact)
    d1 = np.abs(exact[:, None] - exact).sum(axis=2)
    np.testing.assert_array_equal(d1.astype(np.float32), d1)
