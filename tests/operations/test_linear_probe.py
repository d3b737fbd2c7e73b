"""linear_probe: from frozen features to scores."""

from typing import Any

import numpy as np
import pytest
import torch
from oracle import KINDS, device_of, mix, uncertainty, wide
from torch import Tensor

import dm2_fast
from dm2_fast.operations import cpp, reference

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def problem(m: int, n: int, d: int, classes: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    indices = torch.from_numpy(np.random.default_rng(1).integers(0, m, (m, n)))
    return {
        "features": normal(m, d, dtype=dtype),
        "indices": indices,
        "lam": 0.3,
        "weight": normal(classes, d, dtype=dtype, seed=2) / d**0.5,
        "bias": normal(classes, dtype=dtype, seed=3),
    }


def check(arguments: dict[str, Any], kind: Any, backend: str, **options: Any) -> Tensor:
    """Ask dm2_fast.linear_probe and check it against the formula in wide NumPy: a logit is off by the roundings of its
    d products and n terms, relative to their absolute values, and no value moves faster than 2 log C a logit."""
    on = device_of(backend)
    given = {name: v.to(on) if isinstance(v, Tensor) else v for name, v in arguments.items()}
    got = dm2_fast.linear_probe(**given, kind=kind, backend=backend, **options)
    features, weight = wide(arguments["features"]), wide(arguments["weight"])
    bias = np.zeros(len(weight)) if arguments["bias"] is None else wide(arguments["bias"])
    mixed = mix(arguments["features"], arguments["indices"], arguments["lam"], **options)
    want = uncertainty(mixed @ weight.T + bias, kind)
    assert got.shape == want.shape
    dtype = torch.float64 if arguments["features"].dtype == torch.float64 else torch.float32
    assert got.dtype == dtype
    assert got.device.type == on
    largest = np.abs(features).max() * np.abs(weight).sum(1).max() + np.abs(bias).max()
    roundings = features.shape[1] + arguments["indices"].shape[1] + 8
    slack = 2 * max(1.0, np.log(len(weight))) * roundings * torch.finfo(dtype).eps * largest
    error = np.abs(got.cpu().numpy() - want).max()
    assert error <= slack, f"wrong by {float(error):.3g}, more than {float(slack):.3g}"
    return got.cpu()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "n", "d", "classes"), [(1, 1, 1, 2), (7, 2, 3, 10), (65, 10, 33, 70), (200, 3, 17, 3)])
def test_scores_equal_the_oracle_for_odd_shapes(backend: str, m: int, n: int, d: int, classes: int, kind: str) -> None:
    check(problem(m, n, d, classes), kind, backend)


@pytest.mark.parametrize("dtype", FLOATS)
def test_scores_equal_the_oracle_for_every_dtype(backend: str, dtype: torch.dtype) -> None:
    arguments = problem(63, 5, 40, 11, dtype)
    if (backend, dtype) == ("triton", torch.float64):
        with pytest.raises(RuntimeError, match="float64"):
            check(arguments, "entropy", backend)
        return
    check(arguments, "entropy", backend)


def test_options_of_mixing_are_those_of_mix(backend: str) -> None:
    arguments = problem(20, 3, 9, 4) | {"indices": torch.tensor([[1, 2, 3], [4, 4, 0]]), "bias": None}
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.9, 0.1]])
    lam = torch.tensor([0.2, 0.7])
    check(arguments | {"lam": lam}, "margin", backend, weights=weights, rows=torch.tensor([19, 3]))


def test_strides_do_not_matter(backend: str) -> None:
    arguments = problem(30, 3, 12, 6)
    want = check(arguments, "entropy", backend)
    for features in (arguments["features"].T.contiguous().T, arguments["features"].repeat(1, 2)[:, :12]):
        strided = {"features": features, "weight": arguments["weight"].T.contiguous().T}
        assert torch.equal(check(arguments | strided, "entropy", backend), want)


@pytest.mark.parametrize("kind", KINDS)
def test_lam_of_one_is_the_uncertainty_of_the_plain_logits(backend: str, kind: Any) -> None:
    arguments = problem(40, 3, 20, 5) | {"lam": 1.0}
    plain = torch.nn.functional.linear(arguments["features"], arguments["weight"], arguments["bias"])
    want = dm2_fast.uncertainty(plain, kind, backend="torch")
    torch.testing.assert_close(check(arguments, kind, backend), want, rtol=1e-5, atol=1e-6)


def test_no_rows_give_no_scores(backend: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    arguments = problem(5, 2, 3, 4) | {"indices": torch.zeros(0, 2, dtype=torch.int64), "rows": none}
    arguments = {name: v.to(device_of(backend)) if isinstance(v, Tensor) else v for name, v in arguments.items()}
    assert dm2_fast.linear_probe(**arguments, backend=backend).shape == (0,)


@pytest.mark.parametrize("module", [reference, cpp])
def test_batches_do_not_change_the_scores(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, backend = problem(50, 3, 20, 5), "torch" if module is reference else "cpp"
    want = check(arguments, "entropy", backend)
    monkeypatch.setattr(module, "_BATCH", 7)
    torch.testing.assert_close(check(arguments, "entropy", backend), want, rtol=1e-6, atol=1e-6)


def test_blocks_do_not_change_the_scores_in_triton() -> None:
    from dm2_fast import kernels

    on = device_of("triton")
    arguments = problem(40, 3, 33, 50)
    want = check(arguments, "margin", "triton")
    who = torch.cat([torch.arange(40)[:, None], arguments["indices"]], 1).to(on)
    coefficients = torch.tensor([0.3] + [0.7 / 3] * 3, device=on).repeat(40, 1)
    rest = [arguments[name].to(on) for name in ("weight", "bias")]
    for config in ({"BLOCK_M": 16}, {"BLOCK_C": 16}, {"BLOCK_D": 16}):
        out = torch.empty(40, device=on)
        kernels.linear_probe(arguments["features"].to(on), who, coefficients, *rest, "margin", out, config=config)
        torch.testing.assert_close(out.cpu(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "bald"}, ValueError, "kind must be one of least-confidence, entropy, margin, got 'bald'"),
        ({"features": torch.ones(3)}, ValueError, r"features must be a non-empty \(m, d\) matrix, got shape \(3,\)"),
        ({"features": torch.ones(9, 3).int()}, TypeError, r"features must be floating point, got torch\.int32"),
        ({"weight": torch.ones(4, 2)}, ValueError, r"weight must be \(C, 3\) .*, got shape \(4, 2\)"),
        ({"weight": torch.ones(1, 3)}, ValueError, r"weight must be \(C, 3\) .*, got shape \(1, 3\)"),
        ({"bias": torch.ones(3)}, ValueError, r"bias must be \(4,\), got shape \(3,\)"),
        ({"weight": torch.ones(4, 3, device="meta")}, TypeError, "weight must hold values, got a tensor on the"),
        ({"bias": torch.full((4,), torch.inf)}, ValueError, "bias must be finite, got NaN or infinity in rows 0, 1,"),
        ({"features": torch.full((9, 3), torch.nan)}, ValueError, "features must be finite, got NaN .* in rows 0, 1"),
        ({"lam": 1.5}, ValueError, r"lam must be in \[0, 1\], got 1.5"),
        ({"indices": torch.full((9, 2), 9)}, ValueError, r"indices must be in \[0, 8\], got 9"),
        ({"backend": "cuda"}, ValueError, "backend must be one of auto, triton, cpp, torch, got 'cuda'"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dm2_fast.linear_probe(**(problem(9, 2, 3, 4) | change))
