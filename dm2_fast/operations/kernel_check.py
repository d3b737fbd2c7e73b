"""Each Triton kernel against plain torch on a small fixed problem, before its first result on a device is trusted."""

import functools
import math
import time
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_TOLERANCE = 1e-4  # of values of about 1, computed in float32


def trusted(kernels: ModuleType, operation: str, device: torch.device, forced: bool) -> ModuleType:
    """Return `kernels` if its operation agrees with plain torch on the device, which is looked at once in a process.

    If it does not, return plain torch with one warning, or raise RuntimeError where Triton was forced.
    """
    problem = fault(operation, device)
    if problem is None:
        return kernels
    what = f"the Triton kernel {operation!r} disagrees with plain torch on {_name(device)}: {problem}"
    report = "please report this in the issue tracker of dm2_fast, with the output of dm2-fast info --check"
    if forced:
        raise RuntimeError(f"{what} (use backend='torch'; {report})")
    _warn_once(f"{what}; plain torch is used instead, {report}")
    from dm2_fast.operations import reference

    return reference


def fault(operation: str, device: torch.device) -> str | None:
    """What is wrong with a kernel on a device, or None; found once in a process."""
    return _fault(operation, device)


def time_check(operation: str, device: torch.device) -> tuple[str | None, float]:
    """What is wrong with a kernel on a device, or None, and the seconds that the comparison takes once compiled."""
    problem = fault(operation, device)
    start = time.perf_counter()
    if problem is None:
        difference(operation, device)
    return problem, time.perf_counter() - start


def difference(operation: str, device: torch.device) -> float:
    """The largest absolute difference between the kernel's results on the device and plain torch's on the CPU.

    NaN, and a value that nobody wrote, count as infinitely far.
    """
    from dm2_fast import kernels
    from dm2_fast.operations import reference

    run, largest, chosen = OPERATIONS[operation], 0.0, torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.device("cpu"), torch.autocast("cpu", enabled=False):
            pairs = list(zip(run(kernels, device), run(reference, torch.device("cpu")), strict=True))
    finally:
        torch.set_default_dtype(chosen)
    for got, want in pairs:
        apart = (got.cpu().double() - want.double()).abs()
        largest = max(largest, torch.where(apart.isnan(), math.inf, apart).max().item())
    return largest


@functools.cache
def _fault(operation: str, device: torch.device) -> str | None:
    try:
        found = difference(operation, device)
    except Exception as error:  # whatever a compiler, a driver or a launch raises: the kernel cannot be used
        return f"{type(error).__name__}: {error}"
    return None if found <= _TOLERANCE else f"largest difference {found:.3g}"


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"the {device.type} (interpreted)"


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _integers(most: int, *shape: int) -> Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(0))


def _lattice(m: int, d: int) -> Tensor:
    """Rows with 16 entries of +-1/4 and copies of rows: exact norms and sums in float32, and many ties."""
    places = _random(m, d).argsort(1)[:, :16]
    rows = torch.zeros(m, d).scatter_(1, places, _integers(2, m, 16) / 2 - 0.25)
    rows[m // 2 :: 3] = rows[0]
    return rows


def _every_other(x: Tensor) -> Tensor:
    """x with columns that are not beside each other in memory."""
    return x.repeat_interleave(2, 1)[:, ::2]


def _knn(module: ModuleType, device: torch.device) -> list[Tensor]:
    out = []
    behind_codes: dict[str, Any] = {} if module.__name__.endswith("reference") else {"filtered": True}
    exact, rounded = _every_other(_lattice(83, 43)), _random(70, 19).half()
    for rows, asked, k, options in ((rounded, 37, 3, {}), (exact, 37, 7, {}), (exact, 83, 7, behind_codes)):
        rows, ones = rows.to(device), torch.ones(len(rows), device=device)
        ids = torch.arange(len(rows), device=device)
        distances = torch.full((asked, k), torch.inf, device=device)
        indices = torch.full((asked, k), torch.iinfo(torch.int64).max, device=device)
        here = rows[:asked], ones[:asked], ids[:asked]
        module.knn(*here, rows, ones, ids, distances, indices, 0.03, 0.5, **options)
        out += [distances, indices]
    return [out[0], *out[2:]]  # rounding may decide which of two random rows is nearer


def _pairwise(module: ModuleType, device: torch.device) -> list[Tensor]:
    outs = []
    for rows in (_every_other(_lattice(83, 43)), _random(70, 19).half()):
        rows, ones = rows.to(device), torch.ones(len(rows), device=device)
        out = torch.full((37, len(rows)), torch.nan, device=device)
        module.pairwise(rows[:37], ones[:37], rows, ones, out, 0.03, 0.5)
        outs.append(out)
    return outs


def _mix(module: ModuleType, device: torch.device) -> list[Tensor]:
    indices, coefficients = _integers(9, 11, 4).to(device), torch.tensor([0.5, 0.25, 0.125, 0.125]).repeat(11, 1)
    mean, std = torch.tensor([0.25, 0.5, 0.75]).to(device), torch.tensor([0.5, 1.0, 2.0]).to(device)
    outs = []
    for pool, statistics, shape in (
        (_integers(256, 9, 3 * 731).to(torch.uint8), (mean, std), (731, 3)),
        (_integers(9, 9, 2 * 33).half()[:, ::2], (mean[:0], std[:0]), (33,)),
    ):
        out = torch.full((11, *shape), torch.nan, dtype=torch.float32 if len(shape) == 2 else pool.dtype, device=device)
        module.mix(pool.to(device), indices, coefficients.to(device), *statistics, shape[0], out)
        outs.append(out)
    return outs


def _uncertainty(module: ModuleType, device: torch.device) -> list[Tensor]:
    outs = []
    for logits in (_every_other(3 * _random(37, 7)), _random(5, 1100).half(), torch.zeros(3, 10)):
        for kind in ("least-confidence", "entropy", "margin"):
            outs.append(torch.full((len(logits),), torch.nan, device=device))
            module.uncertainty(logits.to(device), kind, outs[-1])
    return outs


def _linear_probe(module: ModuleType, device: torch.device) -> list[Tensor]:
    outs = []
    for features, classes in ((_every_other(_random(41, 23)), 10), (_random(41, 23).half(), 131)):
        weight, bias = _random(classes, 23, seed=1) / 4, _random(classes, seed=2)
        arguments = (
            _integers(41, 35, 4),
            torch.full((35, 4), 0.25),
            weight.to(features.dtype),
            bias.to(features.dtype),
        )
        outs.append(torch.full((35,), torch.nan, device=device))
        module.linear_probe(features.to(device), *(a.to(device) for a in arguments), "entropy", outs[-1])
    return outs


OPERATIONS: dict[str, Callable[[ModuleType, torch.device], list[Tensor]]] = {
    "knn": _knn,
    "pairwise": _pairwise,
    "mix": _mix,
    "uncertainty": _uncertainty,
    "linear_probe": _linear_probe,
}
