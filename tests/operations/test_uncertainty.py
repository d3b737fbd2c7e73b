from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import KINDS, device_of, uncertainty
from torch import Tensor

import dm2_fast

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def logits_of(n: int, classes: int, scale: float = 3.0, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, classes)) * scale).to(dtype)


def plain(logits: Tensor, kind: str) -> Tensor:
    """The formula in plain torch at the dtype that the library computes in."""
    z = logits if logits.dtype == torch.float64 else logits.float()
    p = z.softmax(1)
    if kind == "least-confidence":
        return 1 - p.amax(1)
    if kind == "entropy":
        return torch.special.entr(p).sum(1)
    top = p.sort(1, descending=True).values
    return top[:, 1] - top[:, 0]


def check(logits: Tensor, kind: Any, backend: str, relative: float | None = None) -> Tensor:
    """Ask dm2_fast.uncertainty and check it: at most twice the error of plain torch plus 4 eps of the largest value,
    and, where asked for, a relative error."""
    got = dm2_fast.uncertainty(logits.to(device_of(backend)), kind, backend=backend).cpu()
    want = uncertainty(logits, kind)
    assert got.shape == (len(logits),)
    assert got.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    error = np.abs(got.numpy() - want)
    scale = np.log(logits.shape[1]) if kind == "entropy" else 1.0
    worst = np.abs(plain(logits, kind).numpy() - want).max()
    assert float(error.max()) <= 2 * float(worst) + 4 * torch.finfo(got.dtype).eps * scale
    if relative is not None:
        assert (error <= relative * np.abs(want)).all()
    return got


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "classes"), [(1, 2), (7, 2), (65, 3), (63, 10), (33, 100), (5, 1000)])
def test_values_equal_the_oracle_for_odd_shapes(backend: str, n: int, classes: int, kind: str) -> None:
    check(logits_of(n, classes), kind, backend)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_values_equal_the_oracle_for_every_dtype(backend: str, dtype: torch.dtype, kind: str) -> None:
    if (backend, dtype) == ("triton", torch.float64):
        with pytest.raises(RuntimeError, match="float64"):
            check(logits_of(3, 4, dtype=dtype), kind, backend)
        return
    check(logits_of(40, 11, dtype=dtype), kind, backend)


@pytest.mark.parametrize("kind", KINDS)
def test_strides_do_not_matter(backend: str, kind: str) -> None:
    dense = logits_of(30, 7)
    want = check(dense, kind, backend)
    wide = torch.zeros(60, 14)
    wide[::2, ::2] = dense
    wide[1::2] = torch.nan
    for logits in (dense.T.contiguous().T, wide[::2, ::2], wide[::2, :14:2], torch.cat([dense, dense], 1)[:, :7]):
        assert torch.equal(check(logits, kind, backend), want)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_of_probability_zero_count_nothing(backend: str, kind: str) -> None:
    logits = logits_of(20, 6)
    gone = torch.full((20, 3), -torch.inf)
    order = torch.tensor([6, 0, 1, 7, 2, 3, 4, 5, 8])
    check(torch.cat([logits, gone], 1)[:, order], kind, backend)
    certain = torch.tensor([[0.0, -torch.inf], [-torch.inf, -5.0]])
    want = torch.tensor([-1.0, -1.0] if kind == "margin" else [0.0, 0.0])
    assert torch.equal(check(certain, kind, backend), want)


@pytest.mark.parametrize("kind", KINDS)
def test_huge_logits_do_not_overflow(backend: str, kind: str) -> None:
    logits = logits_of(20, 5)
    logits[::2] += 3e38
    logits[1::4] = logits[1::4] * 1e37
    check(logits, kind, backend)


def test_confident_rows_keep_a_value_of_their_own(backend: str) -> None:
    gaps = torch.linspace(1, 80, 40)
    logits = torch.stack([torch.zeros(40), -gaps, -gaps - 1, -gaps - 2], 1)
    few_eps = 2e-5  # exp of a float32 near -80 multiplies the rounding of its argument by up to 80
    for kind in ("least-confidence", "entropy"):
        got = check(logits, kind, backend, relative=few_eps)
        assert (got.diff() < 0).all()
        assert (got > 0).all()
    assert (check(logits, "margin", backend, relative=1e-6).diff() <= 0).all()


def test_confident_rows_keep_full_precision_in_float64() -> None:
    gaps = torch.linspace(1, 600, 40, dtype=torch.float64)
    logits = torch.stack([torch.zeros(40).double(), -gaps, -gaps - 1], 1)
    for backend in ("torch", "cpp"):
        for kind in KINDS:
            check(logits, kind, backend, relative=1e-12)


def test_the_margin_of_nearly_equal_classes_keeps_its_digits() -> None:
    logits = torch.stack([torch.zeros(20).double(), -torch.logspace(-15, -1, 20).double()], 1)
    for backend in ("torch", "cpp"):
        check(logits, "margin", backend, relative=1e-12)
        check(logits.float(), "margin", backend, relative=1e-6)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_equal_logits_are_most_uncertain(backend: str, classes: int) -> None:
    logits = torch.full((3, classes), 7.25)
    assert check(logits, "least-confidence", backend, relative=1e-6)[0].item() == pytest.approx(1 - 1 / classes)
    assert check(logits, "entropy", backend, relative=1e-6)[0].item() == pytest.approx(np.log(classes))
    assert (check(logits, "margin", backend) == 0).all()


def test_a_tie_for_the_largest_is_counted_once(backend: str) -> None:
    logits = torch.tensor([[4.0, 1.0, 4.0, 0.0], [0.0, 2.0, 2.0, 2.0]])
    for kind in KINDS:
        check(logits, kind, backend, relative=1e-6)
    assert (dm2_fast.uncertainty(logits.to(device_of(backend)), "margin", backend=backend) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_neighbouring_rows_do_not_change_a_bit(kind: str) -> None:
    logits = logits_of(3000, 7)
    want = dm2_fast.uncertainty(logits, kind, num_threads=1)
    for threads in (2, 3, 7):
        assert torch.equal(dm2_fast.uncertainty(logits, kind, num_threads=threads), want)
    assert torch.equal(dm2_fast.uncertainty(logits[1234:1235], kind), want[1234:1235])


def test_rows_of_another_tile_do_not_change_a_bit_in_triton() -> None:
    from dm2_fast import kernels

    logits = logits_of(37, 10).to(device_of("triton"))
    for kind in KINDS:
        want = dm2_fast.uncertainty(logits, kind, backend="triton")
        out = torch.empty(37, device=logits.device)
        kernels.uncertainty(logits, kind, out, config={"BLOCK_N": 16})
        assert torch.equal(out, want)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_in_blocks_equal_the_oracle_in_triton(kind: str) -> None:
    from dm2_fast import kernels

    logits = torch.cat([logits_of(20, 37), torch.arange(37.0).expand(2, -1), -torch.arange(37.0).expand(2, -1)])
    logits[3, :20] = -torch.inf
    logits[4, 8:30] = -torch.inf
    logits[5] = 7.25
    logits[6] *= 1e37
    out = torch.empty(24, device=device_of("triton"))
    kernels.uncertainty(logits.to(out.device), kind, out, config={"BLOCK_C": 8})
    np.testing.assert_allclose(out.cpu().numpy(), uncertainty(logits, kind).astype(float), rtol=2e-6, atol=1e-7)


def test_no_rows_give_no_values(backend: str) -> None:
    assert dm2_fast.uncertainty(torch.zeros(0, 3, device=device_of(backend)), backend=backend).shape == (0,)


def test_gradients_are_not_followed(backend: str) -> None:
    logits = logits_of(4, 3).to(device_of(backend)).requires_grad_()
    assert not dm2_fast.uncertainty(logits, backend=backend).requires_grad


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@given(
    n=st.integers(1, 9),
    classes=st.integers(2, 40),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from(FLOATS),
    kind=st.sampled_from(KINDS),
)
def test_any_logits_equal_the_oracle_within_their_bounds(
    backend: str, n: int, classes: int, scale: float, seed: int, dtype: torch.dtype, kind: str
) -> None:
    got = check(logits_of(n, classes, scale, dtype, seed), kind, backend)
    low, high = {"least-confidence": (0, 1 - 1 / classes), "entropy": (0, np.log(classes)), "margin": (-1, 0)}[kind]
    assert got.min() >= low
    assert got.max() <= high + 4e-7 * max(1, high)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3),), ValueError, r"logits must be \(n, C\) with at least two classes, got shape \(3,\)"),
        ((torch.ones(3, 1),), ValueError, r"logits must be \(n, C\) with at least two classes, got shape \(3, 1\)"),
        ((torch.ones(3, 2).int(),), TypeError, r"logits must be floating point, got torch\.int32"),
        ((torch.ones(3, 2), "bald"), ValueError, "kind must be one of least-confidence, entropy, margin, got 'bald'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dm2_fast.uncertainty(*arguments)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_named(value: float) -> None:
    logits = logits_of(9, 3)
    logits[4, 1] = value
    with pytest.raises(ValueError, match=r"logits must be finite or -infinity, got NaN or infinity in row 4$"):
        dm2_fast.uncertainty(logits)
    logits[2] = -torch.inf
    with pytest.raises(ValueError, match=r"in rows 2, 4$"):
        dm2_fast.uncertainty(logits)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, triton, cpp, torch, got 'numpy'"):
        dm2_fast.uncertainty(logits_of(3, 3), backend="numpy")
    with pytest.raises(ValueError, match="num_threads must be at least 1, got 0"):
        dm2_fast.uncertainty(logits_of(3, 3), num_threads=0)
