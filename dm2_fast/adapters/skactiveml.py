"""Strategies of ours as query strategies of scikit-activeml.

Utilities are the scores of a strategy. CoreSet, CoreGCN, Badge, ProbCover, ClusterMargin and any strategy with
batch="kmeans" choose one sample after another: their utilities are the order of choice, the batch size for the sample
chosen first, 1 for the last, 0 for those not chosen. They depend on all candidates at once, as those of DM2 and the
graph networks do, so that `ParallelUtilityEstimationWrapper`, which cuts the candidates into parts, changes what is
chosen.
"""

from typing import Any, ClassVar

import numpy as np

from dm2_fast import extras
from dm2_fast.adapters.classifier import Predict, Rows, choose, compares, utilities
from dm2_fast.operations.knn import Metric
from dm2_fast.operations.mix import Mix
from dm2_fast.strategies import get
from dm2_fast.strategies.cluster_margin import ClusterMarginConfig
from dm2_fast.strategies.core_gcn import CoreGCNConfig
from dm2_fast.strategies.dm2 import DM2Config
from dm2_fast.strategies.prob_cover import ProbCoverConfig
from dm2_fast.strategies.uncertain_gcn import UncertainGCNConfig

with extras.needed("skactiveml", "dm2_fast.adapters.skactiveml"):
    from skactiveml.base import SingleAnnotatorPoolQueryStrategy, SkactivemlClassifier
    from skactiveml.utils import (
        MISSING_LABEL,
        check_equal_missing_label,
        check_scalar,
        check_type,
        labeled_indices,
        unlabeled_indices,
    )
    from sklearn.base import clone

__all__ = [
    "DM2", "Badge", "ClusterMargin", "CoreGCN", "CoreSet", "Entropy", "LeastConfidence", "Margin", "ProbCover",
    "Random", "UncertainGCN",
]  # fmt: skip


class _QueryStrategy(SingleAnnotatorPoolQueryStrategy):  # type: ignore[misc]  # of a package without types
    """What the strategies here have in common: everything but the name and the options.

    Args:
        clf_embedding_flag_name: How the classifier gives features: the name of the flag with which its `predict_proba`
            returns (probabilities, features), or a dict of keywords, such as {"extra_outputs": "emb"} for a
            SkorchClassifier. None: where it returns both without, those; else the samples themselves.
        missing_label: What stands for a missing label.
        random_state: Key of every draw, that among equal utilities included.
    """

    _strategy: ClassVar[str]
    _reads_clf: ClassVar[bool] = True

    def __init__(
        self,
        clf_embedding_flag_name: str | dict[str, Any] | None = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.clf_embedding_flag_name = clf_embedding_flag_name

    def _options(self) -> Any:
        return None

    def query(
        self,
        X: Any,
        y: Any,
        clf: Any = None,
        fit_clf: bool = True,
        sample_weight: Any = None,
        candidates: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> Any:
        """Choose samples to label.

        Args:
            X: Samples, (n, ...).
            y: Their labels, (n,), missing_label where there is none.
            clf: A SkactivemlClassifier; not needed by Random, and by CoreSet and the graph networks only for features.
            fit_clf: Whether a clone of clf is fitted on X and y.
            sample_weight: (n,), for that.
            candidates: None for the samples without a label, row numbers of X, or samples.
            batch_size: How many; all candidates, with a warning, where there are fewer.
            return_utilities: Whether to return the utilities too.

        Returns:
            The chosen, (batch_size,) row numbers of X, or of candidates where these are samples, in order of choice.
            With return_utilities, also (batch_size, n) utilities: line b has those of the samples that were not chosen
            before, and NaN elsewhere.
        """
        X, y, candidates, batch_size, return_utilities = self._validate_data(
            X, y, candidates, batch_size, return_utilities, reset=True
        )
        predict, embeds = self._predict(clf, fit_clf, X, y, sample_weight)
        if candidates is None or candidates.ndim == 1:
            rows = unlabeled_indices(y, self.missing_label_) if candidates is None else candidates
            pool, n = Rows(X, rows), len(X)
        else:
            rows = np.arange(len(candidates))
            pool, n = Rows(candidates, rows), len(candidates)
        if len(rows) == 0:
            raise ValueError("there is no candidate: every sample of X has a label")
        known = labeled_indices(y, self.missing_label_)
        picked = choose(
            self._strategy, self._options(), batch_size, pool, Rows(X, known) if len(known) else None, predict, embeds,
            seed=int(self.random_state_.randint(2**31 - 1)),
        )  # fmt: skip
        indices = rows[picked.indices.numpy()]
        if not return_utilities:
            return indices
        values = np.full(n, np.nan)
        values[rows] = utilities(picked, len(rows))
        lines = np.tile(values, (batch_size, 1))
        for b in range(1, batch_size):
            lines[b, indices[:b]] = np.nan
        return indices, lines

    def _predict(self, clf: Any, fit_clf: bool, X: Any, y: Any, sample_weight: Any) -> tuple[Predict | None, bool]:
        """The classifier as a function, and whether it gives features; None where it is not read."""
        if clf is None and not self._reads_clf:
            return None, False
        check_type(clf, "clf", SkactivemlClassifier)
        check_equal_missing_label(clf.missing_label, self.missing_label_)
        check_scalar(fit_clf, "fit_clf", bool)
        flag = self.clf_embedding_flag_name
        if flag is not None:
            check_type(flag, "clf_embedding_flag_name", dict, str)
        keywords = flag if isinstance(flag, dict) else {} if flag is None else {flag: True}
        if fit_clf:
            weights = () if sample_weight is None else (sample_weight,)
            clf = clone(clf).fit(X, y, *weights)
        embeds = compares(get(self._strategy), self._options()) and (
            flag is not None or isinstance(clf.predict_proba(X[:1]), tuple)
        )
        if not (self._reads_clf or embeds):
            return None, False

        def predict(batch: Any, wanted: bool) -> Any:
            found = clf.predict_proba(batch, **(keywords if wanted else {}))
            return found if wanted or not isinstance(found, tuple) else found[0]

        return predict, embeds


class Random(_QueryStrategy):
    """Draw samples uniformly."""

    _strategy, _reads_clf = "random", False


class _Scoring(_QueryStrategy):
    """What scores samples by their probabilities, with the option `batch` of its strategy."""

    def __init__(
        self,
        batch: str = "highest",
        clf_embedding_flag_name: str | dict[str, Any] | None = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(clf_embedding_flag_name, missing_label, random_state)
        self.batch = batch

    def _options(self) -> Any:
        options: Any = get(self._strategy).options
        return options(self.batch)  # which checks it


class LeastConfidence(_Scoring):
    """Choose the lowest maximum of the class probabilities."""

    _strategy = "least-confidence"


class Entropy(_Scoring):
    """Choose the highest entropy of the class probabilities."""

    _strategy = "entropy"


class Margin(_Scoring):
    """Choose the smallest gap between the two largest class probabilities."""

    _strategy = "margin"


class CoreSet(_QueryStrategy):
    """Choose the sample farthest from everything labelled or chosen, again and again."""

    _strategy, _reads_clf = "coreset", False


class Badge(_QueryStrategy):
    """Choose by k-means++ on the gradients that the predicted label would cause at the head."""

    _strategy = "badge"


class ClusterMargin(_QueryStrategy):
    """Choose small margins in turn from clusters, found anew in each query, by the options of `ClusterMarginConfig`."""

    _strategy = "cluster-margin"

    def __init__(
        self,
        candidates: int = 10,
        size: int = 10,
        clf_embedding_flag_name: str | dict[str, Any] | None = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(clf_embedding_flag_name, missing_label, random_state)
        self.candidates = candidates
        self.size = size

    def _options(self) -> ClusterMarginConfig:
        return ClusterMarginConfig(self.candidates, self.size)


class UncertainGCN(_QueryStrategy):
    """Choose what a graph network can tell from the labelled least, by the options of `UncertainGCNConfig`."""

    _strategy, _reads_clf = "uncertain-gcn", False

    def __init__(
        self,
        lam: float = 1.2,
        margin: float = 0.1,
        batch: str = "highest",
        clf_embedding_flag_name: str | dict[str, Any] | None = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(clf_embedding_flag_name, missing_label, random_state)
        self.lam = lam
        self.margin = margin
        self.batch = batch

    def _options(self) -> UncertainGCNConfig:
        return UncertainGCNConfig(self.lam, self.margin, self.batch)  # type: ignore[arg-type]  # which it checks


class CoreGCN(_QueryStrategy):
    """Choose like CoreSet, by the features of a graph network, with the options of `CoreGCNConfig`."""

    _strategy, _reads_clf = "core-gcn", False

    def __init__(
        self,
        lam: float = 1.2,
        nodes: str = "hidden",
        clf_embedding_flag_name: str | dict[str, Any] | None = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(clf_embedding_flag_name, missing_label, random_state)
        self.lam = lam
        self.nodes = nodes

    def _options(self) -> CoreGCNConfig:
        return CoreGCNConfig(self.lam, self.nodes)  # type: ignore[arg-type]  # which it checks


class ProbCover(_QueryStrategy):
    """Choose the balls of one radius that cover the most samples; radius and purity are its options.

    The purity of a radius is counted with as many clusters as the classifier knows classes.
    """

    _strategy = "prob-cover"

    def __init__(
        self,
        radius: float | str = "purity",
        purity: float = 0.95,
        clf_embedding_flag_name: str | dict[str, Any] | None = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(clf_embedding_flag_name, missing_label, random_state)
        self.radius = radius
        self.purity = purity

    def _options(self) -> ProbCoverConfig:
        return ProbCoverConfig(self.radius, self.purity)  # type: ignore[arg-type]  # which it checks


class DM2(_QueryStrategy):
    """Choose the samples whose mixture with their nearest candidates leaves the classifier least sure.

    Samples are mixed as they stand in X, and compared by the classifier's features if it gives them. The other
    parameters are the options of `dm2_fast.DM2Config`; k is at most the number of other candidates, and one candidate
    alone is not mixed.
    """

    _strategy = "dm2"

    def __init__(
        self,
        metric: Metric = "literal",
        k: int = 10,
        mix: Mix = "mean",
        lam: float | str = 0.9,
        alpha: float = 1.0,
        score: str = "margin",
        offset: int = 0,
        recall: float | None = None,
        batch: str = "kmeans",
        clf_embedding_flag_name: str | dict[str, Any] | None = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(clf_embedding_flag_name, missing_label, random_state)
        self.metric = metric
        self.k = k
        self.mix = mix
        self.lam = lam
        self.alpha = alpha
        self.score = score
        self.offset = offset
        self.recall = recall
        self.batch = batch

    def _options(self) -> DM2Config:
        names = ("metric", "k", "mix", "lam", "alpha", "score", "offset", "recall", "batch")
        return DM2Config(**{name: getattr(self, name) for name in names})
