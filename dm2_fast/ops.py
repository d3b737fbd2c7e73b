"""The operations as `torch.ops.dm2_fast.*`, for torch.compile and torch.export: `import dm2_fast.ops` registers them.

Each is one opaque node that checks its arguments and chooses its implementation as the function of the same name does.
"""

# Optional and List, since torch 2.5 cannot read "| None" and "list" in the signature of an operator.
# ruff: noqa: UP006, UP035, UP045

from typing import List, Optional

import torch
from torch import Tensor

import dm2_fast


@torch.library.custom_op("dm2_fast::knn", mutates_args=())
def knn(
    x: Tensor, k: int, metric: str = "literal", queries: Optional[Tensor] = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`dm2_fast.knn`."""
    return dm2_fast.knn(x, k, metric, queries=queries, backend=backend)  # type: ignore[arg-type]


@knn.register_fake
def _(
    x: Tensor, k: int, metric: str = "literal", queries: Optional[Tensor] = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    shape = ((x if queries is None else queries).shape[0], k)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("dm2_fast::mix", mutates_args=())
def mix(
    inputs: Tensor,
    indices: Tensor,
    lam: Tensor,
    weights: Optional[Tensor] = None,
    rows: Optional[Tensor] = None,
    mean: Optional[List[float]] = None,
    std: Optional[List[float]] = None,
    backend: str = "auto",
) -> Tensor:
    """`dm2_fast.mix`, with lam a tensor and normalize in two lists, both or neither."""
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must both be given or left out, got mean={mean} and std={std}")
    normalize = None if mean is None or std is None else (mean, std)
    return dm2_fast.mix(inputs, indices, lam, weights=weights, rows=rows, normalize=normalize, backend=backend)


@mix.register_fake
def _(
    inputs: Tensor,
    indices: Tensor,
    lam: Tensor,
    weights: Optional[Tensor] = None,
    rows: Optional[Tensor] = None,
    mean: Optional[List[float]] = None,
    std: Optional[List[float]] = None,
    backend: str = "auto",
) -> Tensor:
    dtype = torch.float32 if inputs.dtype == torch.uint8 else inputs.dtype
    shape = (indices.shape[0], *inputs.shape[1:])
    if inputs.ndim == 4 and not inputs[0].is_contiguous() and inputs[0].movedim(0, -1).is_contiguous():
        return inputs.new_empty((shape[0], *shape[2:], shape[1]), dtype=dtype).movedim(-1, 1)
    return inputs.new_empty(shape, dtype=dtype)


@torch.library.custom_op("dm2_fast::linear_probe", mutates_args=())
def linear_probe(
    features: Tensor,
    indices: Tensor,
    lam: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    kind: str = "least-confidence",
    weights: Optional[Tensor] = None,
    rows: Optional[Tensor] = None,
    backend: str = "auto",
) -> Tensor:
    """`dm2_fast.linear_probe`, with lam a tensor."""
    options = {"weights": weights, "rows": rows, "backend": backend}
    return dm2_fast.linear_probe(features, indices, lam, weight, bias, kind, **options)  # type: ignore[arg-type]


@linear_probe.register_fake
def _(
    features: Tensor,
    indices: Tensor,
    lam: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    kind: str = "least-confidence",
    weights: Optional[Tensor] = None,
    rows: Optional[Tensor] = None,
    backend: str = "auto",
) -> Tensor:
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    return features.new_empty(indices.shape[0], dtype=dtype)
