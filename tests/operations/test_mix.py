from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import device_of, mix, wide
from scipy import stats
from torch import Tensor

import dm2_fast
from dm2_fast import draws
from dm2_fast.operations.mix import recipe

DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPES = ((13, 37), (12, 3, 8, 8), (9, 1, 5, 7), (11, 4, 17))


def pool_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = np.random.default_rng(seed)
    if dtype == torch.uint8:
        return torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))
    return torch.from_numpy(generator.standard_normal(shape)).to(dtype)


def neighbours_of(m: int, r: int, n: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, m, (r, n)))


def weights_of(r: int, n: int) -> Tensor:
    weights = np.random.default_rng(2).random((r, n)) + 0.01
    return torch.from_numpy(weights / weights.sum(1, keepdims=True))


def check(inputs: Any, indices: Tensor, lam: Any, backend: str = "cpp", **options: Any) -> Tensor:
    """Ask dm2_fast.mix and check it: off by n + 4 roundings of the computation and one of the result at most."""
    device = device_of(backend)
    given = inputs.to(device) if isinstance(inputs, Tensor) else inputs
    got = dm2_fast.mix(given, indices, lam, backend=backend, **options)
    values = inputs if isinstance(inputs, (Tensor, np.ndarray)) else inputs[np.arange(len(inputs))]
    dtype = torch.as_tensor(np.empty(0, values.dtype)).dtype if isinstance(values, np.ndarray) else values.dtype
    want = mix(values, indices, lam, **options)
    assert got.shape == want.shape
    assert got.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    assert got.device.type == device
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    normalize = options.get("normalize")
    largest = (1.0 if dtype == torch.uint8 else float(np.abs(wide(values)).max())) + (
        0 if normalize is None else float(np.abs(normalize[0]).max())
    )
    smallest = 1.0 if normalize is None else float(np.min(normalize[1]))
    slack = (indices.shape[1] + 4) * eps * largest / smallest
    rounding = np.abs(want) * torch.finfo(got.dtype).eps + torch.finfo(got.dtype).smallest_normal
    error = np.abs(got.cpu().double().numpy() - want)
    assert (error <= slack + rounding).all(), f"wrong by {float(error.max()):.3g}"
    return got.cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_mixtures_equal_the_oracle_for_every_shape_and_dtype(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    m = shape[0]
    inputs, indices = pool_of(shape, dtype), neighbours_of(m, m, 3)
    if (backend, dtype) == ("triton", torch.float64):
        with pytest.raises(RuntimeError, match="float64"):
            check(inputs, indices, 0.3, backend)
        return
    check(inputs, indices, 0.3, backend)
    check(inputs, indices, 0.3, backend, weights=weights_of(m, 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_rows_choose_who_is_mixed(backend: str, dtype: torch.dtype) -> None:
    inputs, rows = pool_of((12, 3, 4, 4), dtype), torch.tensor([5, 5, 0, 11])
    check(inputs, neighbours_of(12, 4, 2), 0.5, backend, rows=rows)


def test_lam_may_differ_from_row_to_row(backend: str) -> None:
    lam = torch.tensor([0.0, 0.25, 1.0, 0.999, 1e-9])
    check(pool_of((5, 7)), neighbours_of(5, 5, 3), lam, backend)
    check(pool_of((5, 7)), neighbours_of(5, 5, 3), lam.double(), backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lam_of_one_returns_the_rows_bit_for_bit(backend: str, dtype: torch.dtype) -> None:
    if (backend, dtype) == ("triton", torch.float64):
        backend = "torch"
    inputs = pool_of((10, 3, 4, 4), dtype)
    want = inputs.float() / 255 if dtype == torch.uint8 else inputs
    assert torch.equal(check(inputs, neighbours_of(10, 10, 3), 1.0, backend), want)
    assert torch.equal(
        check(inputs, neighbours_of(10, 10, 3), torch.ones(10), backend, weights=weights_of(10, 3)), want
    )


def test_lam_of_zero_returns_the_mean_of_the_neighbours(backend: str) -> None:
    inputs, indices = pool_of((10, 7)), neighbours_of(10, 10, 4)
    got = check(inputs, indices, 0.0, backend)
    torch.testing.assert_close(got, inputs[indices].mean(1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_no_neighbours_only_gather(backend: str, dtype: torch.dtype) -> None:
    inputs, rows = pool_of((10, 3, 4, 4), dtype), torch.tensor([3, 3, 9])
    got = check(inputs, torch.empty(3, 0, dtype=torch.int64), 0.5, backend, rows=rows)
    assert torch.equal(got, inputs[rows].float() / 255 if dtype == torch.uint8 else inputs[rows])


def test_no_rows_give_no_mixtures(backend: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    for dtype in (torch.uint8, torch.float32):
        inputs = pool_of((10, 3, 4, 4), dtype).to(device_of(backend))
        got = dm2_fast.mix(inputs, torch.zeros(0, 2, dtype=torch.int64), 0.5, rows=none, backend=backend)
        assert got.shape == (0, 3, 4, 4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize("normalize", [(0.4, 0.25), ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), ((0.1,), (0.2, 0.5, 1.0))])
def test_channels_are_normalised_after_mixing(backend: str, dtype: torch.dtype, normalize: Any) -> None:
    inputs, indices = pool_of((8, 3, 4, 5), dtype), neighbours_of(8, 8, 2)
    want = check(inputs, indices, 0.5, backend, normalize=normalize)
    last = inputs.contiguous(memory_format=torch.channels_last)
    assert torch.equal(check(last, indices, 0.5, backend, normalize=normalize), want)
    check(inputs[:, :, 0, 0], indices, 0.5, backend, normalize=normalize)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_channels_last_stays_channels_last(backend: str, dtype: torch.dtype) -> None:
    inputs, indices = pool_of((8, 3, 6, 5), dtype), neighbours_of(8, 8, 2)
    want = check(inputs, indices, 0.5, backend)
    assert want.is_contiguous()
    last = check(inputs.contiguous(memory_format=torch.channels_last), indices, 0.5, backend)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_strides_do_not_matter(backend: str, dtype: torch.dtype) -> None:
    wide, indices = pool_of((16, 6, 8, 5), dtype), neighbours_of(8, 8, 3)
    for inputs in (
        wide[::2],
        wide[:8, ::2],
        wide[:8, :3],
        wide[:8].permute(0, 2, 3, 1),
        wide[:8].transpose(2, 3),
        wide[:8, :, :, ::2],
        wide[:8, 0, 0],
        wide[:1].expand(8, -1, -1, -1),
        wide[::2, 0, :, 0],
    ):
        assert torch.equal(check(inputs, indices, 0.3, backend), check(inputs.contiguous(), indices, 0.3, backend))


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_arrays_and_read_only_maps_equal_the_tensor(dtype: Any, tmp_path: Path) -> None:
    inputs = pool_of((10, 3, 4, 4), torch.from_numpy(np.empty(0, dtype)).dtype).numpy()
    indices = neighbours_of(10, 10, 3)
    want = check(torch.from_numpy(inputs), indices, 0.3)
    inputs.tofile(tmp_path / "pool.bin")
    mapped = np.memmap(tmp_path / "pool.bin", dtype, mode="r", shape=inputs.shape)
    for layout in (inputs, mapped, np.asfortranarray(inputs), np.ascontiguousarray(inputs[::-1])[::-1]):
        assert torch.equal(check(layout, indices, 0.3), want)


def strict_file(values: np.ndarray) -> Any:
    """What an HDF5 data set allows: len, shape, dtype, and rising, distinct integer arrays as an index."""

    def getitem(self: Any, rows: Any) -> np.ndarray:
        if not isinstance(rows, np.ndarray) or rows.dtype != np.int64 or rows.ndim != 1:
            raise TypeError(f"rows must be a 1-D int64 array, got {rows!r}")
        if not (np.diff(rows) > 0).all():
            raise TypeError("indexing elements must be in increasing order")
        return values[rows]

    members = {"shape": values.shape, "dtype": values.dtype, "__len__": lambda self: len(values)}
    return type("StrictFile", (), members | {"__getitem__": getitem})()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_file_that_only_takes_rising_rows_equals_the_tensor(backend: str, dtype: torch.dtype) -> None:
    inputs, indices, rows = pool_of((20, 3, 4, 4), dtype), neighbours_of(20, 4, 3), torch.tensor([7, 2, 2, 19])
    if device_of(backend) == "cpu":
        want = check(inputs, indices, 0.3, backend, rows=rows)
        assert torch.equal(check(strict_file(inputs.numpy()), indices, 0.3, backend, rows=rows), want)


def test_all_backends_agree_bit_for_bit_on_pixels(backend: str) -> None:
    inputs, indices = pool_of((9, 3, 8, 8), torch.uint8), neighbours_of(9, 9, 10)
    for options in ({}, {"weights": weights_of(9, 10)}, {"normalize": ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))}):
        for lam in (0.3, torch.linspace(0, 1, 9)):
            want = dm2_fast.mix(inputs, indices, lam, backend="torch", **options)
            assert torch.equal(check(inputs, indices, lam, backend, **options), want)


def test_threads_do_not_change_a_bit() -> None:
    for dtype in (torch.uint8, torch.float32, torch.float64):
        inputs, indices = pool_of((70, 3, 5, 5), dtype), neighbours_of(70, 70, 5)
        want = dm2_fast.mix(inputs, indices, 0.3, num_threads=1)
        for threads in (2, 3, 7):
            assert torch.equal(dm2_fast.mix(inputs, indices, 0.3, num_threads=threads), want)


def test_batches_do_not_change_a_bit(backend: str) -> None:
    inputs, indices = pool_of((20, 3, 5, 5)).to(device_of(backend)), neighbours_of(20, 20, 5)
    lam = torch.linspace(0, 1, 20)
    want = dm2_fast.mix(inputs, indices, lam, backend=backend)
    for part in (slice(0, 1), slice(3, 20)):
        rows = torch.arange(20)[part]
        got = dm2_fast.mix(inputs, indices[part], lam[part], rows=rows, backend=backend)
        assert torch.equal(got, want[part])


def test_blocks_of_elements_do_not_change_a_bit_in_triton() -> None:
    from dm2_fast import kernels

    device = device_of("triton")
    flat, everyone = pool_of((6, 300), torch.uint8).to(device), neighbours_of(6, 4, 3).to(device)
    coefficients = weights_of(4, 3).float().to(device)
    mean, std = torch.tensor([0.5, 0.25, 0.1], device=device), torch.tensor([0.2, 0.3, 0.5], device=device)
    results = []
    for block in (1024, 128, 16):
        out = torch.empty(4, 300, device=device)
        kernels.mix(flat, everyone, coefficients, mean, std, 100, out, config={"BLOCK": block, "num_warps": 4})
        results.append(out)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_result_may_lie_channels_last(backend: str, dtype: torch.dtype) -> None:
    normalize = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    inputs, indices = pool_of((12, 3, 8, 6), dtype), neighbours_of(12, 12, 3)
    for pool in (inputs, inputs.contiguous(memory_format=torch.channels_last), inputs[:, :, ::2], inputs[:, :1]):
        for options in ({}, {"normalize": normalize} if pool.shape[1] == 3 else {"normalize": (0.5, 0.2)}):
            want = check(pool, indices, 0.3, backend, **options)
            given = pool.to(device_of(backend))
            got = dm2_fast.mix(given, indices, 0.3, memory_format=torch.channels_last, backend=backend, **options).cpu()
            assert got.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_a_result_may_be_written_to_memory_that_is_there(backend: str, dtype: torch.dtype) -> None:
    inputs, indices = pool_of((12, 3, 4, 6), dtype).to(device_of(backend)), neighbours_of(12, 7, 3)
    for pool in (inputs, inputs.contiguous(memory_format=torch.channels_last), inputs.flatten(1)):
        for layout in (torch.preserve_format, torch.channels_last)[: 1 + (pool.ndim == 4)]:
            options: dict[str, Any] = {"rows": torch.arange(3, 10), "memory_format": layout, "backend": backend}
            want = dm2_fast.mix(pool, indices, 0.3, **options)
            out = torch.full_like(want, torch.nan)
            assert dm2_fast.mix(pool, indices, 0.3, out=out, **options) is out
            assert torch.equal(out, want)
            assert out.stride() == want.stride()


def test_results_carry_no_gradient_and_leave_the_pool_alone() -> None:
    inputs = pool_of((6, 5)).requires_grad_()
    before = inputs.detach().clone()
    got = dm2_fast.mix(inputs, neighbours_of(6, 6, 2), 0.5)
    assert not got.requires_grad
    assert torch.equal(inputs.detach(), before)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    d=st.integers(1, 20),
    lam=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
def test_mixtures_lie_between_their_parts(
    backend: str, m: int, n: int, d: int, lam: float, dtype: torch.dtype, seed: int
) -> None:
    inputs, indices = pool_of((m, d), dtype, seed), neighbours_of(m, m, n, seed)
    got = check(inputs, indices, lam, backend, weights=weights_of(m, n)).double()
    parts = torch.cat([inputs[:, None], inputs[indices]], 1).double() / (255 if dtype == torch.uint8 else 1)
    slack = (n + 4) * torch.finfo(got.dtype if dtype == torch.float64 else torch.float32).eps * parts.abs().amax()
    slack = slack + (parts.abs().amax() * torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 0)
    assert (got >= parts.amin(1) - slack).all()
    assert (got <= parts.amax(1) + slack).all()


def neighbours_with_zeros() -> tuple[Tensor, Tensor]:
    distances = torch.tensor([[0.1, 0.2, 0.4], [0.0, 0.5, 0.7], [0.0, 0.0, 0.1], [0.0, 0.0, 0.0], [1e-45, 1.0, 2.0]])
    return distances, neighbours_of(5, 5, 3)


def test_a_recipe_of_the_mean_has_equal_weights() -> None:
    distances, indices = neighbours_with_zeros()
    r = recipe(distances, indices, "mean", 0.3)
    assert torch.equal(r.indices, indices)
    assert r.weights is None
    assert r.lam.tolist() == [0.3] * 5


def test_a_weighted_recipe_is_inverse_to_distance_and_uniform_over_zeros() -> None:
    distances, indices = neighbours_with_zeros()
    r = recipe(distances, indices, "weighted")
    assert r.weights is not None
    torch.testing.assert_close(r.weights[0], torch.tensor([4, 2, 1]).double() / 7, rtol=1e-6, atol=0)
    assert r.weights[1:4].tolist() == [[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert r.weights.isfinite().all()
    torch.testing.assert_close(r.weights.sum(1), torch.ones(5).double())
    check(pool_of((5, 7)), r.indices, r.lam, weights=r.weights)


def test_a_random_recipe_draws_every_neighbour_equally_often() -> None:
    indices = torch.arange(10).repeat(5000, 1)
    r = recipe(torch.ones(5000, 10), indices, "random", seed=3)
    assert r.indices.shape == (5000, 1)
    counts = np.bincount(r.indices[:, 0].numpy(), minlength=10)
    assert stats.chisquare(counts).pvalue > 0.01


def test_a_random_recipe_follows_its_uniforms() -> None:
    indices = torch.arange(50).reshape(10, 5)
    r = recipe(torch.ones(10, 5), indices, "random", seed=4, round=2)
    u = draws.uniform(4, 2, np.arange(10), "neighbour")
    assert r.indices[:, 0].tolist() == [int(indices[i, int(u[i] * 5)]) for i in range(10)]


def test_no_neighbours_make_an_empty_recipe() -> None:
    for how in ("mean", "random", "weighted"):
        r = recipe(torch.ones(3, 0), torch.empty(3, 0, dtype=torch.int64), how)
        assert r.indices.shape == (3, 0)
        check(pool_of((3, 4)), r.indices, r.lam, weights=r.weights)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lam_is_drawn_from_beta_by_its_quantiles(alpha: float) -> None:
    m = 4000
    r = recipe(torch.ones(m, 1), torch.zeros(m, 1, dtype=torch.int64), "mean", "beta", alpha, seed=7, round=1)
    lam = r.lam.numpy()
    assert r.lam.dtype == torch.float64
    assert lam.min() >= 0
    assert lam.max() <= 1
    np.testing.assert_allclose(lam, stats.beta.ppf(draws.uniform(7, 1, np.arange(m), "lam"), alpha, alpha), rtol=1e-9)
    variance = 1 / (4 * (2 * alpha + 1))
    assert lam.mean() == pytest.approx(0.5, abs=4 * np.sqrt(variance / m))
    assert lam.var() == pytest.approx(variance, rel=0.1)
    assert stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_draws_belong_to_the_row_id_and_not_to_the_place() -> None:
    m, ids = 60, np.random.default_rng(5).permutation(1000)[:60]
    distances, indices = torch.rand(m, 4, generator=torch.Generator().manual_seed(0)), neighbours_of(m, m, 4)
    for how in ("mean", "random", "weighted"):
        want = recipe(distances, indices, how, "beta", 0.5, seed=2, round=3, row_ids=ids)
        for chosen in (np.random.default_rng(6).permutation(m), np.arange(7, 20), np.array([59])):
            part = torch.from_numpy(chosen)
            got = recipe(distances[part], indices[part], how, "beta", 0.5, seed=2, round=3, row_ids=ids[chosen])
            assert torch.equal(got.lam, want.lam[part])
            assert torch.equal(got.indices, want.indices[part])
            if want.weights is not None and got.weights is not None:
                assert torch.equal(got.weights, want.weights[part])


@pytest.mark.parametrize("rows", [np.arange(20000), np.arange(20000) * 4096, np.arange(20000) + 2**62])
def test_draws_are_uniform(rows: np.ndarray) -> None:
    for purpose in draws.PURPOSES:
        u = draws.uniform(0, 0, rows, purpose)
        assert u.min() > 0
        assert u.max() < 1
        assert len(np.unique(u)) == len(u)
        assert stats.kstest(u, "uniform").pvalue > 0.01
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03


def test_seeds_rounds_and_purposes_draw_independently() -> None:
    rows = np.arange(5000)
    keys = [(0, 0, "lam"), (1, 0, "lam"), (0, 1, "lam"), (0, 0, "order"), (0, 0, "neighbour"), (-1, 0, "lam")]
    keys += [(2**63, 0, "lam"), (10**6, 10**6, "lam")]
    all_draws = np.stack([draws.uniform(seed, round, rows, purpose) for seed, round, purpose in keys])
    correlation = np.corrcoef(all_draws) - np.eye(len(keys))
    assert np.abs(correlation).max() < 0.06


def test_the_hash_has_not_changed() -> None:
    assert draws.PURPOSES[:3] == ("order", "neighbour", "lam")
    assert draws.uniform(0, 0, np.array([0, 1]), "lam").tolist() == [0.8677548954427445, 0.763910985734356]
    assert draws.uniform(12345, 7, np.array([10**12]), "neighbour").tolist() == [0.0696661308932865]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mix": "median"}, "mix must be one of mean, random, weighted, got 'median'"),
        ({"lam": 1.5}, r"lam must be in \[0, 1\] or 'beta', got 1\.5"),
        ({"lam": -0.1}, r"lam must be in \[0, 1\] or 'beta', got -0\.1"),
        ({"lam": float("nan")}, r"lam must be in \[0, 1\] or 'beta', got nan"),
        ({"lam": "gamma"}, r"lam must be in \[0, 1\] or 'beta', got 'gamma'"),
        ({"alpha": 0.0}, r"alpha must be positive and finite, got 0\.0"),
        ({"alpha": float("inf")}, "alpha must be positive and finite, got inf"),
        ({"alpha": float("nan")}, "alpha must be positive and finite, got nan"),
    ],
)
def test_wrong_recipes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(torch.ones(3, 2), neighbours_of(3, 3, 2), **arguments)


def with_row(row: int, values: list[float]) -> Tensor:
    weights = torch.full((9, 2), 0.5)
    weights[row] = torch.tensor(values)
    return weights


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": torch.ones(9)}, ValueError, r"inputs must be a non-empty \(m, \.\.\.\) pool .*, got shape \(9,\)"),
        ({"inputs": torch.ones(0, 4)}, ValueError, r"inputs must be a non-empty .*, got shape \(0, 4\)"),
        ({"inputs": torch.ones(9, 4).int()}, TypeError, r"inputs must be uint8 or floating point, got torch\.int32"),
        ({"inputs": np.ones((9, 4), bool)}, TypeError, r"inputs must be uint8 or floating point, got torch\.bool"),
        ({"indices": torch.zeros(9, 2)}, TypeError, r"indices must be int64, got torch\.float32"),
        ({"indices": torch.zeros(9, 2).int()}, TypeError, r"indices must be int64, got torch\.int32"),
        ({"indices": torch.zeros(9).long()}, ValueError, r"indices must be 2-D, got shape \(9,\)"),
        ({"indices": torch.full((9, 2), 9)}, ValueError, r"indices must be in \[0, 8\], got 9"),
        ({"indices": torch.full((9, 2), -1)}, ValueError, r"indices must be in \[0, 8\], got -1"),
        ({"indices": torch.zeros(8, 2).long()}, ValueError, "indices must have one row for each of the 9 rows, got 8"),
        ({"rows": torch.tensor([9])}, ValueError, r"rows must be in \[0, 8\], got 9"),
        ({"rows": torch.tensor([[1]])}, ValueError, r"rows must be 1-D, got shape \(1, 1\)"),
        ({"rows": torch.tensor([0.0])}, TypeError, r"rows must be int64, got torch\.float32"),
        ({"rows": torch.tensor([1, 2])}, ValueError, "indices must have one row for each of the 2 rows, got 9"),
        ({"lam": 1.25}, ValueError, r"lam must be in \[0, 1\], got 1\.25"),
        ({"lam": -0.5}, ValueError, r"lam must be in \[0, 1\], got -0\.5"),
        ({"lam": float("nan")}, ValueError, r"lam must be in \[0, 1\], got nan"),
        ({"lam": torch.tensor([0.5] * 8 + [2.0])}, ValueError, r"lam must be in \[0, 1\], got 2\.0"),
        ({"lam": torch.ones(8)}, ValueError, r"lam must be one number or \(9,\), got shape \(8,\)"),
        ({"lam": torch.ones(9, 1)}, ValueError, r"lam must be one number or \(9,\), got shape \(9, 1\)"),
        (
            {"weights": torch.ones(9, 3) / 3},
            ValueError,
            r"weights must have the shape of indices, \(9, 2\), got \(9, 3\)",
        ),
        ({"weights": with_row(4, [0.5, 0.6])}, ValueError, "weights must be non-negative with sum 1 .* in row 4$"),
        ({"weights": with_row(3, [1.5, -0.5])}, ValueError, "weights must be non-negative with sum 1 .* in row 3$"),
        ({"weights": with_row(2, [torch.nan, 0.5])}, ValueError, "weights must be non-negative .* in row 2$"),
        ({"normalize": (0.5,)}, ValueError, r"normalize must be a pair \(mean, std\), got \(0\.5,\)"),
        ({"normalize": ((0.5, 0.5), 1.0)}, ValueError, "normalize must give 1 or 4 values of mean, got 2"),
        ({"normalize": (0.5, 0.0)}, ValueError, r"normalize must be finite with positive std, got \(0\.5, 0\.0\)"),
        ({"normalize": (float("nan"), 1.0)}, ValueError, r"normalize must be finite with positive std, got \(nan, 1"),
        (
            {"memory_format": torch.contiguous_format},
            ValueError,
            "memory_format must be torch.preserve_format or torch.channels_last, got torch.contiguous_format",
        ),
        (
            {"memory_format": torch.channels_last},
            ValueError,
            r"inputs must be 4-D to be mixed into torch.channels_last, got shape \(9, 4\)",
        ),
        ({"out": np.ones((9, 4))}, TypeError, "out must be a tensor, got an ndarray"),
        (
            {"out": torch.ones(8, 4)},
            ValueError,
            r"out must be contiguous, of shape \(9, 4\) and .*, got shape \(8, 4\)",
        ),
        (
            {"out": torch.ones(9, 4).double()},
            ValueError,
            r"out must be .* torch\.float32 on cpu, got .* torch\.float64",
        ),
        ({"out": torch.ones(4, 9).T}, ValueError, r"out must be contiguous, .* got shape \(9, 4\), strides \(1, 9\)"),
        ({"backend": "gpu"}, ValueError, "backend must be one of auto, triton, cpp, torch, got 'gpu'"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"inputs": pool_of((9, 4)), "indices": neighbours_of(9, 9, 2), "lam": 0.5} | change
    call: Callable[..., Tensor] = dm2_fast.mix
    with pytest.raises(error, match=message):
        call(**arguments)
