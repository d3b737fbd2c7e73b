"""An approximate graph within a budget of memory is that of `Neighbours`, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
from oracle import clusters
from torch import Tensor

import dm2_fast
from dm2_fast import Neighbours
from dm2_fast.operations import approximate, graph_in_parts
from dm2_fast.operations.graph_in_parts import graph_within
from dm2_fast.operations.mapped import is_mapped

M = 3000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_LEAST_ROWS", 50)
    monkeypatch.setattr(approximate, "_cells", lambda *_: 2)  # few, so that the graph is not exact


@pytest.mark.parametrize("memory", ["3MB", "1GB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_budget_gives_the_same_bits(dtype: torch.dtype, memory: str) -> None:
    x = clusters(M, seed=M).to(dtype)
    x[5] = 0
    if dtype in (torch.float32, torch.float64):
        x[9] *= 2.0**110  # with two scales
    index = Neighbours(x, recall=0.8)
    expected, within = index.graph(10), graph_within(x, 10, "literal", 0.8, memory)
    found = within.graph(10)
    assert within.audit == index.audit
    assert within.audit is not None
    assert within.audit.path == "approximate"
    assert within.audit.recall < 1
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])
    assert is_mapped(found[0])
    assert torch.equal(dm2_fast.knn(x, 10, recall=0.8, memory=memory)[1], expected[1])


def test_of_many_rows_longer_lists_and_more_joins_find_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many cells; four times as many rows are two entries and a join more, for both graphs."""
    x, join = clusters(M, seed=M), Neighbours._join
    found: list[float] = []
    joined: list[int] = []

    def counted(self: Neighbours, report: Any) -> None:
        joined.append(len(found))
        join(self, report)

    monkeypatch.setattr(Neighbours, "_join", counted)
    for many in (M, M // 4):
        monkeypatch.setattr(approximate, "_MANY_ROWS", many)
        index, within = Neighbours(x, recall=0.5), graph_within(x, 10, "literal", 0.5, "1GB")
        assert torch.equal(index.graph(10)[1], within.graph(10)[1])
        assert index._slots == within._slots == (14 if many == M else 16)
        assert index.audit == within.audit
        assert index.audit is not None
        found.append(index.audit.recall)
    assert found[0] < found[1] < 1
    assert [joined.count(case) for case in range(2)] == [3, 4]


def test_more_steps_and_the_exact_search_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_cells", lambda *_: 1)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((M, 200), np.float32))
    for x, recall, path in ((clusters(M, seed=M), 0.985, "approximate"), (noise, 0.99, "exact")):
        index, within = Neighbours(x, "l1", recall), graph_within(x, 7, "l1", recall, "20MB")
        expected, found = index.graph(7), within.graph(7)
        assert within.audit == index.audit
        assert within.audit is not None
        assert within.audit.path == path
        assert index._steps > 1 or path == "exact"
        assert torch.equal(found[1], expected[1])
        assert torch.equal(found[0], expected[0])


def test_rows_that_met_too_few_others_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clusters(400, seed=400)
    measured = graph_in_parts.GraphInParts._measured

    def fewer(self: Any, rows: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
        candidates[rows % 7 == 0, 3:] = -1
        return measured(self, rows, candidates, k)

    monkeypatch.setattr(graph_in_parts.GraphInParts, "_measured", fewer)
    found, exact = graph_within(x, 10, "literal", 0.5, "5MB").graph(10), dm2_fast.knn(x, 10)
    assert torch.equal(found[1][::7], exact[1][::7])
    assert torch.equal(found[0][::7], exact[0][::7])


def test_exact_neighbours_of_some_rows() -> None:
    x, rows = clusters(M, seed=M), torch.tensor([2999, 4, 5, 17, 0])
    found, expected = graph_within(x, 8, "rms", 0.9, "10MB").of(rows, 8), dm2_fast.knn(x, 8, "rms")
    assert torch.equal(found[1], expected[1][rows])
    assert torch.equal(found[0], expected[0][rows])


def test_too_little_memory_names_the_least_that_suffices() -> None:
    x = clusters(M, seed=M)
    with pytest.raises(ValueError, match=r"memory must be at least (\d+)MB for approximate neighbours") as error:
        dm2_fast.knn(x, 10, recall=0.9, memory="1MB")
    least = int(str(error.value).split("at least ")[1].split("MB")[0])
    dm2_fast.knn(x, 10, recall=0.9, memory=f"{least}MB")
    with pytest.raises(ValueError, match="at least"):
        dm2_fast.knn(x, 10, recall=0.9, memory=f"{least - 1}MB")
    with pytest.raises(RuntimeError, match="C\\+\\+ backend"):
        dm2_fast.knn(x, 10, recall=0.9, memory="1GB", backend="torch")
    with pytest.raises(ValueError, match=r"k must be in \[1, 2999\]"):
        dm2_fast.knn(x, M, recall=0.9, memory="1GB")
