"""Exact neighbours within a budget of memory are those of the search in memory, bit for bit."""

import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dm2_fast
from dm2_fast.operations import in_parts, memory
from dm2_fast.operations.graph_in_parts import plan_of_processes
from dm2_fast.operations.mapped import is_mapped, release
from dm2_fast.operations.memory import as_bytes, graph_plan, plan, ring_plan
from dm2_fast.operations.shards import Shard


def _rows(m: int, d: int = 24, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(m)
    x = torch.randn(m, 4, generator=generator) @ torch.randn(4, d, generator=generator)
    x[: m // 8] = x[m // 2 : m // 2 + m // 8]
    return (x + 0.05 * torch.randn(m, d, generator=generator)).to(dtype)


def _needed(x: Tensor, k: int, parts: int) -> int:
    """Bytes for which the plan has so many parts."""
    whole = plan(x, k, "1TB", 1).needed
    if parts == 1:
        return whole
    budget = 2 * (int(1.2 * len(x) / parts) + 1) * (whole // len(x) + x.shape[1] * x.element_size())
    assert plan(x, k, budget, 1).parts == parts
    return budget


@pytest.mark.parametrize("parts", [1, 4, 12])
def test_every_budget_gives_the_same_bits(parts: int) -> None:
    x = _rows(3000)
    expected = dm2_fast.knn(x, 6)
    found = dm2_fast.knn(x, 6, memory=_needed(x, 6, parts))
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])
    assert is_mapped(found[0]) == (parts > 1)


def test_two_parts_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shards: list[weakref.ref[Shard]] = []
    load = in_parts._Parts._load

    def counted(self: Any, kept: Any) -> Shard:
        assert sum(shard() is not None for shard in shards) < 2
        shards.append(weakref.ref(shard := load(self, kept)))
        return shard

    monkeypatch.setattr(in_parts._Parts, "_load", counted)
    x = _rows(800)
    dm2_fast.knn(x, 3, memory=_needed(x, 3, 5))
    assert len(shards) > 10


@pytest.mark.parametrize("options", [{"metric": "l2"}, {"unit_rows": False}, {"per_dimension": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_options_and_dtypes(options: dict[str, Any], dtype: torch.dtype) -> None:
    x = _rows(800, dtype=dtype)
    if "unit_rows" not in options:
        x[7] = 0
    expected, found = dm2_fast.knn(x, 3, **options), dm2_fast.knn(x, 3, memory=_needed(x, 3, 5), **options)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])


def test_rows_that_are_one_do_not_fill_a_part() -> None:
    x = torch.ones(2000, 24)
    x[5] *= 1e36
    expected, found = dm2_fast.knn(x, 4), dm2_fast.knn(x, 4, memory=_needed(x, 4, 5))
    assert torch.equal(found[1], expected[1])


def test_too_little_memory_names_the_least_that_suffices() -> None:
    x = _rows(100_000, 8)
    with pytest.raises(ValueError, match=r"memory must be at least (\d+)MB for the 10 nearest of 100000 rows") as error:
        dm2_fast.knn(x, 10, memory="1MB")
    least = str(error.value).split("at least ")[1].split("MB")[0]
    assert plan(x, 10, f"{least}MB", 1).parts > memory.MOST_PARTS // 2
    with pytest.raises(ValueError, match="at least"):
        plan(x, 10, f"{int(least) - 1}MB", 1)


def test_what_else_is_in_memory_counts() -> None:
    x, recall = torch.empty(1, 1).expand(100_000, 64), 0.9
    plans: list[Callable[..., Any]] = [
        lambda memory, beside: plan(x, 10, memory, 1, beside),
        lambda memory, beside: graph_plan(x, 10, 14, memory, beside),
        lambda memory, beside: graph_plan(x, 10, 14, memory, beside, 50_000),
        lambda memory, beside: ring_plan(x, 50_000, 2, 10, memory, beside),
        lambda memory, beside: plan_of_processes(x, [50_000, 50_000], 10, recall, memory, beside),
    ]
    for of in plans:

        def least(beside: tuple[int, int], of: Callable[..., Any] = of) -> int:
            with pytest.raises(ValueError, match="memory must be at least") as error:
                of("1kB", beside)
            found = int(str(error.value).split("at least ")[1].split("MB")[0])
            of(f"{found}MB", beside)
            with pytest.raises(ValueError, match=f"at least {found}MB"):
                of(f"{found - 1}MB", beside)
            return found

        alone = least((0, 0))
        assert least((30_000_000, 0)) >= alone + 30
        assert least((0, 30_000_000)) == max(alone, 30)
        assert least((0, 900_000_000)) == 900
        assert least((30_000_000, 900_000_000)) == 900


def test_bad_rows_are_named_before_work() -> None:
    x = torch.ones(10_000, 512)  # more than one block
    x[9000, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in row 9000"):
        dm2_fast.knn(x, 10, memory="8MB")


@pytest.mark.parametrize(
    ("text", "number"), [("4GB", 4 * 10**9), ("1.5 mb", 1_500_000), ("2GiB", 2**31), (77, 77), ("123", 123)]
)
def test_sizes_as_people_write_them(text: int | str, number: int) -> None:
    assert as_bytes(text) == number


@pytest.mark.parametrize("text", ["4 potatoes", "GB", "-1GB", "", True])
def test_other_sizes_are_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="memory must be a number of bytes, or a text such as 4GB or 500MB"):
        as_bytes(text)


def test_memory_belongs_to_the_exact_search_of_all_rows() -> None:
    x = _rows(100)
    with pytest.raises(ValueError, match="leave out queries, or memory"):
        dm2_fast.knn(x, 3, queries=x, memory="1GB")
    with pytest.raises(ValueError, match=r"C\+\+ backend"):
        dm2_fast.knn(x, 3, backend="torch", memory="1GB")


def test_what_is_released_is_there_again(tmp_path: Path) -> None:
    values = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    np.save(tmp_path / "x.npy", values)
    x = torch.from_numpy(np.asarray(np.load(tmp_path / "x.npy", mmap_mode="r+")))
    assert is_mapped(x)
    x[3, 3] = 7
    release(x)
    values[3, 3] = 7
    assert np.array_equal(x.numpy(), values)
    own = torch.ones(100_000)
    assert not is_mapped(own)
    release(own)  # and is left alone
    assert float(own.sum()) == 100_000


_PEAK = """
import sys, threading
import numpy as np
import dm2_fast
x = np.load(sys.argv[1], mmap_mode="r")
dm2_fast.knn(x[:2000], 10)
def anonymous():  # MB; pages of files that are mapped go whenever somebody needs the memory
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1e3
before, seen, over = anonymous(), [0.0], threading.Event()
def watch():
    while not over.wait(0.002):
        seen.append(anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
dm2_fast.knn(x, 10, memory=sys.argv[2], num_threads=1)
over.set()
watcher.join()
print(max(seen) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory a process took")
def test_the_memory_taken_stays_within_the_budget(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100_000, 4)) @ rng.normal(size=(4, 512)) + 0.01 * rng.normal(size=(100_000, 512))
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    found = subprocess.run(
        [sys.executable, "-c", _PEAK, tmp_path / "x.npy", "100MB"], capture_output=True, text=True, check=True
    )
    assert float(found.stdout) < 100  # the features alone are 205 MB
