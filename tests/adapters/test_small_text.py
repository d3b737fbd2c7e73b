"""The query strategy in small-text: its own loop on the digits, sparse texts, and its convolutional network."""

import numpy as np
import pytest
import torch
from loops import BUDGET, POOL, ROUNDS, TEST, X, Y, start
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from small_text import (
    BreakingTies,
    EmptyPoolException,
    PoolBasedActiveLearner,
    PoolExhaustedException,
    SklearnClassifierFactory,
    SklearnDataset,
)
from small_text.classifiers import SklearnClassifier
from small_text.integrations.pytorch.classifiers.kimcnn import KimCNNClassifier
from small_text.integrations.pytorch.datasets import PytorchTextClassificationDataset

import dm2_fast
from dm2_fast.adapters.small_text import Acquisition

STRATEGIES = ("dm2", "margin", "coreset", "badge")


def digits() -> SklearnDataset:
    return SklearnDataset(X[POOL], Y[POOL], target_labels=np.arange(10))


def factory() -> SklearnClassifierFactory:
    return SklearnClassifierFactory(LogisticRegression(max_iter=100), 10)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_loop_on_the_digits(name: str) -> None:
    data = digits()
    learner = PoolBasedActiveLearner(factory(), Acquisition(name), data)
    learner.initialize_data(start(), Y[start()])
    accuracies = []
    for _ in range(ROUNDS):
        accuracies.append((learner.classifier.model.predict(X[TEST]) == Y[TEST]).mean())
        rows = learner.query(num_samples=BUDGET)
        assert len({*rows}) == BUDGET
        assert not set(rows) & set(learner.indices_labeled)
        if name == "margin":
            unlabelled = np.setdiff1d(POOL, learner.indices_labeled)
            theirs = BreakingTies().query(learner.classifier, data, unlabelled, learner.indices_labeled, None, BUDGET)
            assert set(rows) == set(theirs)
        scores = learner.query_strategy.scores_
        assert np.isnan(scores[learner.indices_labeled]).all()
        np.testing.assert_array_equal(np.sort(scores[rows]), np.sort(scores[~np.isnan(scores)])[-BUDGET:])
        learner.update(Y[rows])
    assert (learner.classifier.model.predict(X[TEST]) == Y[TEST]).mean() > accuracies[0]
    assert len(learner.indices_labeled) == len(start()) + ROUNDS * BUDGET


def words(n: int) -> tuple[list[str], np.ndarray]:
    """Sentences about three things."""
    rng = np.random.default_rng(0)
    topics = ["cat dog fur paw tail", "rain wind cloud storm sun", "bread salt oil wine rice"]
    y = np.arange(n) % 3
    texts = [" ".join(rng.choice([*topics[label].split(), "the", "of", "and"], 6)) for label in y]
    return texts, y


@pytest.mark.parametrize("name", STRATEGIES)
def test_sparse_texts_are_chosen_like_their_dense_matrix(name: str) -> None:
    texts, y = words(90)
    x = csr_matrix(TfidfVectorizer().fit_transform(texts))
    labelled, unlabelled = np.arange(12), np.arange(12, 90)
    rows = []
    for features in (x, x.toarray()):
        data = SklearnDataset(features, y, target_labels=np.arange(3))
        clf = SklearnClassifier(LogisticRegression(), 3).fit(data[labelled])
        rows.append(Acquisition(name).query(clf, data, unlabelled, labelled, y[labelled], 6))
        linear = clf.model.coef_, clf.model.intercept_
    np.testing.assert_array_equal(*rows)
    dense = x.toarray()
    asked = dm2_fast.Round.from_arrays(
        dense[unlabelled], labelled_features=dense[labelled], head=linear, round=12, ties="random"
    )
    np.testing.assert_array_equal(rows[0], unlabelled[dm2_fast.select_from(asked, 6, name).indices])


def kim_cnn() -> tuple[KimCNNClassifier, PytorchTextClassificationDataset, np.ndarray]:
    """A small network on token sequences, trained on the first thirty."""

    class Vocabulary(dict):
        itos = ("<pad>", *"abcdefghijk")

    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    tokens = np.where(rng.random((90, 12)) < 0.5, rng.integers(1, 12, (90, 12)), 1 + 3 * y[:, None])
    vocabulary = Vocabulary({token: i for i, token in enumerate(Vocabulary.itos)})
    data = [(torch.tensor(row), int(label)) for row, label in zip(tokens, y, strict=True)]
    dataset = PytorchTextClassificationDataset(data, vocabulary, target_labels=np.arange(3))
    torch.manual_seed(0)
    clf = KimCNNClassifier(
        3, embedding_matrix=torch.randn(12, 8), num_epochs=3, max_seq_len=12, out_channels=6, kernel_heights=[2, 3],
        device="cpu",
    )  # fmt: skip
    clf.fit(dataset[np.arange(30)])
    clf.model.eval()
    return clf, dataset, y


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_network_of_pytorch_mixes_its_features(name: str) -> None:
    clf, dataset, y = kim_cnn()
    labelled, unlabelled = np.arange(30), np.arange(30, 90)
    rows = Acquisition(name).query(clf, dataset, unlabelled, labelled, y[labelled], 5)
    tokens = torch.stack([row for row, _ in dataset.data])
    with torch.no_grad():
        features = clf.model._forward_pooled(tokens)
    asked = dm2_fast.Round.from_arrays(
        features[unlabelled], labelled_features=features[labelled], head=clf.model.fc, round=30, ties="random"
    )
    np.testing.assert_array_equal(rows, unlabelled[dm2_fast.select_from(asked, 5, name).indices])
    named = Acquisition(name, head=lambda clf: clf.model.fc, embed={"embedding_method": "pooled"})
    np.testing.assert_array_equal(rows, named.query(clf, dataset, unlabelled, labelled, y[labelled], 5))
    del clf.model.fc
    if name != "margin":
        with pytest.raises(ValueError, match="the head of KimCNNClassifier is not known: pass head=lambda clf"):
            Acquisition(name).query(clf, dataset, unlabelled, labelled, y[labelled], 5)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="strategy must be one of"):
        Acquisition("nothing")
    with pytest.raises(TypeError, match="strategy coreset has no options"):
        Acquisition("coreset", dm2_fast.DM2Config())
    clf = SklearnClassifier(LogisticRegression(), 10)
    with pytest.raises(EmptyPoolException):
        Acquisition().query(clf, digits(), np.array([], int), POOL, Y, 1)
    with pytest.raises(PoolExhaustedException):
        Acquisition().query(clf, digits(), np.arange(3), np.arange(3, 9), Y, 4)
    with pytest.raises(ValueError, match="takes one label per text: set multi_label=False"):
        Acquisition().query(SklearnClassifier(LogisticRegression(), 10, multi_label=True), digits(), POOL, POOL[:0], Y)
