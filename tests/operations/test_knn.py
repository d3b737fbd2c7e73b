import importlib
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import METRICS, assert_knn_close, device_of, knn, lattice
from torch import Tensor

import dm2_fast
from dm2_fast.operations import cpp, reference
from dm2_fast.operations import knn as distance

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 32, "num_warps": 4}


def features(m: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((m, d))).to(dtype)


def check(x: Any, k: int, metric: Any = "literal", queries: Any = None, backend: str = "cpp") -> tuple[Tensor, Tensor]:
    """Ask dm2_fast.knn, check its answer, and return it on the CPU."""
    if device_of(backend) != "cpu":
        x, queries = (None if v is None else torch.as_tensor(v).to(device_of(backend)) for v in (x, queries))
    got = dm2_fast.knn(x, k, metric, queries=queries, backend=backend)
    assert_knn_close(*got, x, k, metric, queries)
    return got[0].cpu(), got[1].cpu()


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    for got, want in zip(a, b, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("m", "d", "k"),
    [(2, 1, 1), (2, 3, 1), (7, 3, 6), (7, 17, 5), (63, 1, 5), (63, 96, 33), (65, 100, 10), (65, 17, 64), (200, 33, 10)],
)
def test_neighbours_equal_the_oracle_for_odd_shapes(backend: str, m: int, d: int, k: int) -> None:
    check(features(m, d), k, backend=backend)


@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_equal_the_oracle_for_every_metric(backend: str, metric: str) -> None:
    check(features(63, 17), 5, metric, backend=backend)


@pytest.mark.parametrize("metric", ["literal", "rms"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_neighbours_equal_the_oracle_for_every_dtype(backend: str, dtype: torch.dtype, metric: str) -> None:
    if (backend, dtype) == ("triton", torch.float64):
        with pytest.raises(RuntimeError, match="float64"):
            check(features(9, 4, dtype), 3, backend=backend)
        return
    check(features(65, 100, dtype), 10, metric, backend=backend)


@pytest.mark.parametrize(("q", "m", "k"), [(1, 65, 10), (7, 5, 5), (65, 33, 33), (3, 1, 1)])
def test_queries_find_their_neighbours_among_the_rows(backend: str, q: int, m: int, k: int) -> None:
    check(features(m, 17), k, "rms", features(q, 17, seed=1), backend)


def test_queries_leave_nobody_out(backend: str) -> None:
    x = features(20, 5)
    _, indices = check(x, 1, queries=x[3:9], backend=backend)
    assert indices[:, 0].tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("layout", ["transposed", "every other row", "every other column", "expanded", "offset"])
def test_strides_do_not_matter(backend: str, layout: str, dtype: torch.dtype) -> None:
    x = {
        "transposed": features(17, 40, dtype).T,
        "every other row": features(80, 17, dtype)[::2],
        "every other column": features(40, 34, dtype)[:, ::2],
        "expanded": features(1, 17, dtype).expand(40, 17),
        "offset": features(41, 20, dtype)[1:, 3:],
    }[layout]
    got = check(x, 5, backend=backend)
    same(got, check(x.contiguous(), 5, backend=backend))


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_of_any_layout_equal_the_dense_tensor(backend: str, dtype: Any, tmp_path: Path) -> None:
    x = features(40, 17).numpy().astype(dtype)
    want = check(torch.from_numpy(x.copy()), 5, backend=backend)
    x.tofile(tmp_path / "rows.bin")
    wide = np.zeros((40, 34), dtype)
    wide[:, ::2] = x
    for layout in (
        x,
        np.asfortranarray(x),
        np.ascontiguousarray(x[::-1])[::-1],
        np.ascontiguousarray(x[:, ::-1])[:, ::-1],
        wide[:, ::2],
        np.memmap(tmp_path / "rows.bin", dtype, mode="r", shape=x.shape),
    ):
        same(check(layout, 5, backend=backend), want)


def test_queries_may_have_another_layout_than_the_rows(backend: str) -> None:
    x, queries = features(40, 17), features(17, 9, seed=1).T
    same(check(x, 5, queries=queries, backend=backend), check(x, 5, queries=queries.contiguous(), backend=backend))


@pytest.mark.parametrize("d", [511, 3000])
def test_float64_rows_of_one_direction_are_at_distance_0(d: int) -> None:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], d)
    x = torch.from_numpy(np.random.default_rng(d).random((9, 1)) * signs)
    for backend in ("torch", "cpp"):
        assert_knn_close(*dm2_fast.knn(x, 8, "l1", backend=backend), x, 8, "l1")


def test_zero_rows_are_neighbours_of_each_other(backend: str) -> None:
    x = features(30, 8)
    x[[4, 11, 29]] = 0
    distances, indices = check(x, 3, backend=backend)
    assert indices[4, :2].tolist() == [11, 29]
    assert distances[4, :2].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [(torch.float32, (1e38, 1e-37, 1e-42, 1.0)), (torch.float64, (1e200, 1e-200, 1e-310, 1e308, 1.0))],
)
def test_huge_and_tiny_rows_are_normalised(backend: str, dtype: torch.dtype, scales: tuple[float, ...]) -> None:
    if (backend, dtype) == ("triton", torch.float64):
        backend = "torch"
    x = features(50, 12, torch.float64).clamp(-1.5, 1.5)
    x = (x * torch.tensor(scales, dtype=torch.float64).repeat(50)[:50, None]).to(dtype)
    assert x.isfinite().all()
    check(x, 7, backend=backend)


@pytest.mark.parametrize("value", [3e38, 1e-45])
def test_rows_at_the_ends_of_float32_keep_their_direction(backend: str, value: float) -> None:
    x = torch.eye(6).repeat(2, 1) * value
    distances, indices = check(x, 1, backend=backend)
    assert indices[:, 0].tolist() == [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]
    assert (distances == 0).all()


def test_half_precision_subnormals_and_largest_values_are_normalised(backend: str) -> None:
    x = features(40, 9, torch.float16)
    x[::3] = (x[::3].float().clamp(-1, 1) * 65000).half()
    x[1::3] = (x[1::3].float() * 1e-6).half()
    check(x, 4, backend=backend)


@pytest.mark.parametrize("copies", [12, 60])
def test_a_row_with_more_than_k_copies_is_never_its_own_neighbour(backend: str, copies: int) -> None:
    x = features(60 // copies, 9).repeat(copies, 1)[torch.from_numpy(np.random.default_rng(0).permutation(60))]
    distances, indices = check(x, 5, backend=backend)
    assert (distances == 0).all()
    equal = (x[:, None] == x).all(-1).fill_diagonal_(False)
    lowest = [row.nonzero()[:5, 0].tolist() for row in equal]
    assert indices.tolist() == lowest


def test_constant_rows_are_all_the_same_direction(backend: str) -> None:
    x = torch.full((20, 7), 3.0)
    distances, indices = check(x, 3, backend=backend)
    assert (distances == 0).all()
    assert indices[:3].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3]]
    assert (indices[3:] == torch.tensor([0, 1, 2])).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("m", "d", "k"), [(60, 16, 10), (64, 64, 33)])
def test_lattice_rows_give_every_backend_the_exact_answer(backend: str, m: int, d: int, k: int, metric: str) -> None:
    x = lattice(np.random.default_rng(m), m, d)
    distances, indices = check(torch.from_numpy(x), k, metric, backend=backend)
    want_distances, want_indices = knn(x, k, metric)
    if metric in ("l1", "l2"):  # one rounding, of the square root; the sum of two may round either way
        assert torch.equal(distances, torch.from_numpy(want_distances.astype(np.float32)))
    np.testing.assert_array_equal(indices.numpy(), want_indices)
    same((distances, indices), dm2_fast.knn(torch.from_numpy(x), k, metric, backend="torch"))


@pytest.mark.parametrize("dtype", FLOATS)
def test_lattice_rows_are_exact_in_every_dtype(dtype: torch.dtype) -> None:
    x = torch.from_numpy(lattice(np.random.default_rng(1), 50, 64)).to(dtype)
    want = knn(x, 9)
    for backend in ("torch", "cpp"):
        distances, indices = check(x, 9, backend=backend)
        np.testing.assert_array_equal(indices.numpy(), want[1])
        same((distances, indices), dm2_fast.knn(x, 9, backend="torch"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    x = features(150, 37, dtype)
    want = dm2_fast.knn(x, 9, num_threads=1)
    for threads in (None, 2, 3, 7):
        same(dm2_fast.knn(x, 9, num_threads=threads), want)


def in_blocks(monkeypatch: pytest.MonkeyPatch, x: Tensor, backend: str, queries: Tensor | None = None) -> None:
    """However the work on x is cut, the bits are those of one piece."""
    d = x.shape[1]
    want = dm2_fast.knn(x, 9, queries=queries, backend=backend)
    for block_bytes, steps in ((8 * d * 3, 2**32), (8 * d * 29, 2**32), (2**25, 1)):
        with monkeypatch.context() as patch:
            patch.setattr(distance, "_BLOCK_BYTES", block_bytes)
            patch.setattr(distance, "_NORM_ELEMENTS", block_bytes // 8)
            patch.setattr(distance, "_BLOCK_STEPS", steps)
            same(dm2_fast.knn(x, 9, queries=queries, backend=backend), want)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_blocks_do_not_change_a_bit(backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(75, 37, dtype)
    x[20:40] = x[0]
    x[7] = 0
    in_blocks(monkeypatch, x, backend)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_of_a_transposed_matrix_do_not_change_a_bit(
    backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks(monkeypatch, features(37, 75, dtype).T, backend)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_blocks_of_tiny_rows_do_not_change_a_bit(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(40, 37) * 1e-30
    x[5:20] *= 1e-10
    in_blocks(monkeypatch, x, backend)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_blocks_of_queries_do_not_change_a_bit(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch, features(40, 37), backend, features(75, 37, seed=1))


@pytest.mark.parametrize("tile", [1, 65 * 37 * 5])
def test_the_tile_of_the_reference_does_not_change_a_bit(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(65, 37)
    want = dm2_fast.knn(x, 9, backend="torch"), dm2_fast.pairwise(x, backend="torch")
    monkeypatch.setattr(reference, "_TILE", tile)
    same(dm2_fast.knn(x, 9, backend="torch"), want[0])
    assert torch.equal(dm2_fast.pairwise(x, backend="torch"), want[1])


def leaf_inputs(m: int, d: int) -> tuple[Tensor, Tensor]:
    """Rows with many ties, and their scale."""
    x = torch.from_numpy(lattice(np.random.default_rng(m), m, d))
    x[: m // 3] = features(m // 3, d)
    return x, 1 / x.norm(dim=1)


def run_leaf(
    module: ModuleType, x: Tensor, scale: Tensor, ids: Tensor, k: int, blocks: list[slice], **options: Any
) -> tuple[Tensor, Tensor]:
    """The k nearest of every row, with the rows visited block by block in the given order, at the metric "literal"."""
    device = device_of("triton") if module.__name__ == "dm2_fast.kernels" else "cpu"
    x, scale, ids = x.to(device), scale.to(device), ids.to(device)
    w1, w2 = distance.weights("literal", x.shape[1])
    best = torch.full((len(x), k), torch.inf, device=device)
    who = torch.full((len(x), k), torch.iinfo(torch.int64).max, device=device)
    for block in blocks:
        module.knn(x, scale, ids, x[block], scale[block], ids[block], best, who, w1, w2, **options)
    return best.cpu(), who.cpu()


def kernels() -> ModuleType:
    from dm2_fast import kernels as module

    return module


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("module", [reference, cpp])
def test_a_database_in_blocks_in_any_order_gives_the_same_bits(module: ModuleType, k: int) -> None:
    x, scale = leaf_inputs(50, 16)
    ids = torch.from_numpy(np.random.default_rng(3).permutation(1000)[:50])
    want = run_leaf(module, x, scale, ids, k, [slice(0, 50)])
    blocks = [slice(0, 3), slice(3, 30), slice(30, 31), slice(31, 50)]
    for order in permutations(blocks):
        same(run_leaf(module, x, scale, ids, k, list(order)), want)


def test_a_database_in_blocks_gives_the_same_bits_in_triton() -> None:
    x, scale = leaf_inputs(50, 16)
    ids = torch.from_numpy(np.random.default_rng(3).permutation(1000)[:50])
    one = run_leaf(kernels(), x, scale, ids, 7, [slice(0, 50)], config=TILE)
    blocks = [slice(0, 3), slice(3, 40), slice(40, 50)]
    for order in ([0, 1, 2], [2, 1, 0]):
        for parts in (1, 2):
            cut = [blocks[i] for i in order]
            same(run_leaf(kernels(), x, scale, ids, 7, cut, config=TILE, parts=parts), one)


def test_parts_and_staged_blocks_of_the_rows_do_not_change_a_bit_in_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    x, scale = leaf_inputs(50, 9)
    ids, everyone, tile = torch.arange(50), [slice(0, 50)], TILE | {"BLOCK_N": 16}
    want = run_leaf(kernels(), x, scale, ids, 2, everyone, config=TILE)
    assert_knn_close(*want, x, 2)
    for parts, staged in ((4, 2**20), (2, 9 * 30)):
        monkeypatch.setattr(importlib.import_module("dm2_fast.kernels.knn"), "_STAGED", staged)
        same(run_leaf(kernels(), x, scale, ids, 2, everyone, config=tile, parts=parts), want)


@pytest.mark.parametrize("module", ["reference", "cpp", "kernels"])
def test_ties_go_to_the_lower_id_and_not_to_the_first_seen(module: str) -> None:
    leaf = {"reference": reference, "cpp": cpp}.get(module) or kernels()
    x, scale = torch.ones(12, 4), torch.full((12,), 0.5)
    ids = torch.tensor([50, 3, 900, 7, 2**40, 1, 60, 8, 4, 2, 70, 5])
    options = {"config": TILE} if module == "kernels" else {}
    for blocks in ([slice(0, 12)], [slice(6, 12), slice(0, 6)], [slice(i, i + 1) for i in range(12)]):
        _, who = run_leaf(leaf, x, scale, ids, 4, blocks, **options)
        for own, found in zip(ids.tolist(), who.tolist(), strict=True):
            assert found == sorted(set(ids.tolist()) - {own})[:4]


def test_of_equal_distances_the_higher_id_is_replaced_in_any_block_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("dm2_fast.kernels.knn"), "_BLOCK_K", 2)
    x = torch.eye(4)[[0, 1, 1, 2, 2, 3, 3, 1, 0, 0, 0]]  # seven rows as far as one another, then three equal ones
    _, who = run_leaf(kernels(), x, torch.ones(11), torch.arange(11), 5, [slice(0, 8), slice(8, 11)], config=TILE)
    assert who[0].tolist() == [8, 9, 10, 1, 2]


@pytest.mark.parametrize("module", ["reference", "cpp", "kernels"])
def test_places_that_nobody_fills_stay_empty(module: str) -> None:
    leaf = {"reference": reference, "cpp": cpp}.get(module) or kernels()
    x, scale = leaf_inputs(3, 16)
    options = {"config": TILE} if module == "kernels" else {}
    best, who = run_leaf(leaf, x, scale, torch.arange(3), 5, [slice(0, 3)], **options)
    assert best[:, :2].isfinite().all()
    assert (best[:, 2:] == torch.inf).all()
    assert sorted(who[0, :2].tolist()) == [1, 2]
    more, later = run_leaf(leaf, x, scale, torch.arange(3), 5, [slice(0, 1), slice(2, 3), slice(1, 2)], **options)
    assert torch.equal(more, best)
    assert torch.equal(later[:, :2], who[:, :2])


def test_tiles_of_rows_do_not_change_a_bit_in_triton() -> None:
    x, scale = leaf_inputs(40, 40)
    ids, everyone = torch.arange(40), [slice(0, 40)]
    want = run_leaf(kernels(), x, scale, ids, 7, everyone, config=TILE)
    for tile in ({"BLOCK_M": 16}, {"BLOCK_N": 16}, {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_D": 32}):
        same(run_leaf(kernels(), x, scale, ids, 7, everyone, config=TILE | tile), want)
    for depth in (8, 64):
        assert_knn_close(*run_leaf(kernels(), x, scale, ids, 7, everyone, config=TILE | {"BLOCK_D": depth}), x, 7)


@pytest.mark.parametrize("k", [3, 33])
def test_the_shipped_tiles_of_the_kernel_give_the_answer(k: int) -> None:
    check(features(40, 9), k, backend="triton")


SHAPES = {"m": st.integers(2, 24), "d": st.integers(1, 40), "seed": st.integers(0, 2**16)}


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@given(**SHAPES, k=st.integers(1, 23), metric=st.sampled_from(METRICS), dtype=st.sampled_from(FLOATS))
def test_any_shape_equals_the_oracle(
    backend: str, m: int, d: int, seed: int, k: int, metric: str, dtype: torch.dtype
) -> None:
    check(features(m, d, dtype, seed), min(k, m - 1), metric, backend=backend)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@given(**SHAPES)
def test_k_of_all_but_one_returns_everybody_else(backend: str, m: int, d: int, seed: int) -> None:
    _, indices = dm2_fast.knn(features(m, d, seed=seed), m - 1, backend=backend)
    for row, found in enumerate(indices.sort(1).values.tolist()):
        assert found == [other for other in range(m) if other != row]


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@given(**SHAPES, order=st.randoms(use_true_random=False))
def test_permuting_the_rows_permutes_the_answer(backend: str, m: int, d: int, seed: int, order: Any) -> None:
    x, k = features(m, d, seed=seed), max(1, m // 2)
    new = torch.tensor(order.sample(range(m), m))
    distances, indices = dm2_fast.knn(x, k, backend=backend)
    permuted_distances, permuted = dm2_fast.knn(x[new], k, backend=backend)
    assert torch.equal(permuted_distances, distances[new])
    different = distances[new].diff(dim=1, prepend=torch.full((m, 1), -1.0)) > 0
    alone = different & different.roll(-1, 1)
    alone[:, -1] = False  # the last place may be tied with a row that was left out
    assert torch.equal(new[permuted][alone], indices[new][alone])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(4)}, ValueError, r"x must be 2-D \(rows, features\), got shape \(4,\)"),
        ({"x": torch.ones(4, 2, 2)}, ValueError, r"x must be 2-D \(rows, features\), got shape \(4, 2, 2\)"),
        ({"x": np.ones((4, 2), complex)}, TypeError, r"x must be float16, .*, got torch\.complex128"),
        ({"x": np.array([["a"], ["b"]])}, TypeError, "x must have a numeric dtype, got <U1"),
        ({"x": np.ones((4, 2), ">f4")}, TypeError, "x must have native byte order, got dtype >f4"),
        ({"x": torch.ones(0, 2)}, ValueError, r"x must have at least one row and one feature, got shape \(0, 2\)"),
        ({"x": torch.ones(4, 0)}, ValueError, r"x must have at least one row and one feature, got shape \(4, 0\)"),
        ({"k": 0}, ValueError, r"k must be in \[1, 8\] for 9 rows, got 0"),
        ({"k": 9}, ValueError, r"k must be in \[1, 8\] for 9 rows, got 9"),
        ({"k": -1}, ValueError, r"k must be in \[1, 8\] for 9 rows, got -1"),
        ({"k": True}, TypeError, "k must be a whole number, got True"),
        ({"k": 2.0}, TypeError, r"k must be a whole number, got 2\.0"),
        ({"k": 10, "queries": torch.ones(1, 3)}, ValueError, r"k must be in \[1, 9\] for 9 rows, got 10"),
        ({"x": torch.ones(1, 3), "k": 1}, ValueError, "k must be .* for 1 rows?, got 1"),
        ({"metric": "cosine"}, ValueError, "metric must be one of literal, rms, l1, l2, got 'cosine'"),
        ({"backend": "cuda"}, ValueError, "backend must be one of auto, triton, cpp, torch, got 'cuda'"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
        ({"num_threads": -3, "backend": "torch"}, ValueError, "num_threads must be at least 1, got -3"),
        ({"queries": torch.ones(2, 4)}, ValueError, "queries must have as many features as x, 3, got 4"),
        ({"queries": torch.ones(2, 3).double()}, ValueError, r"queries must have the dtype of x, torch\.float32, got "),
        ({"queries": torch.ones(3)}, ValueError, r"queries must be 2-D \(rows, features\), got shape \(3,\)"),
        (
            {"queries": torch.ones(2, 3, device="meta")},
            TypeError,
            "queries must hold values, got a tensor on the meta device",
        ),
        ({"queries": torch.full((2, 3), torch.inf)}, ValueError, "queries must be finite, got NaN .* in rows 0, 1$"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dm2_fast.knn(**({"x": features(9, 3), "k": 2} | change))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_first_rows_that_are_not_finite_are_named(
    value: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = features(30, 3, dtype)
    x[7, 1] = value
    with pytest.raises(ValueError, match=r"x must be finite, got NaN or infinity in row 7$"):
        dm2_fast.knn(x, 2)
    x[10:20, 2] = value
    for block_bytes in (2**25, 1):
        monkeypatch.setattr(distance, "_BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(distance, "_NORM_ELEMENTS", block_bytes // 8)
        with pytest.raises(ValueError, match=r"in rows 7, 10, 11, 12, 13 and 6 more$"):
            dm2_fast.knn(x, 2)


def test_features_are_left_as_they_were(backend: str) -> None:
    x = features(9, 3) * 1e-35
    before = x.clone()
    dm2_fast.knn(x.to(device_of(backend)).requires_grad_(), 2, backend=backend)
    assert torch.equal(x, before)


def test_an_integer_of_numpy_is_a_k() -> None:
    same(dm2_fast.knn(features(9, 3), np.int64(2)), dm2_fast.knn(features(9, 3), 2))  # type: ignore[arg-type]
