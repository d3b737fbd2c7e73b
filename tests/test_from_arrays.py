from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from dm2_fast import DM2Config, Round, select, select_from, strategies

random = np.random.default_rng(0)
F, LABELLED = random.standard_normal((60, 6)), random.standard_normal((12, 6))
Y = np.arange(12) % 3
CLASSIFIER = LogisticRegression().fit(LABELLED, Y)
BINARY = LogisticRegression().fit(LABELLED, Y > 0)
P = CLASSIFIER.predict_proba(F)
EVERYTHING = {"labelled_features": LABELLED, "labels": Y, "head": (CLASSIFIER.coef_, CLASSIFIER.intercept_)}


def test_dm2_with_a_head_of_scikit_learn_is_algorithm_1_by_hand() -> None:
    picked = select_from(Round.from_arrays(F, **EVERYTHING), 5, options=DM2Config.published(k=4, lam=0.3))
    assert picked.neighbours is not None
    assert picked.scores is not None
    mixed = 0.3 * F + 0.7 * F[picked.neighbours.numpy()].mean(1)
    np.testing.assert_allclose(picked.scores, 1 - CLASSIFIER.predict_proba(mixed).max(1), atol=1e-12)


def test_a_binary_head_has_two_classes() -> None:
    asked = Round.from_arrays(F, head=(BINARY.coef_, BINARY.intercept_))
    np.testing.assert_allclose(asked.logits.softmax(1), BINARY.predict_proba(F), atol=1e-12)


QUICK = {"isal": strategies.isal.ISALConfig(steps=2, restarts=1), "vaal": strategies.vaal.VAALConfig(epochs=1)}


@pytest.mark.filterwarnings("ignore:vaal trains")
@pytest.mark.parametrize("name", strategies.names())
def test_every_strategy_works_from_features_and_head_or_says_what_it_lacks(name: str) -> None:
    lacks = dict.fromkeys(("bald", "entropy-bayesian", "batchbald", "qbc"), "model must have a dropout layer")
    lacks["ll4al"] = "this strategy reads layers before the logits, and the model has none"
    if name in lacks:
        with pytest.raises(ValueError, match=lacks[name]):
            select_from(Round.from_arrays(F, **EVERYTHING), 5, name)
        return
    picked = select_from(Round.from_arrays(F, **EVERYTHING), 5, name, QUICK.get(name))
    layer = torch.nn.Linear(6, 3, dtype=torch.float64)
    layer.load_state_dict({"weight": torch.tensor(CLASSIFIER.coef_), "bias": torch.tensor(CLASSIFIER.intercept_)})
    expected = select(layer, F, 5, name, QUICK.get(name), labelled=LABELLED, labels=torch.from_numpy(Y))
    assert torch.equal(picked.indices, expected.indices)


@pytest.mark.filterwarnings("ignore:vaal trains")
@pytest.mark.parametrize("name", strategies.names())
def test_without_a_head_what_needs_none_works_and_the_rest_says_so_first(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Round.from_arrays(F, probabilities=P, labelled_features=LABELLED, labels=Y)
    needs = {"dm2", "dm2-at", "alpha-mix", "bald", "entropy-bayesian", "noise-stability"}
    needs |= {"batchbald", "ent-gn", "exp-gn", "qbc", "isal", "ll4al"}
    if name in needs:
        monkeypatch.setattr("dm2_fast.share.knn", None)  # nothing is computed before
        inside = {"bald", "entropy-bayesian"}  # a linear head has no dropout
        remedy = (
            "there is no model: pass it and its samples" if name in inside else r"pass head=\(weight, bias\) to Round"
        )
        with pytest.raises(ValueError, match=remedy):
            select_from(asked, 5, name)
        return
    picked = select_from(asked, 5, name, QUICK.get(name))
    assert picked.prepared is None
    complete = Round.from_arrays(F, **EVERYTHING)
    assert torch.equal(picked.indices, select_from(complete, 5, name, QUICK.get(name)).indices)


def test_logits_alone_are_enough_for_uncertainty() -> None:
    asked = Round.from_arrays(logits=CLASSIFIER.decision_function(F), ids=[f"row {i}" for i in range(60)])
    picked = select_from(asked, 4, "entropy")
    expected = -(P * np.log(P)).sum(1)
    np.testing.assert_allclose(picked.scores, expected, atol=1e-12)
    assert picked.ids == [f"row {i}" for i in np.argsort(-expected, kind="stable")[:4]]
    with pytest.raises(ValueError, match="this strategy compares features: pass features= to Round.from_arrays"):
        select_from(asked, 4, "badge")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give features=, logits= or probabilities="),
        ({"logits": P, "probabilities": P}, "give logits= or probabilities=, not both"),
        ({"logits": P}, "logits look like probabilities"),
        ({"probabilities": 2 * P}, "probabilities must be in"),
        ({"features": F, "probabilities": P[1:]}, "features and logits must have as many rows, got 60 and 59"),
        ({"features": F, "labelled_features": LABELLED[:, 1:]}, "must have the 6 columns of features, got 5"),
        ({"features": F, "head": (CLASSIFIER.coef_[:, 1:], CLASSIFIER.intercept_)}, "must be .C, 6. for 6 features"),
        ({"features": F, "head": (CLASSIFIER.coef_, BINARY.intercept_)}, r"bias of the head must be \(3,\), got shape"),
        (
            {"probabilities": P, "head": (CLASSIFIER.coef_, CLASSIFIER.intercept_)},
            "head= reads features",
        ),
        ({"features": F, "ids": ["a"] * 60}, "ids must all be different, got 'a' for row 0 and row 1"),
        (
            {"logits": BINARY.decision_function(F)},
            r"logits must be \(m, C\), got shape .60,.: .*.\[0 \* z, z\], 1",
        ),
        ({"probabilities": P[:, 0]}, r"probabilities must be \(m, C\), got shape .60,.: .*np.stack.\[1 - p, p\], 1"),
        ({"probabilities": [P, P]}, r"got a list of 2 matrices: .* take the column of each label"),
        ({"features": F, "labels": Y - 1}, "labels must be from 0 on, got -1: leave samples without a label out"),
        (
            {"features": F, "labelled_features": LABELLED, "labels": Y[1:]},
            r"labels must be one for each of the 12 labelled samples, got shape \(11,\)",
        ),
        ({"features": F, "ids": ["a"]}, "ids must name each of the 60 rows, got 1"),
    ],
)
def test_arrays_that_do_not_fit_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Round.from_arrays(**given)


class Sparse:
    shape = (60, 6)

    def toarray(self) -> np.ndarray:
        return F


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"features": F, "head": CLASSIFIER},
            r"head is a LogisticRegression: pass \(classifier.coef_, classifier.int",
        ),
        (
            {"features": F, "head": make_pipeline(CLASSIFIER)},
            r"head is a Pipeline: pass lambda x: dm2_fast.logits_of\(",
        ),
        ({"features": F, "head": CLASSIFIER.coef_}, r"head is an ndarray: pass \(weight, bias\) of a linear layer"),
        ({"features": F, "head": (1, 2, 3)}, r"head is 3 values: pass \(weight, bias\)"),
        ({"features": F, "labels": ["a"] * 12}, "labels must be numbers of classes, got <U1: np.unique"),
        ({"features": F, "labels": Y + 0.5}, "labels must be integers, the numbers of classes from 0 on, got torch.fl"),
        ({"features": F, "ids": "a" * 60}, "ids must be one name after the other, got 'aaa"),
        ({"features": F, "ids": [["a"]] * 60}, "ids must be texts or numbers, got .'a'. for row 0"),
        ({"features": Sparse()}, "features is a Sparse: make it dense with .toarray"),
        ({"features": [["a", "b"]]}, "features must hold numbers only"),
    ],
)
def test_what_is_no_array_of_numbers_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Round.from_arrays(**given)


def test_labels_may_be_a_list_or_any_integers() -> None:
    first = select_from(Round.from_arrays(F, **EVERYTHING), 5, "alpha-mix")
    for labels in (Y.tolist(), Y.astype(np.uint8), torch.from_numpy(Y).int()):
        picked = select_from(Round.from_arrays(F, **(EVERYTHING | {"labels": labels})), 5, "alpha-mix")
        assert torch.equal(picked.indices, first.indices)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\], the classes of the model, got 9"):
        select_from(Round.from_arrays(F, **(EVERYTHING | {"labels": Y + 7})), 5, "alpha-mix")
