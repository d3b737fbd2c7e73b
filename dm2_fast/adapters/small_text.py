"""Strategies of ours as a query strategy of small-text, for its scikit-learn and its PyTorch classifiers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dm2_fast import extras
from dm2_fast.adapters.classifier import Predict, Rows, choose, compares, utilities
from dm2_fast.strategies import get

with extras.needed("small-text", "dm2_fast.adapters.small_text"):
    from small_text.query_strategies import QueryStrategy


class _Features:
    """What a classifier reads of a data set of features: one without labels, which theirs must have."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __len__(self) -> int:
        rows: int = self.x.shape[0]
        return rows


class Acquisition(QueryStrategy):  # type: ignore[misc]  # of a package without types
    """Choose texts with a strategy of ours.

    Texts cannot be mixed, so their features are: the matrix of a SklearnDataset, which may be sparse; or what a PyTorch
    classifier embeds them as, with the head that reads it. Strategies that compare features hold those of the
    unlabelled texts as a dense matrix. Where one compares with labelled texts and there are none, the first is drawn at
    random. Of equal scores, a draw decides.

    Args:
        strategy: A name; those that look into a network, such as bald, cannot.
        options: As in `dm2_fast.select`.
        head: Called with a trained PyTorch classifier, returns what turns its features into logits; None for
            `classifier.model.fc`, as KimCNN has it.
        embed: Keywords for the `embed` of a PyTorch classifier.
        seed: Key of every draw, with the number of labelled texts.

    Attributes:
        scores_: A number for each text of the data set, of which the highest were chosen, see
            `dm2_fast.adapters.classifier.utilities`; NaN for labelled texts. None before the first query.
    """

    def __init__(
        self,
        strategy: str = "dm2",
        options: Any = None,
        *,
        head: Callable[[Any], Callable[[torch.Tensor], torch.Tensor]] | None = None,
        embed: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.strategy, self.options = get(strategy).name, get(strategy).checked(options)
        self.head, self.embed, self.seed = head, embed or {}, seed
        self.scores_: NDArray[np.float64] | None = None

    def query(
        self, clf: Any, dataset: Any, indices_unlabeled: Any, indices_labeled: Any, y: Any, n: int = 10
    ) -> NDArray[np.int64]:
        """Choose n of the unlabelled texts, in order of choice.

        Raises:
            ValueError: the classifier gives a text several labels, or has no head that is known.
            EmptyPoolException, PoolExhaustedException: there are fewer than n unlabelled texts.
        """
        self._validate_query_input(indices_unlabeled, n)
        if getattr(clf, "multi_label", False):
            raise ValueError("small_text.Acquisition takes one label per text: set multi_label=False")
        unlabelled, labelled = np.asarray(indices_unlabeled), np.asarray(indices_labeled, dtype=np.int64)
        pool, others, predict = self._open(clf, dataset, unlabelled, labelled)
        picked = choose(
            self.strategy, self.options, n, pool, others if len(labelled) else None, predict,
            seed=self.seed, round=len(labelled),
        )  # fmt: skip
        self.scores_ = np.full(len(dataset), np.nan)
        self.scores_[unlabelled] = utilities(picked, len(unlabelled))
        chosen: NDArray[np.int64] = unlabelled[picked.indices.numpy()]
        return chosen

    def _open(self, clf: Any, dataset: Any, unlabelled: Any, labelled: Any) -> tuple[Rows, Rows, Predict]:
        if isinstance(dataset.x, np.ndarray) or hasattr(dataset.x, "tocsr"):

            def of_features(batch: Any, embeds: bool) -> Any:
                return clf.predict_proba(_Features(batch))

            return Rows(dataset.x, unlabelled), Rows(dataset.x, labelled), of_features
        if not compares(get(self.strategy), self.options):

            def of_texts(rows: Any, embeds: bool) -> Any:
                return clf.predict_proba(dataset[rows])

            numbers = np.arange(len(dataset))
            return Rows(numbers, unlabelled), Rows(numbers, labelled), of_texts
        if self.head is None and not hasattr(clf.model, "fc"):
            raise ValueError(
                f"the head of {type(clf).__name__} is not known: pass head=lambda clf: ..., what turns the features "
                "that it embeds texts as into logits"
            )
        head = clf.model.fc if self.head is None else self.head(clf)
        features = clf.embed(dataset[np.concatenate([unlabelled, labelled])], **{"pbar": None} | self.embed)

        def of_embeddings(batch: Any, embeds: bool) -> Any:
            with torch.no_grad():
                return head(torch.as_tensor(batch).to(clf.device or "cpu")).softmax(1).cpu().numpy()

        m = len(unlabelled)
        return Rows(features, np.arange(m)), Rows(features, np.arange(m, len(features))), of_embeddings
