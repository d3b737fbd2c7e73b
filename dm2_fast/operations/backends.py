"""Which implementation serves which device and dtype. This file is the only place that knows.

    device   dtype                        "auto"    may be forced
    cuda     uint8, float16/32, bfloat16  triton    torch        (nearest points: torch, there is no kernel)
    cuda     float64                      torch
    cpu      any of these                 cpp       torch; triton when interpreted (not float64)
    other    any of these                 torch

An implementation is a module; all of them have the same functions with the same leading arguments, and two attributes:
`TAKES_THREADS`, whether the functions take num_threads, and `WHOLE_PROBLEMS`, whether `knn` wants all rows in one call,
reports its progress and answers Ctrl-C within it. Half precision is computed in float32 everywhere.
"""

import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

from dm2_fast.operations.arguments import one_of, whole

MOST_THREADS = 2**15
NAMES = ("auto", "triton", "cpp", "torch")
WITH_KERNEL = ("knn", "pairwise", "mix", "uncertainty", "linear_probe")


def resolve(backend: str, x: Tensor, operation: str) -> ModuleType:
    """Return the implementation that serves x: `dm2_fast.kernels`, `operations.cpp` or `operations.reference`.

    The first time that a Triton kernel is to serve an operation on a device, it is compared with plain torch. Where it
    disagrees, "auto" returns plain torch with a warning.

    Args, Raises: As in `implementation`; and RuntimeError where a forced kernel disagrees with plain torch.
    """
    module = implementation(backend, x, operation)
    if module.__name__ != "dm2_fast.kernels":
        return module
    from dm2_fast.operations import kernel_check

    return kernel_check.trusted(module, operation, x.device, forced=backend == "triton")


def implementation(backend: str, x: Tensor, operation: str) -> ModuleType:
    """Return the implementation that is meant for x, without a look at its results.

    Args:
        backend: One of `NAMES`.
        x: What is computed on.
        operation: Name of the function that is wanted; one that the kernels lack is plain torch for "auto".

    Raises:
        ValueError: backend is not one of `NAMES`.
        RuntimeError: a forced backend cannot run on x; the message says why and what to do. Nothing falls back
            silently.
    """
    one_of("backend", backend, NAMES)
    device = x.device.type
    if backend == "auto" and device == "cpu":
        backend = "cpp"
    elif backend == "auto":
        served = device == "cuda" and x.dtype != torch.float64 and operation in WITH_KERNEL
        backend = "triton" if served else "torch"
    if backend == "torch":
        from dm2_fast.operations import reference

        return reference
    if backend == "cpp":
        if device != "cpu":
            raise RuntimeError(f"backend='cpp' needs a CPU tensor, got device={x.device} (use backend='auto')")
        from dm2_fast.operations import cpp

        return cpp
    if operation not in WITH_KERNEL:
        raise RuntimeError(f"backend='triton' has no kernel for {operation} (use backend='auto' or 'torch')")
    if x.dtype == torch.float64:
        raise RuntimeError("backend='triton' needs float32, float16 or bfloat16, got float64 (use backend='torch')")
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("backend='triton' needs the triton package (pip install triton, on Linux)")
    kernels = importlib.import_module("dm2_fast.kernels")
    if device != "cuda" and not kernels.INTERPRETED:
        raise RuntimeError(
            f"backend='triton' needs a CUDA tensor, got device={x.device} "
            "(or set TRITON_INTERPRET=1 before triton is imported)"
        )
    return kernels


def thread_options(module: ModuleType, num_threads: int | None) -> dict[str, int]:
    """Keyword arguments for an implementation that takes a number of threads."""
    threads = None if num_threads is None else whole("num_threads", num_threads, 1, MOST_THREADS)
    return {"num_threads": threads} if threads and module.TAKES_THREADS else {}
