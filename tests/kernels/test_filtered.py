"""The search behind the filter equals the search among all rows, bit for bit, and the filter drops no neighbour."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import device_of
from torch import Tensor

from dm2_fast.operations.knn import UnitRows, weights

sys.path.insert(0, str(Path(__file__).parents[2] / "benches"))
from knn_kinds import KINDS

knn = importlib.import_module("dm2_fast.kernels.knn")
codes = importlib.import_module("dm2_fast.kernels.codes")
filtered = importlib.import_module("dm2_fast.kernels.filtered")

DEVICE = device_of("triton")
NATIVE = DEVICE != "cpu"
METRICS = ("literal", "rms", "l1", "l2")
BLOCK_D = 32


@pytest.fixture(autouse=True)
def _tiles(large_tiles: None) -> None:
    pass


def rows_of(kind: str, m: int, d: int, seed: int = 0) -> Tensor:
    if kind == "bfloat16":  # which numpy lacks
        return rows_of("sparse ReLU", m, d, seed).bfloat16()
    make, hold = KINDS[kind]
    if kind == "100 copies of each row":
        return torch.from_numpy(KINDS["sparse ReLU"][0](np.random.default_rng(seed), 7, d))[torch.arange(m) % 7]
    return torch.as_tensor(hold(make(np.random.default_rng(seed), m, d)).copy())


def search(
    x: Tensor, k: int, metric: str, filtered: bool | None, queries: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The kernels' `knn`, as the function of the same name calls it."""
    rows = UnitRows(x.to(DEVICE), "x")
    asked = rows if queries is None else UnitRows(queries.to(DEVICE), "queries")
    everyone = torch.arange(len(x), device=DEVICE)
    ids = everyone if queries is None else torch.full((len(queries),), -1, device=DEVICE)
    data, scale = rows.read(0, len(x))
    q, q_scale = (data, scale) if queries is None else asked.read(0, len(asked))
    distances = torch.full((len(q), k), torch.inf, device=DEVICE)
    indices = torch.full((len(q), k), torch.iinfo(torch.int64).max, device=DEVICE)
    w = weights(metric, x.shape[1])
    knn.knn(q, q_scale, ids, data, scale, everyone, distances, indices, *w, filtered=filtered)
    return distances, indices


def check_same(x: Tensor, k: int, metric: str = "literal", queries: Tensor | None = None) -> None:
    want, got = (search(x, k, metric, how, queries) for how in (False, True))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def unit(x: Tensor) -> Tensor:
    """Rows as the kernels stage them."""
    rows = UnitRows(x, "x")
    return knn._staged(*rows.read(0, len(x)), BLOCK_D)


def coded(x: Tensor, clip: float = 0.8) -> Any:
    grid = codes.Grid(x, clip)
    return codes.Codes(x, codes.partition(x), grid), grid


def sads(one: Tensor, other: Tensor) -> np.ndarray:
    a, b = (c.view(torch.uint8).numpy().astype(np.int64) for c in (one, other))
    return np.abs(a[:, None] - b[None]).sum(-1)


@pytest.mark.parametrize(
    ("kind", "k", "metric"),
    [
        ("sparse ReLU", 3, "literal"),
        ("tiny and huge rows", 1, "rms"),
        ("bfloat16", 2, "l1"),
        ("30 % zero rows", 4, "l2"),
    ],
)
def test_neighbours_behind_the_filter_have_the_same_bits(kind: str, k: int, metric: str) -> None:
    check_same(rows_of(kind, 131, 19), k, metric)


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", [*KINDS, "bfloat16"])
def test_neighbours_behind_the_filter_have_the_same_bits_for_every_kind_of_rows(kind: str, metric: str) -> None:
    x = rows_of(kind, 150, 24)
    check_same(x, 5, metric, x[:70] * 1.01 + 1e-3 if kind == "queries" else None)


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("m", "d", "k"), [(2, 1, 1), (63, 3, 62), (64, 100, 7), (65, 33, 64), (129, 5, 65)])
def test_neighbours_behind_the_filter_have_the_same_bits_at_odd_sizes(m: int, d: int, k: int, metric: str) -> None:
    check_same(rows_of("sparse ReLU", m, d), k, metric)
    ties = torch.from_numpy(np.random.default_rng(0).integers(-1, 2, (m, d))).float()
    check_same(ties, k, metric)


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_behind_the_filter_have_the_same_bits_for_every_k(metric: str) -> None:
    x = rows_of("sparse ReLU", 67, 5)
    for k in range(1 + METRICS.index(metric), 66, len(METRICS)):  # the metrics take turns
        check_same(x, k, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("clip", filtered._CLIPS)
def test_every_pair_survives_its_own_distance_as_threshold(clip: float, metric: str) -> None:
    x = unit(torch.cat([rows_of("sparse ReLU", 40, 45), rows_of("one giant outlier", 20, 45)]))
    assert dropped(x, clip, metric, 45) == 0


def dropped(x: Tensor, clip: float, metric: str, d: int, grid: Any = None, block_d: int = BLOCK_D) -> int:
    """How many pairs of staged rows the filter would drop at their own computed distance."""
    w1, w2 = weights(metric, d)
    ones = torch.ones(len(x))
    tile = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_D": block_d, "num_warps": 4}
    distances = torch.empty(len(x), len(x), device=DEVICE)
    knn.pairwise(x.to(DEVICE), ones.to(DEVICE), x.to(DEVICE), ones.to(DEVICE), distances, w1, w2, config=tile)
    grid = grid or codes.Grid(x, clip)
    code, error = grid.encode(x)
    l1 = codes.l1_within(distances.cpu(), d, x.shape[1], block_d, w1, w2)
    limit = codes.reach(l1, error[:, None], grid.steps) + codes.margin(error)
    return int((torch.from_numpy(sads(code, code)) > limit).sum())


def on_edges(d: int) -> tuple[Tensor, Any]:
    """Rows whose entries lie just beside the edge between two codes, so that the bound is all but reached."""
    grid = codes.Grid(torch.tensor([[0.0] * d, [1.0] * d]), 1.0)
    step = 1 / grid.steps
    low, high = (torch.arange(3, 240, 17) + 0.5 - 1e-4) * step, (torch.arange(5, 242, 17) + 0.5 + 1e-4) * step
    return torch.cat([low, high])[:, None].repeat(1, d), grid


@pytest.mark.parametrize("d", [32, 8192])
def test_rows_at_the_edges_between_codes_survive(d: int) -> None:
    x, grid = on_edges(d)
    assert dropped(x, 1.0, "l1", d, grid, 8) == 0


def test_half_of_the_error_term_would_drop_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    x, grid = on_edges(32)
    encode = codes.Grid.encode
    monkeypatch.setattr(codes.Grid, "encode", lambda self, rows: (encode(self, rows)[0], encode(self, rows)[1] / 2))
    assert dropped(x, 1.0, "l1", 32, grid) > 0


@pytest.mark.slow
def test_without_the_slack_for_rounding_neighbours_would_be_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    x, grid = on_edges(8192)
    without = lambda D, d, *rest: D.double() / (rest[2] + rest[3] / d**0.5)  # noqa: E731
    monkeypatch.setattr(codes, "l1_within", without)
    assert dropped(x, 1.0, "l1", 8192, grid, 8) > 0


@pytest.mark.parametrize("symmetric", [False, True])
def test_lists_hold_the_rows_within_reach_and_count_those_without_room(symmetric: bool) -> None:
    x = unit(rows_of("sparse ReLU", 131, 19)).to(DEVICE)
    q = x if symmetric else unit(rows_of("sparse ReLU", 70, 19, seed=1)).to(DEVICE)
    grid = codes.Grid(x, 0.8)
    rows = codes.Codes(x, codes.partition(x), grid)
    asked = rows if symmetric else codes.Codes(q, codes.partition(q), grid)
    reach = torch.randint(100, 500, (len(q),), dtype=torch.int32, device=DEVICE)
    near = sads(asked.codes.cpu(), rows.codes.cpu()) <= (reach[:, None] + rows.margin).cpu().numpy()
    if symmetric:  # a + e of the one who asks; the other direction is the transposed pair
        assert not np.array_equal(near, near.T)
    pairs = codes.pairs_within(asked, rows, reach, reach if symmetric else None, 0, len(asked.centre))
    for room in (256, 64):
        lists, count = codes.lists_of(asked, rows, reach, reach if symmetric else None, pairs, room, NATIVE)
        for tile in range(len(count)):
            want = rows.order.cpu()[near[64 * tile : 64 * tile + 64].any(0)].sort().values
            assert count[tile] == len(want)
            got = lists[tile, : min(room, len(want))].cpu().sort().values
            assert torch.equal(got, want) if len(want) <= room else set(got.tolist()) < set(want.tolist())


def test_lists_without_room_are_made_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows_of("sparse ReLU", 131, 19)
    want = search(x, 5, "literal", False)
    seen = []
    find, run = codes.lists_of, filtered.knn
    monkeypatch.setattr(codes, "lists_of", lambda *given: seen.append(len(given[4])) or find(*given))
    monkeypatch.setattr(filtered, "knn", lambda *given, **how: run(*given, **how, room=64))
    got = search(x, 5, "literal", True)
    assert len(seen) > 3
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_what_the_filter_cannot_thin_out_is_searched_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_FILTERED_PAIRS", 0)
    used = []
    run = filtered.knn
    monkeypatch.setattr(filtered, "knn", lambda *given, **how: used.append(run(*given, **how)) or used[-1])
    x = rows_of("Gaussian noise", 131, 24)
    got, want = search(x, 3, "literal", None), search(x, 3, "literal", False)
    assert used == [False]
    assert torch.equal(got[1], want[1])
    rng = np.random.default_rng(0)  # clusters far from each other, a few rows each
    centres = rng.standard_normal((40, 24)).astype(np.float32)
    x = torch.from_numpy(np.repeat(centres, 5, 0) + rng.standard_normal((200, 24)).astype(np.float32) / 100)
    got, want = search(x, 3, "literal", None), search(x, 3, "literal", False)
    assert used == [False, True]
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("m", [1, 64, 65, 300])
def test_a_partition_holds_every_row_once(m: int) -> None:
    order = codes.partition(unit(rows_of("sparse ReLU", m, 37)))
    assert order.dtype == torch.int32
    assert order.sort().values.tolist() == list(range(m))


def test_tiles_that_are_skipped_hold_no_pair_within_reach() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((6, 24)).astype(np.float32)
    x = unit(torch.from_numpy(np.repeat(centres, 64, 0) + rng.standard_normal((384, 24)).astype(np.float32) / 50))
    rows, _ = coded(x)
    reach = torch.full((len(x),), 300, dtype=torch.int32)
    near = sads(rows.codes, rows.codes) <= (reach[:, None] + rows.margin).numpy()
    near = near.reshape(6, 64, 6, 64).any((1, 3))
    kept = codes.pairs_within(rows, rows, reach, None, 0, 6)
    assert {tuple(pair) for pair in np.argwhere(near)} <= {tuple(pair) for pair in kept.tolist()}
    assert 6 <= len(kept) < 36
    both = codes.pairs_within(rows, rows, reach, reach, 2, 6)
    assert {tuple(p) for p in both.tolist()} == {(i, j) for i, j in kept.tolist() if 2 <= i <= j}
