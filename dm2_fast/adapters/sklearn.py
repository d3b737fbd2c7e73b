"""The neighbour graph of Eqs. 4-6 as a scikit-learn transformer, in the place of `KNeighborsTransformer`."""

from typing import Any, Literal

import numpy as np

from dm2_fast import extras
from dm2_fast.operations.arguments import one_of, whole
from dm2_fast.operations.knn import Metric, knn

with extras.needed("strategies", "dm2_fast.adapters.sklearn"):
    from scipy.sparse import csr_matrix
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data


class NeighborsTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Transform samples into the sparse graph of their nearest training samples, by the exact search of `dm2_fast.knn`.

    What a training sample is nearest to is itself, at distance 0, as with scikit-learn's `KNeighborsTransformer`; what
    takes that graph with `metric="precomputed"` takes this one.

    Args:
        mode: "distance", a graph of distances, with one neighbour more, since a sample may be its own; or
            "connectivity", a graph of ones.
        n_neighbors: Neighbours per sample.
        metric, unit_rows, per_dimension, num_threads: As in `dm2_fast.knn`. With unit_rows=False and
            per_dimension=False, "l2" is the Euclidean distance and "l1" the Manhattan distance.

    Attributes:
        n_features_in_: Features of a training sample.
        n_samples_fit_: Training samples.
        feature_names_in_: Their names, where the training samples were a table with names.
    """

    def __init__(
        self,
        *,
        mode: Literal["distance", "connectivity"] = "distance",
        n_neighbors: int = 5,
        metric: Metric = "literal",
        unit_rows: bool = True,
        per_dimension: bool = True,
        num_threads: int | None = None,
    ) -> None:
        self.mode = mode
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.unit_rows = unit_rows
        self.per_dimension = per_dimension
        self.num_threads = num_threads

    def fit(self, X: Any, y: Any = None) -> "NeighborsTransformer":
        """Keep the training samples, (m, d) float32 or float64; y is not used.

        Raises:
            ValueError: mode or n_neighbors is out of range, or X is no finite matrix.
        """
        one_of("mode", self.mode, ("distance", "connectivity"))
        whole("n_neighbors", self.n_neighbors, 1)
        self._fit_X = validate_data(self, X, dtype=(np.float64, np.float32), order="C")
        self.n_samples_fit_ = len(self._fit_X)
        return self

    def transform(self, X: Any) -> Any:
        """The graph of samples (n, d): a CSR matrix (n, m) of the training samples near each, nearest first.

        Raises:
            ValueError: there are fewer training samples than neighbours, or X is not like the training samples.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=self._fit_X.dtype, order="C", reset=False)
        k = self.n_neighbors + (self.mode == "distance")
        if k > self.n_samples_fit_:
            itself = " beside a sample itself" if self.mode == "distance" else ""
            raise ValueError(
                f"n_neighbors{itself} must be at most the {self.n_samples_fit_} training samples, "
                f"got {self.n_neighbors}"
            )
        distances, indices = knn(
            self._fit_X, k, self.metric, queries=X, unit_rows=self.unit_rows, per_dimension=self.per_dimension,
            num_threads=self.num_threads,
        )  # fmt: skip
        data = distances.numpy() if self.mode == "distance" else np.ones(indices.shape, self._fit_X.dtype)
        starts = np.arange(0, len(X) * k + 1, k)
        return csr_matrix((data.ravel(), indices.numpy().ravel(), starts), shape=(len(X), self.n_samples_fit_))

    @property
    def _n_features_out(self) -> int:
        return self.n_samples_fit_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
