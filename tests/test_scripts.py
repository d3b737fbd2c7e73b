"""The adapters that need no package: those of scripts, and what all adapters compute with."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from torch import nn
from torch.utils.data import Dataset

import dm2_fast
from dm2_fast.adapters.classifier import Rows, utilities
from dm2_fast.adapters.scripts import Selector, query

rng = np.random.default_rng(0)
POOL, LABELLED = rng.standard_normal((70, 6)), rng.standard_normal((20, 6))
Y = np.arange(20) % 3
LINEAR = LogisticRegression().fit(LABELLED, Y)
INSIDE = (
    "bald", "entropy-bayesian", "alpha-mix", "noise-stability", "batchbald", "qbc", "isal", "ll4al", "vaal", "ent-gn",
    "exp-gn",
)  # fmt: skip
FITTING = [name for name in dm2_fast.strategies.names() if name not in INSIDE]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dm2_fast.strategies.graph_network.STEPS", 3)


@pytest.mark.parametrize("name", FITTING)
@pytest.mark.parametrize("form", [np.asarray, csr_matrix], ids=["dense", "sparse"])
def test_a_classifier_chooses_as_its_linear_head(name: str, form) -> None:
    head = (LINEAR.coef_, LINEAR.intercept_)
    asked = dm2_fast.Round.from_arrays(POOL, labelled_features=LABELLED, head=head, seed=3, ties="random")
    expected = dm2_fast.select_from(asked, 6, name)
    rows = query(LINEAR, form(POOL), 6, name, labelled=form(LABELLED), seed=3)
    np.testing.assert_array_equal(rows, expected.indices)


@pytest.mark.parametrize("name", INSIDE)
def test_what_looks_into_a_network_says_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"strategy {name} looks into a network, .*: give the network to dm2_fast.sel"):
        query(LINEAR, POOL, 6, name, labelled=LABELLED)


class Learner:
    """What a learner of modAL shows to a query strategy."""

    def __init__(self, query_strategy, x, y) -> None:
        self.query_strategy, self.X_training = query_strategy, x
        self.estimator = GaussianNB().fit(x, y)

    def predict_proba(self, x):
        return self.estimator.predict_proba(x)

    def query(self, pool, *args, **kwargs):
        rows = self.query_strategy(self, pool, *args, **kwargs)
        return rows, pool[rows]


def test_as_a_query_strategy_of_modal() -> None:
    learner = Learner(partial(query, strategy="coreset"), LABELLED, Y)
    rows, samples = learner.query(POOL, n_instances=4)
    distances = np.linalg.norm(POOL[:, None] - LABELLED, axis=2).min(1)
    for row in rows:
        assert row == distances.argmax()
        distances = np.minimum(distances, np.linalg.norm(POOL - POOL[row], axis=1))
    np.testing.assert_array_equal(samples, POOL[rows])
    assert len(Learner(query, LABELLED, Y).query(POOL)[0]) == 1


def test_dm2_with_any_classifier_by_hand() -> None:
    bayes = GaussianNB().fit(LABELLED, Y)
    unit = POOL / np.linalg.norm(POOL, axis=1, keepdims=True)
    difference = unit[:, None] - unit
    distance = np.abs(difference).sum(2) + np.sqrt(np.square(difference).sum(2))
    np.fill_diagonal(distance, np.inf)
    mixed = 0.5 * POOL + 0.5 * POOL[distance.argsort(1)[:, :10]].mean(1)
    expected = bayes.predict_proba(mixed).max(1).argsort(kind="stable")[:5]
    np.testing.assert_array_equal(query(bayes, POOL, 5, options=dm2_fast.DM2Config.published()), expected)


def test_without_a_label_the_first_is_drawn_and_the_others_follow() -> None:
    for name in ("coreset", "core-gcn", "uncertain-gcn", "prob-cover"):
        rows = query(LINEAR, POOL[:20], 20, name)
        assert sorted(rows) == list(range(20))
    first = {query(LINEAR, POOL, 1, "coreset", seed=seed)[0] for seed in range(5)}
    assert len(first) > 1
    rows = query(LINEAR, POOL, 4, "coreset", seed=1)
    rest = np.delete(np.arange(70), rows[0])
    expected = rest[query(LINEAR, POOL[rest], 3, "coreset", labelled=POOL[rows[:1]], seed=1)]
    np.testing.assert_array_equal(rows[1:], expected)


def test_the_classifier_sees_every_row_once_and_in_blocks() -> None:
    seen: list[int] = []

    class Counting:
        def predict_proba(self, x):
            seen.append(len(x))
            return LINEAR.predict_proba(x)

    pool = np.tile(POOL, (3000, 1))  # 10 MB
    query(Counting(), pool, 3, "margin")
    assert sum(seen) == len(pool)
    assert len(seen) == 2
    assert max(seen) - min(seen) <= 1


@pytest.mark.parametrize(
    ("classifier", "n", "error", "message"),
    [
        (LINEAR, 0, ValueError, r"budget must be in \[1, 70\] for a pool of 70 rows, got 0"),
        (LINEAR, 71, ValueError, r"budget must be in \[1, 70\]"),
        (LINEAR, 2.5, TypeError, "budget must be a whole number, got 2.5"),
        (nn.Linear(6, 3), 2, TypeError, "classifier must have predict_proba, got Linear"),
    ],
)
def test_wrong_arguments(classifier, n, error, message: str) -> None:
    for name in ("dm2", "coreset"):
        with pytest.raises(error, match=message):
            query(classifier, POOL, n, name)


class Handler(Dataset):
    """Gives (sample, label, row) as the data sets of such scripts do."""

    def __init__(self, x) -> None:
        self.x = torch.as_tensor(x, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], 0, row


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        features = self.hidden(x).relu()
        return self.head(features), features


@pytest.mark.parametrize("name", ["dm2", "margin", "coreset", "badge"])
def test_an_object_for_scripts(name: str) -> None:
    net = Net().eval()
    labelled = torch.as_tensor(LABELLED, dtype=torch.float32)
    selector = Selector(net, Handler(POOL), name, labelled=labelled)
    assert selector.picked is None
    if name == "dm2":
        with pytest.raises(TypeError, match="logits"):  # a module that returns a tuple
            selector.query(5)
    selector = Selector(lambda x: net(x), Handler(POOL), name, labelled=labelled)
    plain = nn.Sequential(net.hidden, nn.ReLU(), net.head)
    pool = torch.as_tensor(POOL, dtype=torch.float32)
    expected = dm2_fast.select(plain, pool, 5, name, labelled=labelled)
    rows = selector.query(5)
    assert isinstance(rows, np.ndarray)
    np.testing.assert_array_equal(rows, expected.indices)
    assert selector.select(5) == rows.tolist()
    assert torch.equal(selector.picked.indices, expected.indices)


def test_utilities_are_the_scores_where_the_highest_were_chosen() -> None:
    scores = torch.tensor([0.5, 0.1, 0.9, 0.9, 0.2])
    for rows in ([2, 3], [3, 2, 0]):
        found = utilities(dm2_fast.Picked(torch.tensor(rows), scores), 5)
        np.testing.assert_array_equal(found, scores.double())
    for rows, order in (([3, 0, 2], [2, 0, 1, 3, 0]), ([0, 1], [2, 1, 0, 0, 0]), ([2, 0], [1, 0, 2, 0, 0])):
        found = utilities(dm2_fast.Picked(torch.tensor(rows), scores), 5)  # skipped one, or chose in another order
        np.testing.assert_array_equal(found, order)
    found = utilities(dm2_fast.Picked(torch.tensor([4, 1]), None), 6)
    np.testing.assert_array_equal(found, [0, 1, 0, 0, 2, 0])
    everything = utilities(dm2_fast.Picked(torch.tensor([2, 3, 0, 4, 1]), scores), 5)
    np.testing.assert_array_equal(everything, scores.double())


def test_rows_are_no_copy() -> None:
    data = np.arange(40.0).reshape(10, 4)
    rows = Rows(data, np.array([7, 2, 9]))
    assert (len(rows), rows.shape, rows.dtype) == (3, (3, 4), np.float64)
    np.testing.assert_array_equal(rows[torch.tensor([2, 0])], data[[9, 7]])
    data[7] = -1
    np.testing.assert_array_equal(rows.features()[0], [-1] * 4)
    sparse = Rows(csr_matrix(data), np.array([7, 2]))
    np.testing.assert_array_equal(sparse.features(), data[[7, 2]])
    assert Rows(data.astype(np.uint8), np.arange(3)).dtype == np.float32
