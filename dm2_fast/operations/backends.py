"""Which implementation serves which device and dtype. This file is the only place that knows.

    device   dtype                        "auto"    may be forced
    cuda     uint8, float16/32, bfloat16  triton    torch        (nearest points: torch, there is no kernel)
    cuda     float64                      torch
    cpu      any of these                 cpp       torch; triton when interpreted (not float64)
    other    any of these                 torch

Where the C++ extension is not built, or triton is missing or older than 3.6, "auto" is plain torch and says so once.

An implementation is a module; all of them have the same functions with the same leading arguments, and two attributes:
`TAKES_THREADS`, whether the functions take num_threads, and `WHOLE_PROBLEMS`, whether `knn` wants all rows in one call,
reports its progress and answers Ctrl-C within it. Half precision is computed in float32 everywhere.
"""

import importlib
import importlib.util
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from dm2_fast.operations.arguments import one_of, whole

MOST_THREADS = 2**15
NAMES = ("auto", "triton", "cpp", "torch")
OLDEST_TRITON = (3, 6)
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
        backend = "cpp" if _extension() else "torch"
    elif backend == "auto":
        served = device == "cuda" and x.dtype != torch.float64 and operation in WITH_KERNEL
        backend = "triton" if served and _kernels() else "torch"
    if backend == "torch":
        from dm2_fast.operations import reference

        return reference
    if backend == "cpp":
        if device != "cpu":
            raise RuntimeError(f"backend='cpp' needs a CPU tensor, got device={x.device} (use backend='auto')")
        if not has_extension():
            raise RuntimeError(f"backend='cpp' needs the C++ extension: {BUILD_EXTENSION}")
        from dm2_fast.operations import cpp

        return cpp
    if operation not in WITH_KERNEL:
        raise RuntimeError(f"backend='triton' has no kernel for {operation} (use backend='auto' or 'torch')")
    if x.dtype == torch.float64:
        raise RuntimeError("backend='triton' needs float32, float16 or bfloat16, got float64 (use backend='torch')")
    why = triton_is_missing()
    if why:
        raise RuntimeError(f"backend='triton' needs {why}")
    kernels = importlib.import_module("dm2_fast.kernels")
    if device != "cuda" and not kernels.INTERPRETED:
        raise RuntimeError(
            f"backend='triton' needs a CUDA tensor, got device={x.device} "
            "(or set TRITON_INTERPRET=1 before triton is imported)"
        )
    return kernels


BUILD_EXTENSION = "install a wheel, or g++ and then dm2_fast again with pip install --force-reinstall --no-deps"


def has_extension() -> bool:
    """Whether `dm2_fast._C` is built."""
    return importlib.util.find_spec("dm2_fast._C") is not None


def extension() -> str:
    """The C++ extension in words: for which instruction set it works on this machine, or that it is missing."""
    if not has_extension():
        return "C++ extension: missing"
    from dm2_fast import _C

    return f"instruction set {_C.isa()}"


def triton_is_missing() -> str | None:
    """What triton lacks, if it cannot run the kernels, and what to do about it."""
    if importlib.util.find_spec("triton") is None:
        return "the triton package (on Linux, pip install 'dm2_fast[triton]')"
    found = importlib.import_module("triton").__version__
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"triton {oldest} or newer, got {found} (it comes with a newer torch)"
    return None


@cache
def _extension() -> bool:
    """`has_extension`, with a warning the first time that it is false."""
    if not has_extension():
        slower = "plain torch is used, which is slower, since the C++ extension is missing"
        warnings.warn(f"{slower}: {BUILD_EXTENSION}", stacklevel=4)
        return False
    return True


@cache
def _kernels() -> bool:
    """Whether triton can run the kernels, with a warning the first time that it cannot."""
    why = triton_is_missing()
    if why:
        warnings.warn(f"plain torch is used in place of the Triton kernels, which need {why}", stacklevel=4)
    return why is None


def thread_options(module: ModuleType, num_threads: int | None) -> dict[str, int]:
    """Keyword arguments for an implementation that takes a number of threads."""
    threads = None if num_threads is None else whole("num_threads", num_threads, 1, MOST_THREADS)
    return {"num_threads": threads} if threads and module.TAKES_THREADS else {}
