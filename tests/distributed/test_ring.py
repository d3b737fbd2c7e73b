"""Neighbours over several processes are those of one, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dm2_fast
from dm2_fast.distributed import ring
from dm2_fast.operations.cuts import Cuts

Call = Callable[..., list[Any]]


def _rows(m: int, d: int = 40, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(m)
    x = torch.randn(m, 5, generator=generator) @ torch.randn(5, d, generator=generator)
    x[: m // 8] = x[m // 2 : m // 2 + m // 8]  # duplicates, in other shards
    return (x + 0.05 * torch.randn(m, d, generator=generator)).to(dtype)


def _knn(group: Any, x: Tensor, k: int, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return ring.knn(x, k, group=group, **options)


def _check(call: Call, x: Tensor, sizes: list[int], k: int, **options: Any) -> None:
    found = call(_knn, [(part.clone(), k, options) for part in x.split(sizes)])
    distances, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    expected = dm2_fast.knn(x, k, **options)
    assert torch.equal(indices, expected[1])
    assert torch.equal(distances, expected[0])


@pytest.mark.parametrize(
    "sizes", [[900], [500, 400], [450, 450], [300, 300, 300], [100, 300, 250, 250], [899, 1, 0, 0], [0, 600, 0, 300]]
)
def test_the_graph_is_that_of_one_process(in_processes: Call, sizes: list[int]) -> None:
    _check(in_processes, _rows(900), sizes, 7)


@pytest.mark.parametrize("options", [
    {"metric": "l2"}, {"metric": "rms", "per_dimension": False}, {"unit_rows": False}, {"backend": "torch"},
    {"num_threads": 3},
])  # fmt: skip
@pytest.mark.parametrize("processes", [2, 3])
def test_options_mean_what_they_mean_to_one_process(
    in_processes: Call, options: dict[str, Any], processes: int
) -> None:
    x = _rows(700)
    _check(
        in_processes, x, [700 // processes] * (processes - 1) + [700 - 700 // processes * (processes - 1)], 5, **options
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point_goes_round(in_processes: Call, dtype: torch.dtype) -> None:
    _check(in_processes, _rows(600, 24, dtype), [250, 350], 4)


def test_many_blocks_meet(in_processes: Call) -> None:
    _check(in_processes, _rows(5000, 33), [1200, 1300, 1700, 800], 10)


def test_a_shard_smaller_than_k(in_processes: Call) -> None:
    _check(in_processes, _rows(60), [5, 50, 5], 59)


def test_rows_that_are_all_one(in_processes: Call) -> None:
    _check(in_processes, torch.ones(400, 16), [100, 200, 100], 6)


def test_rows_beyond_a_float_in_one_process(in_processes: Call) -> None:
    x = _rows(300)
    x[10:20] *= 1e35
    x[5] = 0
    _check(in_processes, x, [100, 200], 6)


def test_integers(in_processes: Call) -> None:
    _check(in_processes, (10 * _rows(300)).to(torch.int16), [100, 200], 6)


def test_an_error_in_one_process_is_raised_in_all(in_processes: Call) -> None:
    x, broken = _rows(100), _rows(100)
    broken[3, 2] = torch.nan
    with pytest.raises(ValueError, match="x must be finite, got NaN or infinity in row 3"):
        in_processes(_knn, [(x, 3, {}), (broken, 3, {}), (x, 3, {})])
    with pytest.raises(ValueError, match="the same k"):
        in_processes(_knn, [(x, 3, {}), (x, 4, {})])
    with pytest.raises(ValueError, match=r"k must be in \[1, 199\] for 200 rows, got 200"):
        in_processes(_knn, [(x, 200, {}), (x, 200, {})])
    _check(in_processes, x, [40, 60], 3)  # and they go on


def test_without_a_group_the_remedy_is_said() -> None:
    with pytest.raises(RuntimeError, match="torchrun"):
        ring.knn(_rows(10), 2)


def test_cuts_are_even_and_keep_near_rows_together() -> None:
    x = torch.nn.functional.normalize(_rows(3000), dim=1)
    cuts = Cuts(x[:1000], 3)
    part = cuts.part_of(x)
    assert torch.bincount(part, minlength=3).min() > 800
    _, indices = dm2_fast.knn(x, 5)
    assert (part[indices] == part[:, None]).double().mean() > 0.7
    assert Cuts(torch.ones(5, 3), 4).part_of(torch.ones(7, 3)).tolist() == [0] * 7


def _within(group: Any, x: Tensor, k: int, memory: int | str) -> tuple[Tensor, Tensor] | str:
    try:
        return ring.knn(x, k, group=group, memory=memory)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("sizes", [[900], [500, 400], [100, 300, 250, 250], [899, 1, 0, 0]])
def test_a_budget_of_each_process(in_processes: Call, sizes: list[int]) -> None:
    x, expected = _rows(900), dm2_fast.knn(_rows(900), 7)
    little = in_processes(_within, [(part, 7, "100kB") for part in x.split(sizes)])
    assert len(set(little)) == 1
    assert little[0].startswith("memory must be at least ")
    assert little[0].endswith(f"MB for the 7 nearest of 900 rows of 40 features in {len(sizes)} processes, got 100kB")
    least = little[0].split("at least ")[1].split("MB")[0]
    found = in_processes(_within, [(part, 7, f"{least}MB") for part in x.split(sizes)])
    distances, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert torch.equal(indices, expected[1])
    assert torch.equal(distances, expected[0])


def test_a_shard_that_is_larger_than_planned(in_processes: Call) -> None:
    found = in_processes(_within, [(part, 6, "1MB") for part in torch.ones(400, 16).split([100, 200, 100])])
    assert len(set(found)) == 1
    assert found[0].startswith("400 rows lie so near together that one process has them all, and memory= allows for 20")


def test_other_backends_have_no_budget(in_processes: Call) -> None:
    options = {"memory": "1GB", "backend": "torch"}
    with pytest.raises(ValueError, match=r"memory= is for the C\+\+ backend"):
        in_processes(_knn, [(part, 6, options) for part in _rows(300).split(150)])
