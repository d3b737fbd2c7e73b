"""A choice by several processes is that of one."""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dm2_fast
from dm2_fast.distributed.acquire import select
from dm2_fast.distributed.group import Group
from dm2_fast.distributed.shared_pool import read_together
from dm2_fast.model.dataset_pool import DatasetPool

Call = Callable[..., list[Any]]


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 5)
    )


def _pool(m: int = 700) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (m, 1, 8, 8), dtype=np.uint8)


def _select(group: Any, model: nn.Module, pool: Any, strategy: str, options: Any, more: dict[str, Any]) -> Any:
    return select(model, pool, 30, strategy, options, group=group, **more)


def _check(call: Call, processes: int, strategy: str, options: Any = None, pool: Any = None, **more: Any) -> None:
    model, pool = _model(), _pool() if pool is None else pool
    more = {"batch_size": 64, "seed": 3, **more}
    found = call(_select, [(model, pool, strategy, options, more)] * processes)
    expected = dm2_fast.select(model, pool, 30, strategy, options, **more)
    for picked in found:
        assert torch.equal(picked.indices, expected.indices)
        assert (picked.scores is None) == (expected.scores is None)
        if expected.scores is not None:
            assert torch.equal(picked.scores, expected.scores)
    if expected.neighbours is not None:
        assert torch.equal(found[0].neighbours, expected.neighbours)
        assert torch.equal(found[0].distances, expected.distances)
        assert torch.equal(found[0].mixture.indices, expected.mixture.indices)


STRATEGIES = ("random", "least-confidence", "entropy", "margin", "bald", "entropy-bayesian", "badge", "dm2")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_choice_is_that_of_one_process(in_processes: Call, strategy: str) -> None:
    _check(in_processes, 3, strategy)


@pytest.mark.parametrize("options", [
    dm2_fast.DM2Config.published(mix="random", lam="beta", k=3),
    dm2_fast.DM2Config.published(mix="weighted", metric="l2", offset=20),
    dm2_fast.DM2Config(space="features", k=5), dm2_fast.DM2Config(score="margin", batch="kmeans", k=3, offset=7),
    dm2_fast.DM2Config(batch="spread", k=20),
])  # fmt: skip
def test_options_of_dm2(in_processes: Call, options: Any) -> None:
    _check(in_processes, 2, "dm2", options)


@pytest.mark.parametrize("strategy", ["margin", "least-confidence"])
def test_a_batch_by_kmeans(in_processes: Call, strategy: str) -> None:
    _check(in_processes, 3, strategy, dm2_fast.strategies.get(strategy).options(batch="kmeans"))


def test_coreset_compares_with_the_labelled(in_processes: Call) -> None:
    _check(in_processes, 3, "coreset", labelled=_pool(20))


@pytest.mark.parametrize("strategy", ["dm2", "badge", "bald", "coreset"])
def test_more_processes_than_batches(in_processes: Call, strategy: str) -> None:
    _check(in_processes, 4, strategy, pool=_pool(100), labelled=_pool(5), batch_size=64)


@pytest.mark.parametrize("batch", ["highest", "kmeans", "spread"])
def test_features_of_processes_without_rows(in_processes: Call, batch: Any) -> None:
    _check(in_processes, 3, "dm2", dm2_fast.DM2Config(space="features", k=4, batch=batch), pool=_pool(100))


@pytest.mark.parametrize(
    ("strategy", "options"),
    [("dm2", None), ("dm2", dm2_fast.DM2Config(space="features", mix="weighted")), ("entropy", None), ("badge", None)],
)
def test_within_a_budget_of_each_process(in_processes: Call, strategy: str, options: Any) -> None:
    _check(in_processes, 3, strategy, options, memory="4MB")
    _check(in_processes, 3, strategy, options, pool=_pool(100), memory="4MB")  # one has no rows


def test_too_little_of_a_budget_is_said_before_work(in_processes: Call) -> None:
    with pytest.raises(
        ValueError, match="memory must be at least 2MB for the 10 nearest of 700 rows .* in 2 processes"
    ):
        in_processes(_select, [(_model(), _pool(), "dm2", None, {"memory": "500kB"})] * 2)


def test_ties_are_drawn_alike(in_processes: Call) -> None:
    pool = _pool()
    pool[:] = pool[:1]
    _check(in_processes, 2, "entropy", pool=pool, ties="random", row_ids=np.arange(700)[::-1].copy())


def test_tokens_and_names(in_processes: Call) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(48, 4))
    tokens = np.random.default_rng(0).integers(0, 50, (300, 6))
    options, names = dm2_fast.DM2Config(space="features", k=3), [f"text {i}" for i in range(300)]
    found = in_processes(_select, [(model, tokens, "dm2", options, {"ids": names, "batch_size": 32})] * 2)
    expected = dm2_fast.select(model, tokens, 30, "dm2", options, ids=names, batch_size=32)
    assert found[0].ids == found[1].ids == expected.ids


class Images(torch.utils.data.Dataset[Any]):
    """Some samples of other shapes, or that cannot be read."""

    def __init__(self, m: int, odd: int | None = None, broken: int | None = None) -> None:
        self.m, self.odd, self.broken = m, odd, broken

    def __len__(self) -> int:
        return self.m

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        if row == self.broken:
            raise OSError("no such picture")
        size = 8 if self.odd is None or row < self.odd else 9
        return torch.from_numpy(np.random.default_rng(row).integers(0, 256, (1, size, size), dtype=np.uint8)), row % 3


@pytest.mark.parametrize(("processes", "m"), [(3, 500), pytest.param(4, 70, marks=pytest.mark.slow)])
def test_a_dataset_is_read_by_all_of_them(in_processes: Call, processes: int, m: int) -> None:
    _check(in_processes, processes, "dm2", dm2_fast.DM2Config(k=4), pool=Images(m), batch_size=32)
    _check(in_processes, 2, "coreset", pool=Images(m), num_workers=1, labelled=Images(5), batch_size=32)


def test_what_is_wrong_with_a_dataset_is_said_by_all(in_processes: Call) -> None:
    for pool, message in (
        (Images(90, broken=77), "pool raised OSError when asked for row 77: no such picture"),
        (Images(90, odd=50), r"row 50 of pool is uint8 of shape \(1, 9, 9\), and row 45 is uint8 of shape \(1, 8, 8\)"),
        (Images(90, odd=45), r"row 45 of pool is uint8 of shape \(1, 9, 9\), and row 0 is uint8 of shape \(1, 8, 8\)"),
        (Images(0), "pool must hold at least one sample, got an empty Images"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=message):
            in_processes(_select, [(_model(), pool, "margin", None, {})] * 2)


def _without_a_folder(group: Any, pool: Images) -> None:
    if group.rank() == 0:
        made, tempfile.mkdtemp = tempfile.mkdtemp, lambda: "/no/such/folder"  # type: ignore[assignment]
    try:
        read_together(DatasetPool(pool), Group(group))
    finally:
        if group.rank() == 0:
            tempfile.mkdtemp = made


def test_processes_that_share_no_folder_say_so(in_processes: Call) -> None:
    with pytest.raises(RuntimeError, match="the processes do not share .*: set TMPDIR to a folder that all of them"):
        in_processes(_without_a_folder, [(Images(9),)] * 2)


def test_strategies_that_need_one_process_say_so(in_processes: Call) -> None:
    with pytest.raises(ValueError, match="strategy prob-cover looks at all of the pool at once and needs one process"):
        in_processes(_select, [(_model(), _pool(), "prob-cover", None, {})] * 2)


def test_an_error_of_one_process_is_that_of_all(in_processes: Call) -> None:
    with pytest.raises(ValueError, match="budget must be in"):
        in_processes(_select, [(_model(), _pool(10), "entropy", None, {})] * 2)
