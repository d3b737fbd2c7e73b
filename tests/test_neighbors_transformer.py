"""`NeighborsTransformer` against the transformer of scikit-learn, in its pipelines, and by its checks."""

import numpy as np
import pytest
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.datasets import load_digits
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import KNeighborsClassifier, KNeighborsTransformer
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from dm2_fast.adapters.sklearn import NeighborsTransformer

EUCLIDEAN = {"metric": "l2", "unit_rows": False, "per_dimension": False}
X, Y = load_digits(return_X_y=True)


@pytest.mark.parametrize("mode", ["distance", "connectivity"])
def test_it_passes_the_checks_of_an_estimator(mode: str) -> None:
    done = check_estimator(NeighborsTransformer(mode=mode), on_skip=None)
    assert len(done) > 40
    # The array API is scikit-learn's own experiment, and off unless SCIPY_ARRAY_API is set; older ones check it.
    assert {check["check_name"] for check in done if check["status"] != "passed"} <= {"check_array_api_input"}


@pytest.mark.parametrize("mode", ["distance", "connectivity"])
@pytest.mark.parametrize(("metric", "theirs"), [("l2", "euclidean"), ("l1", "manhattan")])
def test_raw_rows_give_the_graph_of_scikit_learn(mode: str, metric: str, theirs: str) -> None:
    rng = np.random.default_rng(0)
    x, new = rng.standard_normal((300, 7)), rng.standard_normal((40, 7))
    ours = NeighborsTransformer(mode=mode, n_neighbors=6, **EUCLIDEAN | {"metric": metric}).fit(x)
    want = KNeighborsTransformer(mode=mode, n_neighbors=6, metric=theirs, algorithm="brute").fit(x)
    for rows in (x, new):
        got, expected = ours.transform(rows), want.transform(rows)
        assert issparse(got)
        assert got.format == "csr"
        assert got.shape == expected.shape
        np.testing.assert_array_equal(got.indptr, expected.indptr)
        np.testing.assert_array_equal(got.indices, expected.indices)
        np.testing.assert_allclose(got.data, expected.data, rtol=1e-12, atol=1e-6)  # theirs are not exactly 0


def test_the_metric_of_the_paper_by_its_definition() -> None:
    x = np.random.default_rng(1).standard_normal((60, 5))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    dense = (pairwise_distances(unit, metric="l1") + pairwise_distances(unit)) / 2 / 5
    graph = NeighborsTransformer(n_neighbors=4).fit_transform(x)
    np.testing.assert_array_equal(graph.indices.reshape(60, 5), dense.argsort(1, kind="stable")[:, :5])
    np.testing.assert_allclose(graph.data.reshape(60, 5), np.sort(dense, 1)[:, :5], rtol=1e-12, atol=1e-7)
    assert (graph.indices.reshape(60, 5)[:, 0] == np.arange(60)).all()
    assert (graph.data.reshape(60, 5)[:, 0] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_kept(dtype: type) -> None:
    x = X.astype(dtype)
    assert NeighborsTransformer().fit_transform(x).dtype == dtype
    assert NeighborsTransformer(mode="connectivity").fit_transform(x).dtype == dtype


def test_the_names_of_the_columns() -> None:
    transformer = NeighborsTransformer().fit(X[:9])
    assert list(transformer.get_feature_names_out()) == [f"neighborstransformer{i}" for i in range(9)]
    assert transformer.n_samples_fit_ == 9
    assert clone(transformer).get_params() == transformer.get_params()


def test_in_pipelines() -> None:
    dbscan = {"eps": 22.0, "metric": "precomputed"}
    ours = make_pipeline(NeighborsTransformer(n_neighbors=30, **EUCLIDEAN), DBSCAN(**dbscan)).fit_predict(X)
    theirs = make_pipeline(KNeighborsTransformer(n_neighbors=30), DBSCAN(**dbscan)).fit_predict(X)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.max() >= 5

    train, test = slice(0, 1200), slice(1200, None)
    graph = NeighborsTransformer(n_neighbors=8, **EUCLIDEAN)
    classifier = make_pipeline(graph, KNeighborsClassifier(5, metric="precomputed")).fit(X[train], Y[train])
    plain = KNeighborsClassifier(5).fit(X[train], Y[train])
    np.testing.assert_array_equal(classifier.predict(X[test]), plain.predict(X[test]))

    rng = np.random.default_rng(0)
    centres = np.array([[4.0, 0, 0], [0, 4, 0]])
    blobs = (centres[:, None] + 0.3 * rng.standard_normal((2, 50, 3))).reshape(-1, 3)
    graph = NeighborsTransformer(n_neighbors=99)
    found = make_pipeline(graph, HDBSCAN(metric="precomputed", copy=True)).fit_predict(blobs)
    assert set(found) == {0, 1}
    assert len(set(found[:50])) == len(set(found[50:])) == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mode": "graph"}, "mode must be"),
        ({"n_neighbors": 0}, "n_neighbors must be"),
        ({"metric": "cosine"}, "metric must be"),
        ({"n_neighbors": 9}, "beside a sample itself must be at most the 9 training samples, got 9"),
        ({"n_neighbors": 10, "mode": "connectivity"}, "n_neighbors must be at most the 9 training samples, got 10"),
    ],
)
def test_wrong_parameters(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeighborsTransformer(**parameters).fit_transform(X[:9])
