"""Rows of mapped files: the same values as in memory, and few pages at a time."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dm2_fast.operations import mapped as module
from dm2_fast.operations.mapped import MappedRows, Sparing, blocks, is_mapped, mapped, release, room_like, taken
from dm2_fast.operations.mix import mix, recipe


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16, torch.int64])
def pair(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """A tensor in a mapped file, and the same in memory."""
    own = torch.arange(300_000).view(3000, 100).to(request.param)
    of_file = mapped((3000, 100), own)
    of_file[:] = own
    return of_file, own


def test_rows_are_read_and_written(pair: tuple[Tensor, Tensor]) -> None:
    of_file, own = pair
    rows = torch.randperm(3000, generator=torch.Generator().manual_seed(0))[:2000]
    assert is_mapped(of_file)
    assert not is_mapped(own)
    for at_once in (1, 2**20, 2**30):
        assert torch.equal(MappedRows(of_file, at_once)[rows], own[rows])
    assert torch.equal(MappedRows(of_file)[rows.numpy()], own[rows])
    assert torch.equal(taken(of_file, rows), own[rows])
    assert torch.equal(taken(own, rows), own[rows])
    assert torch.equal(torch.cat([of_file[part] for part in blocks(of_file)]), own)
    values = own[rows] * 0 + 3
    MappedRows(of_file, 2**17)[rows] = values
    own[rows] = values
    assert torch.equal(of_file, own)


def _resident(x: Tensor) -> int:
    """Bytes of the mapping of x that are in the memory of this process."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(found[1], 16) <= x.data_ptr() < int(found[2], 16)
        elif here and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("not mapped")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says what is in memory")
def test_few_pages_are_in_memory() -> None:
    x = mapped((2**16, 256), torch.empty(0))  # 64 MB
    x[:] = 1
    rows = torch.randint(len(x), (10_000,), generator=torch.Generator().manual_seed(0)).sort().values
    release(x)
    assert _resident(x) == 0
    for at_once in (2**22, 2**24):
        most, read = 0, 0.0
        for part in Sparing(x, at_once).steps(rows):
            read += float(x[rows[part]].sum())
            most = max(most, _resident(x))
        assert read == 256 * len(rows)
        assert 0 < most <= at_once
        assert _resident(x) == 0
    float(x.sum())
    assert _resident(x) == 2**26
    for part in blocks(x):
        float(x[part].sum())
    assert _resident(x) == 0


def test_values_in_memory_are_one_block() -> None:
    x = torch.ones(10, 3)
    assert list(blocks(x)) == [slice(None)]
    assert not is_mapped(room_like(x, torch.float64))


@pytest.mark.parametrize("options", [{"mix": "weighted"}, {"mix": "random", "seed": 3}, {"mix": "mean", "lam": "beta"}])
def test_mixtures_of_neighbours_in_files(options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 7)
    rng = np.random.default_rng(0)
    distances, indices = torch.from_numpy(np.sort(rng.random((100, 4), np.float32))), torch.randint(100, (100, 4))
    distances[5:9, :2] = 0
    place: Callable[[Tensor], Tensor] = lambda x: mapped((100, 4), x).copy_(x)  # noqa: E731
    expected, found = recipe(distances, indices, **options), recipe(place(distances), place(indices), **options)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.lam, expected.lam)
    assert (found.weights is None) == (expected.weights is None)
    if expected.weights is not None and found.weights is not None:
        assert is_mapped(found.weights)
        assert torch.equal(found.weights, expected.weights)
    pool = mapped((100, 20), distances).copy_(torch.rand(100, 20))
    want = mix(pool.clone(), expected.indices, expected.lam, weights=expected.weights)
    assert torch.equal(mix(MappedRows(pool, 1), found.indices, found.lam, weights=found.weights), want)
