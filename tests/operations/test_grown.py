"""Rows that come to prepared ones: exact where a new index is, and audited as it is."""

from typing import Any

import pytest
import torch
from oracle import clusters
from torch import Tensor

import dm2_fast
from dm2_fast import Neighbours
from dm2_fast.operations import approximate
from dm2_fast.operations.audit import recall_of
from dm2_fast.operations.grown import Grown


def _same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_what_is_exact_is_that_of_a_new_index(backend: str) -> None:
    x = clusters(700)
    x[650:] = x[:50]  # equal rows among the old and the new
    x[3] = x[4]
    grown = Neighbours(x[:600], backend=backend).with_rows(x[600:640]).with_rows(x[640:].numpy())
    fresh = Neighbours(x, backend=backend)
    assert len(grown) == 700
    _same(grown.graph(6), fresh.graph(6))
    assert grown.audit == fresh.audit
    rows = torch.tensor([650, 0, 3, 699, 4])
    _same(grown.of(rows, 9), fresh.of(rows, 9))
    _same(grown.query(x[5:9] + 0.1, 9), fresh.query(x[5:9] + 0.1, 9))
    _same(grown.query(x[:2], 700), fresh.query(x[:2], 700))
    gone = torch.tensor([1, 4, 599, 600, 690])
    fewer = grown.without(gone)
    _same(fewer.of(rows[:3], 9), fresh.without(gone).of(rows[:3], 9))
    _same(fewer.graph(5), fresh.without(gone).graph(5))
    _same(grown.without(torch.arange(600)).graph(3), dm2_fast.knn(x[600:], 3, backend=backend))
    back = grown.without(torch.arange(600, 700))
    assert isinstance(back, Neighbours)
    _same(back.graph(3), dm2_fast.knn(x[:600], 3, backend=backend))


def test_an_approximate_graph_goes_on_and_measures_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_LEAST_ROWS", 50)
    monkeypatch.setattr(approximate, "_cells", lambda *_: 1)
    x = clusters(4000)
    base = Neighbours(x[:3600], recall=0.9)
    base.graph(10)
    prepared = base._index
    monkeypatch.setattr(Neighbours, "_prepared", lambda self: prepared)  # nothing is prepared again
    grown = base.with_rows(x[3600:]).without(torch.arange(100))
    assert isinstance(grown, Grown)
    distances, indices = grown.graph(10)
    exact = dm2_fast.knn(x[100:], 10)
    truth = recall_of(distances, exact[0])
    assert grown.audit is not None
    assert grown.audit.path == "approximate"
    assert grown.audit.bound <= float(truth.mean()) < 1
    assert abs(grown.audit.recall - float(truth.mean())) < 0.02
    _same((distances[3500:], indices[3500:]), (exact[0][3500:], exact[1][3500:]))
    assert (indices != torch.arange(3900)[:, None]).all()
    assert all(len(set(row)) == 10 for row in indices.tolist())
    assert (distances.diff(dim=1) >= 0).all()
    for i in range(0, 3900, 500):
        alone = dm2_fast.pairwise(x[100 + i][None], x[100 + indices[i, 3]][None])[0, 0]
        assert distances[i, 3] == alone


def test_the_audit_of_a_grown_graph_would_notice_a_worse_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_LEAST_ROWS", 50)
    x = clusters(4000)
    grown = Neighbours(x[:3000], recall=0.6).with_rows(x[3000:])
    grown.graph(10)
    assert grown.audit is not None
    before, of = grown.audit.recall, Grown.of
    monkeypatch.setattr(Grown, "_found", lambda self, rows, k: torch.where(
        rows[:, None] % 5 == 0, torch.inf, of(self, rows, k)[0]))  # fmt: skip
    grown.graph(10)
    assert 0.1 < before - grown.audit.recall < 0.3


@pytest.mark.parametrize(("x", "message"), [
    (torch.ones(3, 5), "x must have as many features as x"), (torch.ones(3, 48).double(), "dtype of x"),
    (torch.full((3, 48), torch.nan), "NaN or infinity in rows 0, 1, 2"),
])  # fmt: skip
def test_rows_that_do_not_match(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Neighbours(clusters(60)).with_rows(x)
    with pytest.raises(ValueError, match="at least one row"):
        Neighbours(clusters(60)).with_rows(clusters(60)[:5]).without(torch.arange(65))
    with pytest.raises(ValueError, match=r"rows must be in \[0, 64\], got 65 to 65"):
        Neighbours(clusters(60)).with_rows(clusters(60)[:5]).of(torch.tensor([65]), 2)
