"""Graphs that measure themselves, and exact queries of rows that are prepared once."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from oracle import clusters
from oracle import knn as oracle_knn
from torch import Tensor

import dm2_fast
from dm2_fast import Neighbours
from dm2_fast.operations import approximate, cpp
from dm2_fast.operations.audit import Audit, recall_of

M = 6000


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    for got, want in zip(a, b, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Approximate graphs of pools that are too small for them to pay."""
    monkeypatch.setattr(approximate, "_LEAST_ROWS", 50)


def audited(x: Any, k: int = 10, recall: float = 0.9, **options: Any) -> tuple[tuple[Tensor, Tensor], Audit]:
    index = Neighbours(x, recall=recall, **options)
    graph = index.graph(k)
    assert index.audit is not None
    return graph, index.audit


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("metric", ["literal", "rms", "l1", "l2"])
def test_a_graph_is_one_of_true_distances_and_as_good_as_it_says(metric: Any) -> None:
    x = clusters(M)
    exact = dm2_fast.knn(x, 10, metric)
    (distances, indices), audit = audited(x, metric=metric)
    assert audit.path == "approximate"
    truth = recall_of(distances, exact[0])
    assert truth.mean() >= 0.9
    assert audit.bound <= truth.mean()
    assert abs(audit.recall - truth.mean()) < 0.02  # four standard errors of 500 rows
    assert (indices != torch.arange(M)[:, None]).all()
    assert all(len(set(row)) == 10 for row in indices.tolist())
    pairs = [(i, j) for i in range(0, M, 500) for j in range(10)]
    for i, j in pairs:  # exact distances, bit for bit: of the two rows alone
        alone = dm2_fast.pairwise(x[i : i + 1], x[indices[i, j]][None], metric)[0, 0]
        assert distances[i, j] == alone
    assert (distances.diff(dim=1) >= 0).all()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_and_layout_has_its_graph(dtype: torch.dtype) -> None:
    x = clusters(2000).to(dtype)
    graph, audit = audited(x)
    assert audit.path == "approximate"
    exact = dm2_fast.knn(x, 10)
    assert graph[0].dtype == exact[0].dtype
    assert recall_of(graph[0], exact[0]).mean() >= 0.9
    same(audited(x.T.contiguous().T)[0], graph)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("k", [1, 3, 25])
def test_threads_do_not_change_a_bit_of_a_graph(k: int) -> None:
    x = clusters(3000)
    x[100:900] = x[100]  # equal rows, for ties
    want = audited(x, k, num_threads=1)
    for threads in (2, 3, 7):
        graph, audit = audited(x, k, num_threads=threads)
        same(graph, want[0])
        assert audit == want[1]


def test_rows_that_threads_push_from_a_list_meet_all_the_same() -> None:
    from dm2_fast import _C

    x = np.random.default_rng(0).standard_normal((3000, 100), np.float32)
    ids = np.arange(3000)
    index = _C.IndexFloat(x, np.ones(3000, np.float32), ids, 0.5, 0.5, num_threads=4)

    def graph(num_threads: int) -> np.ndarray:
        lists = _C.GraphFloat(index, ids, 7)
        for start, stop in ((0, 1), (1, 3)):
            lists.probe(start, stop, num_threads=num_threads)
            lists.join(num_threads=num_threads)
        found = np.empty((3000, 7), np.float32), np.empty((3000, 7), np.int64)
        lists.nearest(ids, index.places(), *found, num_threads=num_threads)
        return found[1]

    want = graph(1)
    assert all(np.array_equal(graph(8), want) for _ in range(10))


@pytest.mark.usefixtures("small")
def test_instruction_sets_do_not_change_what_is_met() -> None:
    from dm2_fast import _C
    from dm2_fast.operations.knn import UnitRows, weights

    x = clusters(2000)
    rows, ids = UnitRows(x, "x"), np.arange(2000)
    found = []
    for isa in ("auto", "generic"):
        index = _C.IndexFloat(x.numpy(), rows.scale.numpy(), ids, *weights("literal", 48), num_threads=2, isa=isa)
        graph = _C.GraphFloat(index, ids, 14)
        graph.probe(0, 5, num_threads=2)
        graph.join(num_threads=2)
        found.append((np.empty((2000, 10), np.float32), np.empty((2000, 10), np.int64)))
        graph.nearest(ids, index.places(), *found[-1], num_threads=2)
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_array_equal(found[0][0], found[1][0])


@pytest.mark.usefixtures("small")
def test_more_steps_improve_the_lists() -> None:
    x = clusters(M)
    exact = dm2_fast.knn(x, 10)[0]
    index = Neighbours(x, recall=0.01)
    before = index.graph(10)[0]
    for _ in range(3):
        index._step(index._ranks + 4)
        after = index.graph(10)[0]
        assert recall_of(after, exact).mean() >= recall_of(before, exact).mean() - 1e-5
        assert (after > before).double().mean() < 1e-3  # where the codes order two rows otherwise
        before = after
    assert recall_of(before, exact).mean() > 0.98


@pytest.mark.usefixtures("small")
def test_what_a_first_step_left_says_how_far_the_next_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_JOINED", 1e3)  # far too hopeful: one cell a row
    monkeypatch.setattr(approximate, "_HOPELESS", 1e3)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((6000, 12), np.float32))
    index = Neighbours(x, recall=0.97)
    graph = index.graph(10)
    assert index.audit is not None
    assert index.audit.path == "approximate"
    assert index._steps == 2
    assert recall_of(graph[0], dm2_fast.knn(x, 10)[0]).mean() >= 0.97


@pytest.mark.usefixtures("small")
def test_neighbours_that_lie_in_far_cells_ask_for_more_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cell of each neighbour is in the order of the cells, against the distances of all centres."""
    x = clusters(3000)
    index = Neighbours(x, recall=0.9)
    index._begin(10)
    rows, others = torch.arange(0, 3000, 100), torch.arange(1, 3001, 100)
    ranks = index._ranks_of(rows, others)
    places, first = torch.from_numpy(index._prepared().places()), index._prepared().cells()
    centres = torch.stack([x[places[a:b]].mean(0) for a, b in itertools.pairwise(first.tolist())])
    centres /= centres.norm(dim=1, keepdim=True)
    place = places.argsort()
    cell = np.searchsorted(first, place[others].numpy(), side="right") - 1
    unit = x[rows] / x[rows].norm(dim=1, keepdim=True)
    order = torch.cdist(unit, centres, p=1).argsort(1).argsort(1)
    assert np.abs(ranks - order[torch.arange(30), cell].numpy()).mean() < 2  # centres are rounded, and of unit rows
    assert 0 <= ranks.min() <= ranks.max() < len(first) - 1
    few, many = (approximate._cells(np.full(100, rank), 0.9, 2.0) for rank in (2, 20))
    assert (few, many) == (3, 21)
    monkeypatch.setattr(approximate, "_most_cells", lambda rows: 0)
    graph, audit = audited(x)
    assert audit.path == "exact"
    assert "would have to meet" in audit.why
    same(graph, dm2_fast.knn(x, 10))


def test_exact_graphs_are_those_of_knn() -> None:
    x = clusters(1000)
    index = Neighbours(x)
    same(index.graph(7), dm2_fast.knn(x, 7))
    assert index.audit == Audit(1.0, 1.0, 0.0, 1000, "exact", "exact neighbours were asked for")
    same(dm2_fast.knn(x, 7, recall=0.9), dm2_fast.knn(x, 7))  # small: exact


@pytest.mark.usefixtures("small")
def test_noise_is_searched_exactly() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((4000, 256), np.float32))
    graph, audit = audited(x, recall=0.99)
    assert audit.path == "exact"
    assert "reached a recall of" in audit.why
    same(graph, dm2_fast.knn(x, 10))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["equal", "zeros", "copies", "outlier", "scales", "few columns", "one cell"])
def test_degenerate_rows_reach_the_recall(kind: str) -> None:
    x = clusters(3000)
    if kind == "equal":
        x[:] = x[0]
    elif kind == "zeros":
        x[::3] = 0
    elif kind == "copies":
        x = x[torch.arange(3000) % 40]
    elif kind == "outlier":
        x[7, 3] = 1e9
    elif kind == "scales":
        x *= torch.tensor([1e-30, 1.0, 1e30]).repeat(1000)[:, None]
    elif kind == "few columns":
        x = x[:, :3].contiguous()
    else:
        x = x[:200]
    exact = dm2_fast.knn(x, 10)
    (distances, indices), audit = audited(x, recall=0.9)
    assert recall_of(distances, exact[0]).mean() >= 0.9
    assert (indices != torch.arange(len(x))[:, None]).all()
    assert audit.bound >= 0.9


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("m", [1, 2, 40, 3000])
def test_queries_find_their_exact_neighbours_without_preparing_the_rows_again(m: int, dtype: torch.dtype) -> None:
    x, k = clusters(m).to(dtype), min(5, m)
    index = Neighbours(x)
    for queries in (clusters(7, seed=1).to(dtype), clusters(1, seed=2).to(dtype), x[:1]):
        same(index.query(queries, k), dm2_fast.knn(x, k, queries=queries))
    prepared = index._index
    index.query(x[:1], 1)
    assert index._index is prepared


def test_some_rows_find_their_exact_neighbours() -> None:
    x = clusters(3000)
    x[5:20] = x[4]
    rows = torch.tensor([4, 5, 2999, 17, 0])
    distances, indices = dm2_fast.knn(x, 8)
    same(Neighbours(x).of(rows, 8), (distances[rows], indices[rows]))


@pytest.mark.usefixtures("small")
def test_rows_that_leave_are_nobodys_neighbours_and_nothing_is_prepared_again() -> None:
    x = clusters(M)
    index = Neighbours(x, recall=0.9)
    index.graph(10)
    keep = torch.ones(M, dtype=torch.bool)
    gone = torch.from_numpy(np.random.default_rng(2).choice(M, 900, replace=False))
    keep[gone[:500]] = False
    fewer = index.without(gone[:500])
    assert fewer._index is index._index
    left = torch.nonzero(keep)[:, 0]
    keep[gone[500:]] = False
    fewer = fewer.without(torch.searchsorted(left, gone[500:]))
    assert fewer._index is index._index
    assert len(fewer) == M - 900
    exact = dm2_fast.knn(x[keep], 10)
    distances, indices = fewer.graph(10)
    assert fewer.audit is not None
    assert fewer.audit.path == "approximate"
    assert recall_of(distances, exact[0]).mean() >= 0.9
    assert (indices != torch.arange(M - 900)[:, None]).all()
    rows = torch.arange(0, M - 900, 97)
    assert torch.equal(distances[0, 0], dm2_fast.pairwise(x[keep][:1], x[keep][indices[0, 0]][None])[0, 0])
    same(fewer.of(rows, 10), (exact[0][rows], exact[1][rows]))
    same(fewer.query(x[:9] + 1, 4), dm2_fast.knn(x[keep], 4, queries=x[:9] + 1))
    same(Neighbours(x).without(gone).graph(5), dm2_fast.knn(x[keep], 5))
    assert len(index) == M


@pytest.mark.usefixtures("small")
def test_rows_whose_neighbours_have_all_left_get_others() -> None:
    x = clusters(3000)
    index = Neighbours(x, recall=0.05)
    met = index.graph(10)[1][:40]
    far = index.without(met.unique())
    distances, indices = far.graph(10)
    assert distances.isfinite().all()
    assert int(indices.max()) < len(far)
    assert all(len(set(row)) == 10 for row in indices.tolist())


@pytest.mark.usefixtures("small")
def test_the_audit_would_notice_a_graph_that_is_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows it looks at stand for all: what is wrong with the first tenth of them costs a tenth of the recall."""
    x = clusters(M)
    spoilt = torch.arange(M) < M // 10
    nearest = Neighbours._nearest

    def spoil(self: Neighbours, places: Tensor, lines: Tensor, distances: Tensor, indices: Tensor) -> None:
        nearest(self, places, lines, distances, indices)
        rows = torch.from_numpy(self._prepared().places())[places]
        distances[lines[spoilt[rows]]] = torch.inf

    _, audit = audited(x, recall=0.8)
    monkeypatch.setattr(Neighbours, "_nearest", spoil)
    _, worse = audited(x, recall=0.8)
    assert audit.path == worse.path == "approximate"
    assert 0.05 < audit.recall - worse.recall < 0.15
    assert 0.05 < worse.below_half < 0.15


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"recall": 0.0}, ValueError, "recall must be between 0 and 1"),
        ({"recall": 1.0}, ValueError, "recall must be between 0 and 1"),
        (
            {"recall": 0.9, "backend": "torch"},
            RuntimeError,
            "recall= needs features on the CPU and the C\\+\\+ backend",
        ),
        ({"recall": 0.9, "queries": clusters(5)}, ValueError, "leave out queries, or recall"),
        ({"recall": 0.9, "k": 60}, ValueError, r"k must be in \[1, 59\] for 60 rows, got 60"),
        ({"recall": 0.9, "metric": "cosine"}, ValueError, "metric must be one of"),
    ],
)
def test_arguments_out_of_range_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dm2_fast.knn(**({"x": clusters(60), "k": 3} | change))


def test_queries_that_do_not_match_and_rows_that_are_not_there() -> None:
    index = Neighbours(clusters(60))
    with pytest.raises(ValueError, match="queries must have as many features as x"):
        index.query(clusters(5, 3), 2)
    with pytest.raises(ValueError, match=r"k must be in \[1, 60\]"):
        index.query(clusters(5), 61)
    with pytest.raises(ValueError, match=r"rows must be in \[0, 59\], got 3 to 60"):
        index.without(torch.tensor([3, 60]))
    with pytest.raises(ValueError, match="at least one row"):
        index.without(torch.arange(60))


def test_the_torch_backend_has_exact_neighbours_too() -> None:
    x = clusters(60)
    index = Neighbours(x, backend="torch")
    want = oracle_knn(x.numpy(), 4)[1]
    np.testing.assert_array_equal(index.graph(4)[1].numpy(), want)
    np.testing.assert_array_equal(index.of(torch.tensor([3, 50]), 4)[1].numpy(), want[[3, 50]])
    same(index.query(x[:3], 4), dm2_fast.knn(x, 4, queries=x[:3], backend="torch"))


@pytest.mark.slow
def test_the_bound_holds_over_many_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 graphs of different rows, measured on samples of 100: at most 5 % of the bounds are above the truth."""
    monkeypatch.setattr(approximate, "_LEAST_ROWS", 50)
    monkeypatch.setattr(approximate, "_SAMPLE", 100)
    monkeypatch.setattr(approximate, "_cells", lambda *_: 2)
    above = 0
    for seed in range(300):
        x = clusters(2500, 24, seed)
        (distances, _), audit = audited(x, recall=0.5, seed=seed)
        assert audit.path == "approximate"
        above += int(audit.bound > recall_of(distances, dm2_fast.knn(x, 10)[0]).mean())
    assert above <= 15


def test_rows_are_prepared_once_for_all_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    prepared = cpp.prepared

    def counting(dtype: torch.dtype) -> Any:
        kind, graph = prepared(dtype)

        def make(*arguments: Any, **options: Any) -> Any:
            made.append(kind(*arguments, **options))
            return made[-1]

        return make, graph

    monkeypatch.setattr(cpp, "prepared", counting)
    index = Neighbours(torch.rand(30, 4, generator=torch.Generator().manual_seed(0)), backend="cpp")
    for seed in range(3):
        index.query(torch.rand(1, 4, generator=torch.Generator().manual_seed(seed)), 2)
    index.of(torch.tensor([3, 1]), 2)
    index.without(np.array([5])).query(torch.ones(1, 4), 2)
    assert len(made) == 1


def test_a_list_of_queries_takes_the_dtype_of_the_rows() -> None:
    x = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
    queries = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    expected = dm2_fast.knn(x, 2, queries=queries)
    for distances, indices in (Neighbours(x).query(queries.tolist(), 2), dm2_fast.knn(x, 2, queries=queries.tolist())):
        assert torch.equal(distances, expected[0])
        assert torch.equal(indices, expected[1])
