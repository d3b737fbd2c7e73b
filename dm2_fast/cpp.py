"""The C++ operations of `dm2_fast._C` over CPU tensors, without a copy."""

import torch
from torch import Tensor

try:
    from dm2_fast import _C
except ImportError as error:
    raise ImportError(
        "dm2_fast._C must be built, got no such module (pip install . or, to work on it, -e .)"
    ) from error


def _float(rows: Tensor) -> Tensor:
    """Half precision is widened; rows that are strided inside are copied; everything else stays where it is."""
    rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def pairwise(
    queries: Tensor,
    query_scale: Tensor,
    rows: Tensor,
    row_scale: Tensor,
    out: Tensor,
    w1: float,
    w2: float,
    *,
    num_threads: int | None = None,
) -> None:
    """`reference.pairwise`, with the fixed summation order of csrc/distance.hpp."""
    _C.pairwise(
        _float(queries).numpy(),
        query_scale.numpy(),
        _float(rows).numpy(),
        row_scale.numpy(),
        out.numpy(),
        w1,
        w2,
        num_threads=num_threads or torch.get_num_threads(),
    )


def knn(
    queries: Tensor,
    query_scale: Tensor,
    query_ids: Tensor,
    rows: Tensor,
    row_scale: Tensor,
    row_ids: Tensor,
    distances: Tensor,
    indices: Tensor,
    w1: float,
    w2: float,
    *,
    num_threads: int | None = None,
) -> None:
    """`reference.knn`, bit for bit the same for every number of threads."""
    _C.knn(
        _float(queries).numpy(),
        query_scale.numpy(),
        query_ids.numpy(),
        _float(rows).numpy(),
        row_scale.numpy(),
        row_ids.numpy(),
        distances.numpy(),
        indices.numpy(),
        w1,
        w2,
        num_threads=num_threads or torch.get_num_threads(),
    )


def mix(
    inputs: Tensor,
    indices: Tensor,
    coefficients: Tensor,
    mean: Tensor,
    std: Tensor,
    channel_stride: int,
    out: Tensor,
    *,
    num_threads: int | None = None,
) -> None:
    """`reference.mix`, in one pass."""
    widened = out if out.dtype == coefficients.dtype else torch.empty(out.shape, dtype=coefficients.dtype)
    _C.mix(
        _float(inputs).numpy(),
        indices.numpy(),
        coefficients.numpy(),
        mean.numpy(),
        std.numpy(),
        channel_stride,
        widened.numpy(),
        num_threads=num_threads or torch.get_num_threads(),
    )
    if widened is not out:
        out.copy_(widened)


def uncertainty(logits: Tensor, kind: str, out: Tensor, *, num_threads: int | None = None) -> None:
    """`reference.uncertainty`, in one pass."""
    _C.uncertainty(_float(logits).numpy(), kind, out.numpy(), num_threads=num_threads or torch.get_num_threads())
