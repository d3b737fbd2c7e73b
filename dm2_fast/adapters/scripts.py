"""A choice as scripts ask for it: an object with `query(n)` and `select(budget)`, or a function for modAL."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dm2_fast.acquire import select
from dm2_fast.adapters.classifier import Rows, choose
from dm2_fast.round import Picked
from dm2_fast.strategies import get


class Selector:
    """A model and a pool, asked for rows of the pool as scripts of the DeepAL, DISTIL and LabelBench kind ask.

    Args:
        model, pool, strategy, options: As in `dm2_fast.select`.
        others: Whatever else `dm2_fast.select` takes, by name.

    Attributes:
        picked: All that is known of the last choice; None before the first.
    """

    def __init__(self, model: Any, pool: Any, strategy: Any = "dm2", options: Any = None, **others: Any) -> None:
        self.model, self.pool, self.strategy, self.options, self.others = model, pool, strategy, options, others
        self.picked: Picked | None = None

    def query(self, n: int) -> NDArray[np.int64]:
        """The rows of the pool to label next, (n,) in order of choice.

        Raises:
            ValueError, TypeError, RuntimeError: As `dm2_fast.select`.
        """
        self.picked = select(self.model, self.pool, n, self.strategy, self.options, **self.others)
        rows: NDArray[np.int64] = self.picked.indices.cpu().numpy()
        return rows

    def select(self, budget: int) -> list[int]:
        """The same as a list."""
        rows: list[int] = self.query(budget).tolist()
        return rows


def query(
    classifier: Any,
    pool: Any,
    n_instances: int = 1,
    strategy: str = "dm2",
    options: Any = None,
    *,
    labelled: Any = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Choose samples with any classifier that has `predict_proba`, as a query strategy of modAL.

    Samples are mixed and compared as they are. Where a strategy compares with labelled samples and there are none, the
    first is drawn at random. Of equal scores, a draw decides.

    Args:
        classifier: Fitted; its `predict_proba` takes rows of the pool.
        pool: Samples, (m, ...) floating point; an array or a sparse matrix.
        n_instances: How many to choose.
        strategy: A name; those that look into a network, such as bald, cannot.
        options, seed: As in `dm2_fast.select`.
        labelled: Labelled samples, (n, ...); None for the `X_training` of the classifier, which modAL's learners have.

    Returns:
        Rows of the pool, (n_instances,) in order of choice.

    Raises:
        ValueError: n_instances or an option is out of range, or the strategy looks into a network.
        TypeError: the classifier has no predict_proba.
    """
    if not hasattr(classifier, "predict_proba"):
        raise TypeError(f"classifier must have predict_proba, got {type(classifier).__name__}")
    labelled = getattr(classifier, "X_training", None) if labelled is None else labelled
    pool, labelled = _sliceable(pool), None if labelled is None else _sliceable(labelled)

    def predict(batch: Any, embeds: bool) -> Any:
        return classifier.predict_proba(batch)

    others = None if labelled is None else Rows(labelled, np.arange(labelled.shape[0]))
    rows = Rows(pool, np.arange(pool.shape[0]))
    picked = choose(strategy, get(strategy).checked(options), n_instances, rows, others, predict, seed=seed)
    chosen: NDArray[np.int64] = picked.indices.numpy()
    return chosen


def _sliceable(x: Any) -> Any:
    """x, if rows can be taken from it: a table or a list as an array, a sparse matrix as CSR."""
    if hasattr(x, "tocsr"):
        return x.tocsr()
    return x if hasattr(x, "shape") and not hasattr(x, "to_numpy") else np.asarray(x)
