"""The query strategies in scikit-activeml: what its contributors' guide asks of every strategy, and its own loop."""

import inspect
import tracemalloc
import warnings
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
from loops import BUDGET, POOL, ROUNDS, TEST, X, Y, start
from skactiveml.classifier import ParzenWindowClassifier, SklearnClassifier, SkorchClassifier
from skactiveml.pool import Badge as TheirBadge
from skactiveml.pool import CoreSet, SubSamplingWrapper, UncertaintySampling
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from torch import nn

import dm2_fast
from dm2_fast.adapters import skactiveml as ours
from dm2_fast.adapters.classifier import choose

ALL = [getattr(ours, name) for name in ours.__all__]
NOT_READING = {"Random", "CoreSet", "CoreGCN", "UncertainGCN"}
HIGHEST = partial(ours.DM2, batch="highest")
SCORING = [HIGHEST, ours.Entropy, ours.LeastConfidence, ours.Margin, ours.Random, ours.UncertainGCN]
IN_TURN = [ours.DM2, ours.Badge, ours.ClusterMargin, ours.CoreGCN, ours.CoreSet, ours.ProbCover]

rng = np.random.default_rng(0)
CENTRES = rng.standard_normal((3, 4))
LABELS = np.arange(40) % 3
SMALL = CENTRES[LABELS] + 0.8 * rng.standard_normal((40, 4))
KNOWN = np.arange(9)
UNKNOWN = np.arange(9, 40)


def labels(missing=np.nan, kind=float) -> np.ndarray:
    y = np.full(40, missing, dtype=kind)
    y[KNOWN] = LABELS[KNOWN]
    return y


def classifier(missing=np.nan, classes=(0, 1, 2)) -> SklearnClassifier:
    return SklearnClassifier(GaussianNB(), classes=list(classes), missing_label=missing)


def query(strategy, y=None, clf=None, **others):
    return strategy.query(SMALL, labels() if y is None else y, clf or classifier(), **others)


@pytest.mark.parametrize("kind", ALL)
def test_parameters_are_stored_as_they_are_and_cloned(kind) -> None:
    names = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    dummies = {name: object() for name in names}
    made = kind(**dummies)
    assert all(getattr(made, name) is dummies[name] for name in names)
    assert made.get_params() == dummies
    assert set(clone(kind()).get_params()) == set(names)
    fresh = kind(random_state=3)
    query(fresh, batch_size=2)
    defaults = inspect.signature(kind.__init__).parameters
    assert {name for name in names if getattr(fresh, name) is not defaults[name].default} == {"random_state"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, dm2_fast.strategies.get(kind._strategy).options) for kind in ALL if kind._options(kind()) is not None],
)
def test_the_defaults_are_those_of_the_options(kind, options) -> None:
    assert kind()._options() == options()
    missing = {field.name for field in fields(options)} - set(kind().get_params())
    assert missing == {"dm2": {"space"}, "prob-cover": {"features"}}.get(kind._strategy, set())  # X is all there is


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("state", [0, np.random.RandomState(5)], ids=["seed", "state"])
def test_calls_are_reproducible_and_change_nothing(kind, state) -> None:
    strategy, clf = kind(random_state=state), classifier()
    before = None if isinstance(state, int) else state.get_state()[1].copy()
    first = query(strategy, clf=clf, batch_size=4)
    with_utilities, utilities = query(strategy, clf=clf, batch_size=4, return_utilities=True)
    again = query(kind(random_state=state), clf=clf, batch_size=4)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, with_utilities)
    assert before is None or (before == state.get_state()[1]).all()
    assert not hasattr(clf, "classes_")  # a clone was fitted
    assert utilities.shape == (4, 40)


def test_another_state_breaks_ties_otherwise() -> None:
    same, clf = np.zeros((40, 4)), SklearnClassifier(LogisticRegression(), classes=[0, 1, 2])
    picks = [ours.Margin(random_state=seed).query(same, labels(), clf, batch_size=3).tolist() for seed in range(4)]
    assert len({*map(tuple, picks)}) > 1


@pytest.mark.parametrize("kind", ALL)
def test_candidates_in_every_form_give_the_same(kind) -> None:
    strategy = kind(random_state=1)
    rows, utilities = query(strategy, batch_size=5, return_utilities=True)
    assert set(rows) <= set(UNKNOWN)
    assert len(set(rows)) == 5
    assert np.isnan(utilities[:, KNOWN]).all()
    by_row, same = query(strategy, batch_size=5, return_utilities=True, candidates=UNKNOWN)
    np.testing.assert_array_equal(rows, by_row)
    np.testing.assert_array_equal(utilities, same)
    places, own = query(strategy, batch_size=5, return_utilities=True, candidates=SMALL[UNKNOWN])
    np.testing.assert_array_equal(rows, UNKNOWN[places])
    np.testing.assert_array_equal(utilities[:, UNKNOWN], own)
    some = np.array([30, 12, 25, 39])
    assert set(query(strategy, batch_size=2, candidates=some)) <= set(some)


@pytest.mark.parametrize(
    ("missing", "kind"),
    [(np.nan, float), (0, int), (-1, int), (None, object), ("", str)],
    ids=["nan", "0", "-1", "None", "empty"],
)
@pytest.mark.parametrize("strategy", ALL)
def test_every_missing_label_chooses_the_same(strategy, missing, kind) -> None:
    names = ["a", "b", "c"] if kind in (str, object) else [5, 6, 7]
    y = np.full(40, missing, dtype="U3" if kind is str else kind)
    y[KNOWN] = np.array(names, dtype=y.dtype)[LABELS[KNOWN]]
    clf = classifier(missing, names)
    rows = strategy(missing_label=missing, random_state=0).query(SMALL, y, clf, batch_size=4)
    np.testing.assert_array_equal(rows, query(strategy(random_state=0), batch_size=4))


@pytest.mark.parametrize("kind", SCORING)
def test_utilities_are_scores_of_which_the_highest_is_chosen(kind) -> None:
    rows, utilities = query(kind(random_state=0), batch_size=4, return_utilities=True)
    for b in range(4):
        assert np.nanargmax(utilities[b]) == rows[b]
        assert np.isnan(utilities[b][rows[:b]]).all()
        assert np.isnan(utilities[b]).sum() == len(KNOWN) + b
    assert len(np.unique(utilities[0][UNKNOWN])) == len(UNKNOWN)


@pytest.mark.parametrize("kind", IN_TURN)
def test_without_scores_utilities_are_the_order_of_choice(kind) -> None:
    rows, utilities = query(kind(random_state=0), batch_size=4, return_utilities=True)
    want = np.zeros(40)
    want[KNOWN] = np.nan
    want[rows] = [4, 3, 2, 1]
    for b in range(4):
        np.testing.assert_array_equal(utilities[b], want)
        want[rows[b]] = np.nan


def test_an_offset_has_no_score_either() -> None:
    plain, scores = query(ours.DM2(batch="highest", random_state=0), batch_size=3, return_utilities=True)
    rows, utilities = query(ours.DM2(offset=1, batch="highest", random_state=0), batch_size=2, return_utilities=True)
    np.testing.assert_array_equal(rows, plain[1:])
    assert utilities[0][rows].tolist() == [2, 1]
    assert utilities[0][plain[0]] == 0
    assert scores[0][plain[0]] > scores[0][rows[0]]


@pytest.mark.parametrize("kind", ALL)
def test_one_candidate_a_budget_over_the_pool_and_no_label(kind) -> None:
    strategy = kind(random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows, utilities = query(strategy, candidates=[17], return_utilities=True)
        assert len(query(strategy, candidates=[17, 20, 31], batch_size=2)) == 2  # fewer than k
    assert rows.tolist() == [17]
    assert np.isfinite(utilities[0]).sum() == 1
    with pytest.warns(UserWarning, match="'batch_size=99' is larger than number of candidates"):
        assert sorted(query(strategy, batch_size=99)) == UNKNOWN.tolist()
    cold = SklearnClassifier(GaussianNB(), classes=[0, 1, 2])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*base_estimator' could not be fitted")  # theirs
        picks = [
            tuple(kind(random_state=seed).query(SMALL, np.full(40, np.nan), cold, batch_size=4)) for seed in range(4)
        ]
    assert all(len({*pick}) == 4 for pick in picks)
    assert len({*picks}) > 1  # not the first rows
    match = "there is no candidate: every sample of X has a label"
    with pytest.warns(UserWarning, match="larger than number"), pytest.raises(ValueError, match=match):
        query(strategy, y=LABELS.astype(float))


@pytest.mark.parametrize("kind", ALL)
def test_a_wrong_classifier(kind) -> None:
    reads = kind.__name__ not in NOT_READING
    if reads:
        with pytest.raises(TypeError, match="clf"):
            kind().query(SMALL, labels())
    for wrong in ("clf", GaussianNB()):
        with pytest.raises(TypeError, match="clf"):
            kind().query(SMALL, labels(), wrong)
    with pytest.raises(TypeError, match="fit_clf"):
        query(kind(), fit_clf="yes")
    with pytest.raises(ValueError, match="missing"):
        query(kind(), clf=classifier(-1))
    with pytest.raises(TypeError, match="clf_embedding_flag_name"):
        query(kind(clf_embedding_flag_name=3))


@pytest.mark.parametrize("kind", ALL)
def test_wrong_arguments(kind) -> None:
    for arguments in ({"batch_size": 0}, {"batch_size": 1.5}, {"return_utilities": "yes"}, {"candidates": [99]}):
        with pytest.raises((ValueError, TypeError)):
            query(kind(), **arguments)
    with pytest.raises(ValueError, match="random"):
        query(kind(random_state="seed"))


def test_a_fitted_classifier_and_weights() -> None:
    fitted = classifier().fit(SMALL, labels())
    rows = query(ours.Margin(random_state=0), batch_size=4)
    np.testing.assert_array_equal(rows, query(ours.Margin(random_state=0), clf=fitted, fit_clf=False, batch_size=4))
    weights = np.linspace(0.1, 5, 40)
    weighted = classifier().fit(SMALL, labels(), weights)
    expected = query(ours.Margin(random_state=0), clf=weighted, fit_clf=False, batch_size=4)
    np.testing.assert_array_equal(query(ours.Margin(random_state=0), sample_weight=weights, batch_size=4), expected)
    assert (rows != expected).any()


def test_dm2_is_algorithm_1_by_hand() -> None:
    clf = classifier().fit(SMALL, labels())
    rows, utilities = query(
        ours.DM2(k=4, lam=0.3, score="least-confidence", batch="highest", random_state=0),
        batch_size=5,
        return_utilities=True,
    )
    pool = SMALL[UNKNOWN]
    unit = pool / np.linalg.norm(pool, axis=1, keepdims=True)
    difference = unit[:, None] - unit
    distance = np.abs(difference).sum(2) + np.sqrt(np.square(difference).sum(2))
    np.fill_diagonal(distance, np.inf)
    mixed = 0.3 * pool + 0.7 * pool[distance.argsort(1)[:, :4]].mean(1)
    scores = 1 - clf.predict_proba(mixed).max(1)
    np.testing.assert_allclose(utilities[0][UNKNOWN], scores, atol=1e-12)
    np.testing.assert_array_equal(rows, UNKNOWN[(-scores).argsort()[:5]])


@pytest.mark.parametrize("kind", [ours.Margin, ours.LeastConfidence, ours.Entropy])
def test_a_batch_is_spread_over_the_samples_by_k_means(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    clf, seeds = classifier().fit(SMALL, labels()), []
    monkeypatch.setattr(
        "dm2_fast.adapters.skactiveml.choose", lambda *given, seed: seeds.append(seed) or choose(*given, seed=seed)
    )
    rows, utilities = query(kind(batch="kmeans", random_state=3), clf=clf, batch_size=3, return_utilities=True)
    asked = dm2_fast.Round.from_arrays(
        SMALL[UNKNOWN], probabilities=clf.predict_proba(SMALL[UNKNOWN]), seed=seeds[0], ties="random"
    )
    strategy = dm2_fast.strategies.get(kind._strategy)
    expected = dm2_fast.select_from(asked, 3, strategy, strategy.options(batch="kmeans")).indices.numpy()
    np.testing.assert_array_equal(rows, UNKNOWN[expected])
    np.testing.assert_array_equal(utilities[0][rows], range(3, 0, -1))
    assert rows.tolist() != query(kind(random_state=3), clf=clf, batch_size=3).tolist()


@pytest.mark.parametrize(
    ("kind", "method"),
    [(ours.Margin, "margin_sampling"), (ours.LeastConfidence, "least_confident"), (ours.Entropy, "entropy")],
)
@pytest.mark.parametrize(
    "clf",
    [
        classifier(),
        SklearnClassifier(LogisticRegression(), classes=[0, 1, 2]),
        ParzenWindowClassifier(classes=[0, 1, 2], class_prior=0.3),
    ],
    ids=["bayes", "logistic", "parzen"],
)
def test_uncertainty_is_that_of_scikit_activeml(kind, method, clf) -> None:
    theirs = UncertaintySampling(method, random_state=0).query(SMALL, labels(), clf, batch_size=6)
    np.testing.assert_array_equal(query(kind(random_state=0), clf=clf, batch_size=6), theirs)


def test_coreset_is_that_of_scikit_activeml() -> None:
    theirs = CoreSet(random_state=0).query(SMALL, labels(), batch_size=12)
    np.testing.assert_array_equal(query(ours.CoreSet(random_state=0), batch_size=12), theirs)
    np.testing.assert_array_equal(ours.CoreSet(random_state=0).query(SMALL, labels(), batch_size=12), theirs)


def test_badge_begins_as_that_of_scikit_activeml() -> None:
    theirs = TheirBadge(random_state=0).query(SMALL, labels(), classifier(), batch_size=1)
    np.testing.assert_array_equal(query(ours.Badge(random_state=0)), theirs)


def test_a_forest_and_integers() -> None:
    counts = rng.integers(0, 9, (40, 4))
    forest = SklearnClassifier(RandomForestClassifier(10, random_state=0), classes=[0, 1, 2])
    for kind in (ours.DM2, ours.Margin, ours.Badge, ours.CoreSet):
        rows = kind(random_state=0).query(counts, labels(), forest, batch_size=4)
        same = kind(random_state=0).query(counts.astype(np.float32), labels(), forest, batch_size=4)
        np.testing.assert_array_equal(rows, same)
    bytes_ = counts.astype(np.uint8)
    np.testing.assert_array_equal(
        ours.DM2(random_state=0).query(bytes_, labels(), forest, batch_size=4),
        ours.DM2(random_state=0).query(counts, labels(), forest, batch_size=4),
    )


def peak_of(work) -> int:
    """The most bytes that numpy held at once."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_the_pool_is_not_copied_and_utilities_are_made_on_request_only() -> None:
    x = np.tile(SMALL, (1000, 40))  # 51 MB
    y = np.full(len(x), np.nan)
    y[:9] = LABELS[:9]
    clf = classifier().fit(x[:9], y[:9])

    def ask(kind, **others):
        return lambda: kind(random_state=0).query(x, y, clf, fit_clf=False, batch_size=150, **others)

    utilities = 150 * len(x) * 8
    assert peak_of(ask(ours.Margin)) < x.nbytes / 2
    assert peak_of(ask(ours.CoreSet)) < 1.5 * x.nbytes  # its features are one copy
    assert peak_of(ask(ours.Margin, return_utilities=True)) > utilities > x.nbytes / 2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x):
        features = self.hidden(x.flatten(1)).relu()
        return self.head(features), features


def skorch() -> SkorchClassifier:
    torch.manual_seed(0)
    return SkorchClassifier(
        Net,
        criterion=nn.CrossEntropyLoss,
        forward_outputs={"proba": (0, nn.Softmax(dim=-1)), "emb": (1, None)},
        criterion_output_keys="proba",
        classes=list(range(10)),
        missing_label=-1,
        neural_net_param_dict={"max_epochs": 15, "lr": 0.5, "verbose": 0, "train_split": None},
    )


@pytest.mark.parametrize("shape", [(64,), (1, 8, 8)], ids=["flat", "images"])
def test_a_network_of_skorch_with_its_embedding(shape) -> None:
    x, y = X[:300].reshape(300, *shape), np.full(300, -1)
    y[start()[start() < 300]] = Y[start()[start() < 300]]
    clf = skorch().fit(x, y)
    net = clf.neural_net_.module_.eval()
    unknown = np.flatnonzero(y < 0)

    def logits_and_features(batch):
        with torch.no_grad():
            return net(batch)

    flag = {"extra_outputs": "emb"}
    labelled = x[y >= 0]
    for kind in (ours.DM2, ours.CoreSet, ours.Badge, ours.ProbCover, ours.CoreGCN, ours.UncertainGCN):
        strategy = kind(clf_embedding_flag_name=flag, missing_label=-1, random_state=0)
        rows, utilities = strategy.query(x, y, clf, fit_clf=False, batch_size=5, return_utilities=True)
        seed = seed_of(strategy, x, y)
        expected = dm2_fast.select(
            logits_and_features, x[unknown], 5, strategy._strategy, labelled=labelled, seed=seed, ties="random"
        )
        np.testing.assert_array_equal(rows, unknown[expected.indices])
        if kind is ours.DM2:
            assert utilities[0][rows].tolist() == [5, 4, 3, 2, 1]


def seed_of(strategy, x, y) -> int:
    """The seed that a query draws from its random state."""
    strategy._validate_data(x, y, None, 1, False, reset=True)
    return int(strategy.random_state_.randint(2**31 - 1))


def test_a_classifier_that_always_gives_features() -> None:
    class Both(SklearnClassifier):  # type: ignore[misc]  # of a package without types
        def predict_proba(self, x):
            return super().predict_proba(x), x[:, :2]

    clf = Both(GaussianNB(), classes=[0, 1, 2])
    rows = query(ours.CoreSet(random_state=0), clf=clf, batch_size=5)
    expected = ours.CoreSet(random_state=0).query(SMALL[:, :2], labels(), batch_size=5)
    np.testing.assert_array_equal(rows, expected)
    assert len(query(ours.DM2(random_state=0), clf=clf, batch_size=5)) == 5
    np.testing.assert_array_equal(
        query(ours.Margin(random_state=0), clf=clf, batch_size=5), query(ours.Margin(random_state=0), batch_size=5)
    )


def test_within_their_wrapper() -> None:
    wrapped = SubSamplingWrapper(ours.DM2(random_state=0), max_candidates=0.5, random_state=0)
    rows = query(wrapped, batch_size=3)
    assert len({*rows}) == 3
    assert set(rows) <= set(UNKNOWN)


@pytest.mark.parametrize("kind", [ours.DM2, ours.Margin, ours.CoreSet, ours.Badge])
def test_a_loop_on_the_digits(kind) -> None:
    y = np.full(len(POOL), np.nan)
    y[start()] = Y[start()]
    clf = SklearnClassifier(LogisticRegression(max_iter=200), classes=list(range(10)))
    strategy, accuracies = kind(random_state=0), []
    their_margin = UncertaintySampling("margin_sampling", random_state=0)
    for _ in range(ROUNDS):
        accuracies.append(clf.fit(X[POOL], y).score(X[TEST], Y[TEST]))
        rows = strategy.query(X[POOL], y, clf, batch_size=BUDGET)
        if kind is ours.Margin:
            np.testing.assert_array_equal(rows, their_margin.query(X[POOL], y, clf, batch_size=BUDGET))
        if kind is ours.CoreSet:
            np.testing.assert_array_equal(rows, CoreSet(random_state=0).query(X[POOL], y, batch_size=BUDGET))
        assert np.isnan(y[rows]).all()
        y[rows] = Y[rows]
    assert clf.fit(X[POOL], y).score(X[TEST], Y[TEST]) > accuracies[0]
    assert np.isfinite(y).sum() == len(start()) + ROUNDS * BUDGET
