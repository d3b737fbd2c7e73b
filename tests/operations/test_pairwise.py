import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import METRICS, device_of, lattice, pairwise, tolerance
from torch import Tensor

import dm2_fast
from dm2_fast.operations import knn as distance

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def features(m: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((m, d))).to(dtype)


def check(x: Any, y: Any = None, metric: Any = "literal", backend: str = "cpp") -> Tensor:
    """Ask dm2_fast.pairwise, check its answer, and return it on the CPU."""
    if device_of(backend) != "cpu":
        x, y = (None if v is None else torch.as_tensor(v).to(device_of(backend)) for v in (x, y))
    got = dm2_fast.pairwise(x, y, metric, backend=backend).cpu()
    assert got.dtype == (torch.float64 if "float64" in str(x.dtype) else torch.float32)
    assert got.shape == (len(x), len(x if y is None else y))
    assert float(np.abs(got.numpy() - pairwise(x, y, metric)).max()) <= tolerance(x, y, metric)
    return got


@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 1), (2, 7, 3), (63, 65, 17), (65, 1, 100), (1, 63, 96)])
def test_distances_equal_the_oracle_for_odd_shapes(backend: str, m: int, n: int, d: int) -> None:
    check(features(m, d), features(n, d, seed=1), backend=backend)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_distances_equal_the_oracle_for_every_metric_and_dtype(backend: str, metric: str, dtype: torch.dtype) -> None:
    if (backend, dtype) == ("triton", torch.float64):
        with pytest.raises(RuntimeError, match="float64"):
            check(features(3, 4, dtype), backend=backend)
        return
    check(features(40, 19, dtype), features(7, 19, dtype, 1), metric, backend)


def test_strides_do_not_matter(backend: str) -> None:
    dense = features(30, 17)
    want = check(dense, backend=backend)
    wide = torch.zeros(60, 34)
    wide[::2, ::2] = dense
    for x in (dense.T.contiguous().T, wide[::2, ::2]):
        assert torch.equal(check(x, backend=backend), want)
        assert torch.equal(check(x, dense, backend=backend), want)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_read_only_memory_map_is_read_in_place(dtype: Any, tmp_path: Path) -> None:
    x = features(30, 17).numpy().astype(dtype)
    x.tofile(tmp_path / "rows.bin")
    mapped = np.memmap(tmp_path / "rows.bin", dtype, mode="r", shape=x.shape)
    assert torch.equal(check(mapped), check(torch.from_numpy(x)))


def test_huge_tiny_and_zero_rows_are_normalised(backend: str) -> None:
    x = features(24, 9).clamp(-1.5, 1.5) * torch.tensor([1e38, 1e-42, 1e-37, 0, 1, 1e20]).repeat(4)[:, None]
    got = check(x, backend=backend)
    check(x, features(5, 9, seed=1), backend=backend)
    assert got[3, 9] == 0


@pytest.mark.parametrize("metric", METRICS)
def test_lattice_rows_give_every_backend_the_same_bits(backend: str, metric: str) -> None:
    x = torch.from_numpy(lattice(np.random.default_rng(0), 40, 64))
    assert torch.equal(check(x, x[:9], metric, backend), dm2_fast.pairwise(x, x[:9], metric, backend="torch"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    x, y = features(100, 37, dtype), features(33, 37, dtype, 1)
    want = dm2_fast.pairwise(x, y, num_threads=1)
    for threads in (2, 3, 7):
        assert torch.equal(dm2_fast.pairwise(x, y, num_threads=threads), want)


def test_tiles_of_rows_do_not_change_a_bit_in_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(40, 40).to(device_of("triton"))
    module = importlib.import_module("dm2_fast.kernels.knn")
    results = {}
    for m, n, d in ((64, 64, 32), (16, 64, 32), (64, 16, 32), (64, 64, 8)):
        tile = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": d, "num_warps": 4}
        monkeypatch.setattr(module, "_TILE", tile)
        results[m, n, d] = check(x, backend="triton")
    assert torch.equal(results[64, 64, 32], results[16, 64, 32])
    assert torch.equal(results[64, 64, 32], results[64, 16, 32])


def test_the_weights_are_those_of_the_metrics() -> None:
    assert distance.weights("literal", 16) == (1 / 32, 1 / 32)
    assert distance.weights("rms", 16) == (1 / 32, 1 / 8)
    assert distance.weights("l1", 16) == (1 / 16, 0)
    assert distance.weights("l2", 16) == (0, 1 / 16)


SHAPES = {"m": st.integers(1, 12), "d": st.integers(1, 40), "seed": st.integers(0, 2**16)}


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@given(**SHAPES, n=st.integers(1, 12), metric=st.sampled_from(METRICS), dtype=st.sampled_from(FLOATS))
def test_any_shape_equals_the_oracle(
    backend: str, m: int, d: int, seed: int, n: int, metric: str, dtype: torch.dtype
) -> None:
    check(features(m, d, dtype, seed), features(n, d, dtype, seed + 1), metric, backend)


def metric_axioms(backend: str, m: int, d: int, seed: int, metric: Any) -> None:
    x = features(m, d, seed=seed)
    x[m // 2] = x[0] * (1 + 1e-6)
    distances = dm2_fast.pairwise(x.to(device_of(backend)), metric=metric, backend=backend).cpu()
    assert (distances.diagonal() == 0).all()
    assert torch.equal(distances, distances.T)
    assert (distances >= 0).all()
    slack = 3 * tolerance(x, metric=metric)
    detours = distances[:, :, None] + distances[None, :, :]
    assert (distances[:, None, :] <= detours + slack).all()


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@given(**SHAPES, metric=st.sampled_from(METRICS))
def test_the_distance_is_a_metric(backend: str, m: int, d: int, seed: int, metric: str) -> None:
    metric_axioms(backend, m, d, seed, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_the_distance_is_a_metric_in_triton(large_tiles: None, metric: str) -> None:
    metric_axioms("triton", 12, 33, 0, metric)


def scaled_rows(backend: str, m: int, d: int, seed: int, exponents: list[int]) -> None:
    x = features(m, d, seed=seed).to(device_of(backend))
    powers = torch.tensor([2.0**e for e in exponents], device=x.device)[:, None]
    want = dm2_fast.pairwise(x, backend=backend)
    assert torch.equal(dm2_fast.pairwise(x * powers[:m], backend=backend), want)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@given(**SHAPES, exponents=st.lists(st.integers(-95, 120), min_size=12, max_size=12))
def test_scaling_rows_by_powers_of_two_leaves_the_bits(
    backend: str, m: int, d: int, seed: int, exponents: list[int]
) -> None:
    scaled_rows(backend, m, d, seed, exponents)


def test_scaling_rows_by_powers_of_two_leaves_the_bits_in_triton(large_tiles: None) -> None:
    scaled_rows("triton", 7, 33, 0, [-95, -30, -1, 0, 1, 60, 120])


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@given(**SHAPES, factors=st.lists(st.floats(1e-30, 1e30), min_size=12, max_size=12))
def test_scaling_rows_by_any_positive_number_changes_only_the_rounding(
    backend: str, m: int, d: int, seed: int, factors: list[float]
) -> None:
    x = features(m, d, seed=seed)
    got = dm2_fast.pairwise(x * torch.tensor(factors[:m])[:, None], backend=backend)
    span = float(pairwise(x).max()) + 4 * 0.5 / d
    assert (got - dm2_fast.pairwise(x, backend=backend)).abs().max() <= 2 * tolerance(x) + span * 2**-22


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@given(**SHAPES, metric=st.sampled_from(METRICS), order=st.randoms(use_true_random=False))
def test_permuting_the_columns_and_their_signs_changes_only_the_rounding(
    backend: str, m: int, d: int, seed: int, metric: Any, order: Any
) -> None:
    x = features(m, d, seed=seed)
    signs = torch.tensor([order.choice([-1.0, 1.0]) for _ in range(d)])
    other = dm2_fast.pairwise((x * signs)[:, order.sample(range(d), d)], metric=metric, backend=backend)
    error = (other - dm2_fast.pairwise(x, metric=metric, backend=backend)).abs().max()
    assert error <= 2 * tolerance(x, metric=metric)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(4)}, ValueError, r"x must be 2-D \(rows, features\), got shape \(4,\)"),
        ({"y": torch.ones(4)}, ValueError, r"y must be 2-D \(rows, features\), got shape \(4,\)"),
        ({"x": torch.ones(4, 3) + 0j}, TypeError, r"x must be float16, .*, got torch\.complex64"),
        ({"y": torch.ones(4, 3).half()}, ValueError, r"y must have the dtype of x, torch\.float32, got torch\.float16"),
        ({"y": torch.ones(4, 2)}, ValueError, "y must have as many features as x, 3, got 2"),
        ({"y": torch.ones(4, 3, device="meta")}, TypeError, "y must hold values, got a tensor on the meta device"),
        ({"y": torch.full((4, 3), torch.nan)}, ValueError, "y must be finite, got NaN or infinity in rows 0, 1, 2, 3$"),
        ({"y": torch.ones(0, 3)}, ValueError, r"y must have at least one row and one feature, got shape \(0, 3\)"),
        ({"metric": "L1"}, ValueError, "metric must be one of literal, rms, l1, l2, got 'L1'"),
        ({"backend": "c++"}, ValueError, r"backend must be one of auto, triton, cpp, torch, got 'c\+\+'"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dm2_fast.pairwise(**({"x": features(9, 3)} | change))
