"""An approximate graph over several processes is that of one, bit for bit, and so is what is chosen with it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracle import clusters
from torch import Tensor, nn

import dm2_fast
from dm2_fast import DM2Config, Neighbours
from dm2_fast.distributed import ring
from dm2_fast.distributed.acquire import select
from dm2_fast.distributed.group import Group
from dm2_fast.operations import approximate
from dm2_fast.operations.audit import Audit
from dm2_fast.operations.graph_in_parts import GraphInParts

Call = Callable[..., list[Any]]
M = 3000


def _small() -> None:
    """In each process: approximate graphs of pools that are too small for them to pay, and not exact."""
    approximate._LEAST_ROWS = 50
    approximate._cells = lambda *_: 1


@pytest.fixture(autouse=True)
def _small_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_LEAST_ROWS", 50)
    monkeypatch.setattr(approximate, "_cells", lambda *_: 1)


def _graph(group: Any, x: Tensor, k: int, recall: float, options: dict[str, Any]) -> tuple[Tensor, Tensor, Any, Tensor]:
    _small()
    index = GraphInParts(x, "literal", recall, lambda k: ring.knn(x, k, group=group), Group(group), **options)
    distances, indices = index.graph(k)
    return distances, indices, index.audit, index.of(torch.tensor([7, 3, 1500]), 4)[1]


def _check(
    call: Call, x: Tensor, sizes: list[int], path: str = "approximate", recall: float = 0.9, **options: Any
) -> Audit:
    found = call(_graph, [(part.clone(), 10, recall, options) for part in x.split(sizes)])
    index = Neighbours(x, recall=recall, num_threads=1)
    distances, indices = index.graph(10)
    assert index.audit is not None
    assert index.audit.path == path
    for *_, audit, some in found:
        assert audit == index.audit
        assert torch.equal(some, index.of(torch.tensor([7, 3, 1500]), 4)[1])
    assert torch.equal(torch.cat([one[1] for one in found]), indices)
    assert torch.equal(torch.cat([one[0] for one in found]), distances)
    return index.audit


@pytest.mark.parametrize(
    "sizes", [[M], [1500, 1500], [1000, 1000, 1000], [100, 1900, 1000], [2999, 0, 1], [0, 1800, 0, 1200]]
)
def test_the_graph_is_that_of_one_process(in_processes: Call, sizes: list[int]) -> None:
    assert _check(in_processes, clusters(M, seed=M), sizes).recall < 1


def test_more_steps_threads_and_the_exact_search_after_all(in_processes: Call) -> None:
    assert "after 2 cells" in _check(in_processes, clusters(M, seed=M), [1000, 2000], recall=0.985, num_threads=3).why
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((M, 200), np.float32))
    _check(in_processes, noise, [1000, 500, 1500], "exact", recall=0.99)


def _within(group: Any, x: Tensor, memory: str) -> tuple[Tensor, Tensor] | str:
    _small()
    try:
        return ring.knn(x, 10, recall=0.9, group=group, memory=memory)
    except ValueError as error:
        return str(error)


def test_a_budget_of_each_process(in_processes: Call) -> None:
    x = clusters(M, seed=M)
    little = in_processes(_within, [(part, "1MB") for part in x.split([100, 1900, 1000])])
    assert len(set(little)) == 1
    assert "in each process for approximate neighbours of 3000 rows" in little[0]
    least = little[0].split("at least ")[1].split("MB")[0]
    found = in_processes(_within, [(part, f"{least}MB") for part in x.split([100, 1900, 1000])])
    distances, indices = Neighbours(x, recall=0.9).graph(10)
    assert torch.equal(torch.cat([one[1] for one in found]), indices)
    assert torch.equal(torch.cat([one[0] for one in found]), distances)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point(in_processes: Call, dtype: torch.dtype) -> None:
    _check(in_processes, clusters(M, seed=M).to(dtype), [1200, 1800])


def test_rows_beyond_a_float_in_one_process_and_equal_rows(in_processes: Call) -> None:
    x = clusters(M, seed=M)
    x[100:900] = x[100]
    x[10:20] *= 1e33
    x[5] = 0
    _check(in_processes, x, [500, 2500])


def _knn(group: Any, x: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    _small()
    return ring.knn(x, 10, group=group, recall=0.9, **options)


def test_from_python(in_processes: Call) -> None:
    x, expected = clusters(M, seed=M), dm2_fast.knn(clusters(M, seed=M), 10, recall=0.9)
    found = in_processes(_knn, [(part, {}) for part in x.split([1000, 2000])])
    assert torch.equal(torch.cat([one[1] for one in found]), expected[1])
    assert torch.equal(torch.cat([one[0] for one in found]), expected[0])
    with pytest.raises(ValueError, match="leave out recall, or the other two"):
        in_processes(_knn, [(part, {"unit_rows": False}) for part in x.split(1500)])
    x[2000, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in row 500"):
        in_processes(_knn, [(part, {}) for part in x.split(1500)])


def _select(group: Any, model: nn.Module, pool: Any, options: DM2Config, more: dict[str, Any]) -> Any:
    _small()
    return select(model, pool, 5, "dm2", options, group=group, **more)


@pytest.mark.parametrize("options", [
    DM2Config(recall=0.7, k=5, score="least-confidence"), DM2Config(recall=0.7, k=5, space="features"),
    DM2Config(recall=0.7, k=5, space="features", batch="spread", mix="weighted", lam="beta", offset=3),
    DM2Config(recall=0.7, k=5, batch="highest", mix="random"),
])  # fmt: skip
@pytest.mark.parametrize("processes", [2, 3])
def test_the_choice_is_that_of_one_process(in_processes: Call, options: DM2Config, processes: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 4))
    pool, more = clusters(2000, seed=2000), {"batch_size": 64, "seed": 3, "row_ids": np.arange(2000)[::-1].copy()}
    _check_choice(in_processes, processes, model, pool, options, more)


def test_processes_without_rows(in_processes: Call) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 4))
    for space in ("input", "features"):
        options = DM2Config(recall=0.7, k=5, space=space)
        _check_choice(in_processes, 4, model, clusters(1000, seed=1000), options, {"batch_size": 500})


def _check_choice(
    call: Call, processes: int, model: nn.Module, pool: Tensor, options: DM2Config, more: dict[str, Any]
) -> None:
    found = call(_select, [(model, pool, options, more)] * processes)
    expected = dm2_fast.select(model, pool, 5, "dm2", options, **more)
    assert expected.audit is not None
    assert expected.audit.path == "approximate"
    assert expected.scores is not None
    for picked in found:
        assert picked.audit == expected.audit
        assert torch.equal(picked.indices, expected.indices)
        assert torch.equal(picked.scores, expected.scores)
    assert torch.equal(found[0].neighbours, expected.neighbours)
    assert torch.equal(found[0].distances, expected.distances)
