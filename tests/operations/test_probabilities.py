import re

import numpy as np
import pytest
import torch

import dm2_fast
from dm2_fast import logits_of, uncertainty

P = torch.rand(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)


def test_logits_of_probabilities_give_them_back() -> None:
    torch.testing.assert_close(logits_of(P).softmax(1), P)
    torch.testing.assert_close(logits_of(P.numpy()), logits_of(P))
    assert logits_of(torch.eye(3)).isfinite().all()
    torch.testing.assert_close(logits_of(torch.eye(3)).softmax(1), torch.eye(3))
    torch.testing.assert_close(logits_of(1 - P, multilabel=True).sigmoid(), 1 - P)
    assert logits_of(torch.tensor([[0.0, 1.0]]), multilabel=True).isfinite().all()


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (P - 1, "in [0, 1], got others in row 0: are they logits already?"),
        (P / 2, "sum 1 in each row, got 0.5 in row 0: pass multilabel=True where each column is a label of its own"),
        (P[0], "must be (n, C), got shape (5,)"),
        (P[:, :, None], "take the column of each label"),
    ],
)
def test_what_are_no_probabilities_is_refused(p: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        logits_of(p)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_probabilities_are_not_taken_for_logits(classes: int, dtype: torch.dtype) -> None:
    p = torch.randn(50, classes, generator=torch.Generator().manual_seed(1)).softmax(1).to(dtype)
    tolerated = max(1e-4, 4 * classes**0.5 * torch.finfo(dtype).eps)
    assert (p.double().sum(1) - 1).abs().max() < tolerated
    with pytest.raises(ValueError, match=r"logits look like probabilities, .*dm2_fast.logits_of\(probabilities\)"):
        uncertainty(p)
    assert len(uncertainty(p, these_are_logits=True)) == 50
    p[-1, 0] = -0.5  # one row that is none is enough
    assert len(uncertainty(p)) == 50


KINDS = ("least-confidence", "entropy", "margin")


@pytest.mark.parametrize("over", ["mean", "max"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_uncertainty_of_labels_is_that_of_their_sigmoids(kind: str, over: str) -> None:
    z = np.random.default_rng(0).normal(0, 4, (200, 7))
    p = 1 / (1 + np.exp(-z))
    each = {
        "least-confidence": np.minimum(p, 1 - p),
        "entropy": -(p * np.log(p) + (1 - p) * np.log(1 - p)),
        "margin": -np.abs(2 * p - 1),
    }[kind]
    expected = each.mean(1) if over == "mean" else each.max(1)
    got = uncertainty(torch.from_numpy(z), kind, multilabel=over)  # type: ignore[arg-type]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10, atol=1e-12)
    half = uncertainty(torch.from_numpy(z).float(), kind, multilabel=over)  # type: ignore[arg-type]
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half.numpy(), expected, atol=1e-6)


def test_confident_labels_keep_values_of_their_own() -> None:
    z = torch.tensor([[40.0], [60.0], [-90.0]])
    for kind in KINDS[:2]:
        scores = uncertainty(z, kind, multilabel="max")  # type: ignore[arg-type]
        assert scores[0] > scores[1] > scores[2] > 0


def test_every_uncertainty_strategy_serves_labels_and_the_others_say_that_they_do_not() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.2), torch.nn.ReLU(), torch.nn.Linear(8, 5))
    x = torch.randn(40, 6)
    with torch.no_grad():
        p = model.eval()(x).sigmoid()
    expected = torch.minimum(p, 1 - p).mean(1)
    picked = dm2_fast.select(model, x, 5, "least-confidence", multilabel="mean")
    assert picked.scores is not None
    torch.testing.assert_close(picked.scores, expected)
    for lam in (1.0, 0.3):  # lam = 1 is least confidence
        dm2 = dm2_fast.select(model, x, 5, options=dm2_fast.DM2Config.published(k=3, lam=lam), multilabel="mean")
        assert dm2.scores is not None
        assert torch.equal(dm2.scores, picked.scores) == (lam == 1)
    labels = torch.arange(5)
    for name in ("bald", "entropy-bayesian", "badge", "alpha-mix", "noise-stability"):
        with pytest.raises(ValueError, match="this strategy takes one class per sample, by a softmax"):
            dm2_fast.select(model, x, 5, name, labelled=x[:5], labels=labels, multilabel="max")
    with pytest.raises(ValueError, match="multilabel must be one of mean, max, or None for one class, got 'sum'"):
        dm2_fast.select(model, x, 5, multilabel="sum")  # type: ignore[arg-type]
    one = torch.nn.Linear(6, 1)
    dm2_fast.select(one, x, 5, multilabel="mean")
    with pytest.raises(ValueError, match="at least two classes, got shape .*for one sigmoid, pass multilabel='mean'"):
        dm2_fast.select(one, x, 5)
