"""DM2 with approximate neighbours: nearly the choice of the exact ones, and it says how good they are."""

import numpy as np
import pytest
import torch
from oracle import clusters
from torch import Tensor, nn

from dm2_fast import DM2Config, select
from dm2_fast.operations import approximate, memory

M, BUDGET = 4000, 60


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(approximate, "_LEAST_ROWS", 50)
    monkeypatch.setattr(approximate, "_cells", lambda *_: 2)  # few, so that the graph is not exact
    return clusters(M, 32)


def head() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(32, 6)


@pytest.mark.parametrize("options", [{}, {"mix": "random", "lam": "beta", "offset": 20}, {"mix": "weighted"}])
def test_the_highest_scores_are_those_of_exact_neighbours(pool: Tensor, options: dict[str, object]) -> None:
    exact = select(head(), pool, BUDGET, options=DM2Config(**options))
    near = select(head(), pool, BUDGET, options=DM2Config(recall=0.5, **options))
    assert exact.audit is None
    assert near.audit is not None
    assert near.audit.path == "approximate"
    assert near.scores is not None
    assert exact.scores is not None
    assert near.neighbours is not None
    assert not torch.equal(near.neighbours, exact.neighbours)
    first = set(near.scores.sort(descending=True, stable=True).indices[: BUDGET + DM2Config(**options).offset].tolist())
    rows = torch.tensor(sorted(first))
    torch.testing.assert_close(near.scores[rows], exact.scores[rows], rtol=0, atol=1e-6)
    assert torch.equal(near.neighbours[near.indices], exact.neighbours[near.indices])
    assert len(set(near.indices.tolist()) & set(exact.indices.tolist())) >= 0.95 * BUDGET
    assert "exact" in near.seconds


def test_a_pool_that_is_searched_exactly_anyway_gives_the_exact_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((300, 32), np.float32))
    exact, near = (select(head(), x, 20, options=DM2Config(recall=recall)) for recall in (None, 0.9))
    assert torch.equal(near.indices, exact.indices)
    assert near.scores is not None
    assert exact.scores is not None
    assert torch.equal(near.scores, exact.scores)
    assert near.audit is not None
    assert near.audit.path == "exact"


def test_recall_must_be_a_share() -> None:
    with pytest.raises(ValueError, match="recall must be between 0 and 1"):
        DM2Config(recall=1.5)


def test_a_long_search_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MILLION_MINUTES", 1e12)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((300, 32), np.float32))
    with pytest.warns(UserWarning, match=r"300 rows of 32 features may take \d+ minutes: DM2Config\(recall=0.95\)"):
        select(head(), x, 20)
