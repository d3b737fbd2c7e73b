"""Which implementation serves which device and dtype. This file is the only place that knows.

    device   dtype                        "auto"    may be forced
    cuda     uint8, float16/32, bfloat16  triton    torch
    cuda     float64                      torch
    cpu      any of these                 cpp       torch; triton when interpreted (not float64)
    other    any of these                 torch

An implementation is a module; all of them have the same functions with the same leading arguments. Half precision is
computed in float32 everywhere.
"""

import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

NAMES = ("auto", "triton", "cpp", "torch")


def resolve(backend: str, x: Tensor, operation: str | None = None) -> ModuleType:
    """Return the implementation that serves x: `dm2_fast.kernels`, `dm2_fast.cpp` or `dm2_fast.reference`.

    The first time that a Triton kernel is to serve an operation on a device, it is compared with plain torch. Where it
    disagrees, "auto" returns plain torch with a warning.

    Raises:
        ValueError: backend is not one of `NAMES`.
        RuntimeError: a forced backend cannot run on x, or its kernel disagrees with plain torch; the message says why
            and what to do. Nothing falls back silently.
    """
    if backend not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, got {backend!r}")
    device, forced = x.device.type, backend == "triton"
    if backend == "auto":
        backend = {"cpu": "cpp", "cuda": "torch" if x.dtype == torch.float64 else "triton"}.get(device, "torch")
    if backend == "torch":
        from dm2_fast import reference

        return reference
    if backend == "cpp":
        if device != "cpu":
            raise RuntimeError(f"backend='cpp' needs a CPU tensor, got device={x.device} (use backend='auto')")
        from dm2_fast import cpp

        return cpp
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
    if operation is None:
        return kernels
    from dm2_fast import kernel_check

    return kernel_check.trusted(kernels, operation, x.device, forced)


def thread_options(module: ModuleType, num_threads: int | None) -> dict[str, int]:
    """Keyword arguments that only the C++ implementation takes."""
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    return {"num_threads": num_threads} if num_threads and module.__name__ == "dm2_fast.cpp" else {}


def whole_problems(module: ModuleType) -> bool:
    """Whether an implementation wants all rows in one call, reports progress from it and answers Ctrl-C within it."""
    return module.__name__ == "dm2_fast.cpp"
